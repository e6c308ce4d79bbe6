"""Facts, a resolver that answers from a table, and messages to deliver."""

import ipaddress
import itertools
from typing import Any

from vnsmail.delivery.facts import AgentFacts
from vnsmail.errors import ResolveError
from vnsmail.model import Envelope, Family, Owner
from vnsmail.queue.envelope import new_id
from vnsmail.resolve.resolver import MailExchanger, NullMx

NOW = 1_800_000_000.0

_numbers = itertools.count()


def facts(*addresses, name="alpha.example", domains=("alpha.example",)):
    return AgentFacts(
        Owner(name),
        name,
        frozenset(ipaddress.ip_address(each) for each in addresses),
        frozenset(domains),
    )


ALPHA = facts("10.0.0.1")
DUAL = facts("10.0.0.1", "fd00::1")
MACHINE = AgentFacts(Owner("machine"), "machine.test", frozenset(), frozenset())


def envelope(*recipients, at=NOW, **changed):
    number = next(_numbers)
    return Envelope(
        **{
            "id": new_id(at, (number << 3).to_bytes(6, "big")),
            "owner": Owner("alpha.example"),
            "sender": "ann@alpha.example",
            "recipients": recipients or ("bob@b.example",),
            "received_at": at,
            **changed,
        }
    )


class Table:
    """Answers what a route asks; an exception in place of an answer is raised.

    A domain without an entry in ``exchangers`` is its own exchanger; a name without
    one in ``hosts`` has no address.
    """

    def __init__(
        self,
        exchangers: dict[str, Any] | None = None,
        hosts: dict[str, Any] | None = None,
    ) -> None:
        self.exchangers: dict[str, Any] = exchangers or {}
        self.hosts: dict[str, Any] = hosts or {}
        self.asked: list[tuple[str, Family]] = []

    async def mx(self, domain):
        found = self.exchangers.get(domain, [(0, domain)])
        if isinstance(found, Exception):
            raise found
        return tuple(sorted(MailExchanger(number, name) for number, name in found))

    async def addresses(self, name, family):
        self.asked.append((name, family))
        found = self.hosts.get(name, ())
        if isinstance(found, dict):
            found = found.get(family, ())
        if isinstance(found, Exception):
            raise found
        return tuple(of_family(found, family))


def of_family(texts, family):
    found = map(ipaddress.ip_address, texts)
    return [address for address in found if address.version == family]


def no_such(name, record="MX"):
    return ResolveError(name, record, "the name does not exist", temporary=False)


def server_failure(name, record="MX"):
    problem = "the name server 192.0.2.53 says SERVFAIL"
    return ResolveError(name, record, problem, temporary=True)


def null_mx(name):
    return NullMx(name)
