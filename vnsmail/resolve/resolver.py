"""The DNS questions a mail system asks.

Answers are kept as long as they say; who asks what is being asked already waits for
that answer, so a burst of mail to one domain is one question.

Rules of this file: it answers questions and decides nothing (delivery/route.py does).
Every failure is a ResolveError that says whether asking again can help. Names are
returned in lower case, without the dot at the end.
"""

import asyncio
import ipaddress
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdatatype
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.SOA
import dns.rdtypes.mxbase
import dns.rdtypes.nsbase
import dns.rdtypes.txtbase
import dns.resolver
import dns.reversename
import dns.rrset

from vnsmail.authentication.questions import Answer, Question
from vnsmail.errors import ResolveError
from vnsmail.model import Family, IPAddress
from vnsmail.resolve.backend import HandedBackend, OpenSocket
from vnsmail.resolve.kept import Kept
from vnsmail.resolve.tlsa import TlsaFound
from vnsmail.tls.dane import Tlsa

CACHE_SIZE = 4096
"""Answers kept. A small one takes some 4 KiB."""

TRIES = 3
"""How often each server is asked before the time is over; a datagram can get lost."""

EDNS_PAYLOAD = 1232
"""Bytes of an answer over UDP; more would be fragmented (dnsflagday.net/2020)."""

MAX_REVERSE_NAMES = 10
"""Names of one address that are looked at (RFC 8601 section 2.7.3, RFC 7208 4.6.4)."""

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")

_ADDRESS_RECORD = {Family.IPV4: "A", Family.IPV6: "AAAA"}


@dataclass(frozen=True, slots=True, order=True)
class MailExchanger:
    """A host that takes mail for a domain."""

    preference: int
    """The lowest is asked first."""
    name: str


class NullMx(ResolveError):
    """The domain says that it takes no mail (RFC 7505)."""

    def __init__(self, domain: str) -> None:
        super().__init__(domain, "MX", "it takes no mail", temporary=False)
        self.args = (domain,)


_Answer: TypeAlias = dns.resolver.Answer


@dataclass(slots=True)
class _Question:
    """One that is being asked."""

    answered: asyncio.Event = field(default_factory=asyncio.Event)
    answer: _Answer | None = None
    failure: ResolveError | None = None


class Resolver:
    """A stub resolver over sockets of somebody else's.

    Args:
        open_socket: returns a socket connected to port 53 of a server.
        servers: addresses of recursive name servers, asked in this order.
        timeout: seconds for one question, with all its tries.
        believed: whether a server's word that its data are authentic counts (AD, RFC
            4035 section 3.2.3).
    """

    def __init__(
        self,
        open_socket: OpenSocket,
        servers: Sequence[str],
        timeout: float,
        believed: Callable[[str], bool] | None = None,
    ) -> None:
        self._believed = believed
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.lifetime = timeout
        self._resolver.use_edns(0, 0, EDNS_PAYLOAD)
        if believed is not None:
            # RFC 6840 section 5.7: it asks for the answer's AD, and for no signatures.
            self._resolver.set_flags(dns.flags.RD | dns.flags.AD)
        self._kept: Kept[_Answer | ResolveError] = Kept(CACHE_SIZE)
        self.ask(open_socket, servers)
        self._asking: dict[tuple[str, str], _Question] = {}

    def ask(self, open_socket: OpenSocket, servers: Sequence[str]) -> None:
        """Ask these servers from now on; what others said is forgotten."""
        self._backend = HandedBackend(open_socket)
        self._resolver.nameservers = list(servers)
        self._resolver.timeout = (self._resolver.lifetime or 0) / (
            TRIES * max(len(servers), 1)
        )
        self._resolver.cache = dns.resolver.LRUCache(CACHE_SIZE)
        self._kept.clear()

    async def mx(self, domain: str) -> tuple[MailExchanger, ...]:
        """Return the mail exchangers of a domain, the most preferred first.

        A domain without any is its own (RFC 5321 section 5.1); whether it has an
        address is another question.

        Raises:
            NullMx: the domain takes no mail.
            ResolveError: the domain does not exist, or nobody can say now.
        """
        answer = await self._ask(domain, "MX")
        records = cast("list[dns.rdtypes.ANY.MX.MX]", list(answer.rrset or ()))
        if not records:
            return (MailExchanger(0, domain),)
        # A "." beside others is a mistake; RFC 7505 section 3 speaks of one alone.
        named = sorted(
            MailExchanger(record.preference, _text(record.exchange))
            for record in records
            if record.exchange != dns.name.root
        )
        if not named:
            raise NullMx(domain)
        return tuple(named)

    async def addresses(self, name: str, family: Family) -> tuple[IPAddress, ...]:
        """Return the addresses of a host in one family; none if it has none.

        Raises:
            ResolveError: the name does not exist, or nobody can say now.
        """
        answer = await self._ask(name, _ADDRESS_RECORD[family])
        found = (ipaddress.ip_address(record.address) for record in answer.rrset or ())
        return tuple(a for a in found if not (a.is_unspecified or a.is_multicast))

    async def mx_is_secure(self, domain: str) -> bool:
        """Say whether DNSSEC vouches for the names of a domain's mail exchangers.

        Raises:
            ResolveError: the domain does not exist, or nobody can say now.
        """
        return self._vouched(await self._ask(domain, "MX"))

    async def tlsa(self, name: str, port: int, family: Family) -> TlsaFound:
        """Return the TLSA records of a server, as far as DNSSEC vouches for them.

        Where it does not for the server's address, they are not asked for: some name
        servers do not answer such a question (RFC 7672 section 2.2.2).

        Raises:
            ResolveError: nobody can say now; the server may have some.
        """
        address = await self._ask(name, _ADDRESS_RECORD[family])
        if not self._vouched(address):
            return TlsaFound()
        expanded = _text(address.canonical_name)
        for base in dict.fromkeys((expanded, name)):
            try:
                answer = await self._ask(f"_{port}._tcp.{base}", "TLSA")
            except ResolveError as error:
                if error.temporary:
                    raise
                continue
            if answer.rrset and self._vouched(answer):
                records = tuple(
                    Tlsa(each.usage, each.selector, each.mtype, each.cert)
                    for each in answer.rrset
                )
                return TlsaFound(records, base)
        return TlsaFound()

    def _vouched(self, answer: _Answer) -> bool:
        """Say whether DNSSEC vouches for an answer, by the word of one who is believed."""
        authentic = bool(answer.response.flags & dns.flags.AD)
        server = str(answer.nameserver or "")
        return authentic and self._believed is not None and self._believed(server)

    async def reverse_names(self, address: IPAddress) -> tuple[str, ...]:
        """Return what an address is called, true or not; none if it has no name.

        Raises:
            ResolveError: the pointer does not exist, or nobody can say now.
        """
        pointer = dns.reversename.from_address(str(address)).to_text()
        answer = await self._ask(pointer, "PTR")
        return tuple(_text(record.target) for record in answer.rrset or ())

    async def answer(self, question: Question) -> Answer:
        """Return what DNS says to a question of vnsmail/authentication. Never fails.

        The name may be anything: what a stranger wrote is asked for as it stands.
        """
        name = question.name.replace("\\", "\\\\")
        try:
            answer = await self._ask(name, question.record)
        except ResolveError as error:
            return Answer(exists=False, trouble=str(error) if error.temporary else "")
        records = list(answer.rrset or ())
        if question.record == "MX":
            records.sort(key=lambda record: record.preference)
        return Answer(tuple(map(_value, records)))

    async def verified_reverse_name(self, address: IPAddress) -> str | None:
        """Return the name of an address if the name has that address too.

        This is "iprev" of RFC 8601 section 2.7.3. Any failure means None: a name is a
        courtesy in a trace header, and no reason to keep a client waiting.
        """
        try:
            names = await self.reverse_names(address)
        except ResolveError:
            return None
        for name in names[:MAX_REVERSE_NAMES]:
            if not _HOST_NAME.fullmatch(name):
                continue
            try:
                if address in await self.addresses(name, Family(address.version)):
                    return name
            except ResolveError:
                continue
        return None

    async def _ask(self, name: str, record: str) -> _Answer:
        key = (name.lower(), record)
        kept = self._kept.find(key, time.time())
        if isinstance(kept, ResolveError):
            # One and the same error is raised again: it must not collect its ways.
            raise kept.with_traceback(None)
        if kept is not None:
            return kept
        while (question := self._asking.get(key)) is not None:
            await question.answered.wait()
            if question.failure is not None:
                raise question.failure
            if question.answer is not None:
                return question.answer
            # Whoever asked was cancelled; somebody else has to.
        question = self._asking[key] = _Question()
        try:
            question.answer = answer = await self._resolve(name, record)
            now = time.time()
            self._kept.keep(key, answer, answer.expiration, now)
        except ResolveError as error:
            question.failure = error
            raise
        else:
            return question.answer
        finally:
            del self._asking[key]
            question.answered.set()

    async def _resolve(self, name: str, record: str) -> _Answer:
        try:
            return await self._resolver.resolve(
                dns.name.from_text(name),
                record,
                raise_on_no_answer=False,
                search=False,
                backend=self._backend,
            )
        except dns.resolver.NXDOMAIN as error:
            problem = "the name does not exist"
            missing = ResolveError(name, record, problem, temporary=False)
            now = time.time()
            until = now + _lifetime(error)
            self._kept.keep((name.lower(), record), missing, until, now)
            raise missing from None
        except (dns.resolver.YXDOMAIN, dns.name.LabelTooLong, dns.name.NameTooLong):
            problem = "the name is too long"
            raise ResolveError(name, record, problem, temporary=False) from None
        except (dns.name.EmptyLabel, dns.name.BadEscape, dns.name.IDNAException):
            problem = "this is not a domain name"
            raise ResolveError(name, record, problem, temporary=False) from None
        except dns.resolver.LifetimeTimeout:
            problem = "no name server answered in time"
            raise ResolveError(name, record, problem, temporary=True) from None
        except dns.resolver.NoNameservers as error:
            problem = _complaint(error)
            raise ResolveError(name, record, problem, temporary=True) from None
        except dns.exception.DNSException as error:
            raise ResolveError(name, record, str(error), temporary=True) from None


def _lifetime(error: dns.resolver.NXDOMAIN) -> float:
    """Return the seconds for which a name does not exist (RFC 2308 section 5)."""
    responses: Mapping[dns.name.Name, dns.message.QueryMessage]
    responses = error.kwargs.get("responses") or {}
    return min((_negative(each.authority) for each in responses.values()), default=0.0)


def _negative(authority: Sequence[dns.rrset.RRset]) -> float:
    for rrset in authority:
        for record in rrset:
            if isinstance(record, dns.rdtypes.ANY.SOA.SOA):
                return float(min(rrset.ttl, record.minimum))
    return 0.0


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _value(record: dns.rdata.Rdata) -> str:
    """Return what a record says, as vnsmail/authentication wants it."""
    match record:
        case dns.rdtypes.txtbase.TXTBase():
            return b"".join(record.strings).decode("latin-1")
        case dns.rdtypes.mxbase.MXBase():
            return _text(record.exchange)
        case dns.rdtypes.nsbase.NSBase():
            return _text(record.target)
        case _:
            return str(record)


def _complaint(error: dns.resolver.NoNameservers) -> str:
    """Say in a few words what the last server answered."""
    errors = error.kwargs.get("errors") or []
    if not errors:
        return "there is no name server to ask"
    server, _, _, what, _ = errors[-1]
    return f"the name server {server.split(':', 1)[-1].split('@')[0]} says {what}"
