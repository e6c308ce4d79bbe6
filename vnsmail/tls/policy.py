"""How a connection to a remote is protected: levels, and the steps they come to. Pure.

A step is one way to speak to a server. The steps of a destination are tried in order, each
over a connection of its own; after the last there is no other. So what may go in plain
has a step that says so, and what may not has none.

Rules of this file: what DANE or MTA-STS ask for is only ever more than the level asks for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from vnsmail.tls.dane import Tlsa
from vnsmail.tls.sts import Mode, Policy


class Level(StrEnum):
    """What the settings want of a destination."""

    NONE = "none"
    """No TLS, even where it is offered."""
    MAY = "may"
    """TLS where it is offered (RFC 7435); nobody has to prove who they are."""
    ENCRYPT = "encrypt"
    """TLS, or the mail waits."""
    VERIFY = "verify"
    """And a certificate of a trusted authority for the name of the mail exchanger."""
    SECURE = "secure"
    """And the certificate is for the destination's own domain or a name in it: the name
    of an exchanger is believed of nobody, as DNS can be forged."""


class Check(StrEnum):
    """What a server has to show."""

    PLAIN = "plain"
    ANY = "any"
    NAME = "name"
    DANE = "dane"


@dataclass(frozen=True, slots=True)
class Step:
    """One way to speak to a server."""

    check: Check
    required: bool = True
    """Without STARTTLS the server gets no mail in this step."""
    names: tuple[str, ...] = ()
    """The certificate is to be for one of these; ``.name`` is any name below it."""
    tlsa: tuple[Tlsa, ...] = ()
    base: str = ""
    """The name that the TLSA records were found for, which is asked for (RFC 7672 8.1)."""
    by: str = ""
    """What wants it so: ``dane``, ``mta-sts``, ``settings``; empty: nobody."""


@dataclass(frozen=True, slots=True)
class HopTls:
    """How one server is to be spoken to."""

    steps: tuple[Step, ...] = (Step(Check.PLAIN, required=False),)
    key: str = field(default="", compare=False)
    """Connections that were made by other rules are of no use."""

    @property
    def may_be_plain(self) -> bool:
        """Whether mail may go unencrypted."""
        return any(not step.required for step in self.steps)


NO_TLS = HopTls()


def by_level(level: Level, domain: str, exchanger: str, *, plain_after: bool) -> HopTls:
    """Return the steps of a level.

    Args:
        level: what the settings say.
        domain: of the recipients.
        exchanger: name of the server.
        plain_after: at MAY, a server whose TLS fails is asked again in plain.
    """
    match level:
        case Level.NONE:
            steps: tuple[Step, ...] = (Step(Check.PLAIN, required=False),)
        case Level.MAY:
            steps = _may(plain_after=plain_after)
        case Level.ENCRYPT:
            steps = (Step(Check.ANY, by="settings"),)
        case Level.VERIFY:
            steps = (Step(Check.NAME, names=(exchanger,), by="settings"),)
        case Level.SECURE:
            names = (domain, f".{domain}")
            steps = (Step(Check.NAME, names=names, by="settings"),)
        case _:
            assert_never(level)
    return _keyed(steps)


def _may(*, plain_after: bool) -> tuple[Step, ...]:
    first = Step(Check.ANY, required=False)
    return (first, Step(Check.PLAIN, required=False)) if plain_after else (first,)


def by_dane(records: Sequence[Tlsa], base: str, exchanger: str, domain: str) -> HopTls:
    """Return the steps for a server with TLSA records (RFC 7672 section 2.2).

    If no record can be used, it is TLS all the same, with nobody to be proven.
    """
    usable = tuple(each for each in records if each.usable)
    if not usable:
        return _keyed((Step(Check.ANY, by="dane", base=base),))
    names = tuple(dict.fromkeys((base, exchanger, domain)))
    return _keyed((Step(Check.DANE, names=names, tlsa=usable, base=base, by="dane"),))


def by_sts(policy: Policy, exchanger: str, otherwise: HopTls) -> HopTls | None:
    """Return the steps that an MTA-STS policy wants; None: the server gets no mail.

    A policy that is tested (RFC 8461 section 5) is tried first, and what fails is told
    and goes on as if there were none.
    """
    if policy.mode is Mode.NONE:
        return otherwise
    match = policy.matches(exchanger)
    if policy.mode is Mode.ENFORCE and not match:
        return None
    if not match:
        return otherwise
    strict = Step(Check.NAME, names=(exchanger,), by="mta-sts")
    if policy.mode is Mode.ENFORCE:
        return _keyed((strict,))
    return _keyed((strict, *otherwise.steps))


def proven(tls: HopTls) -> HopTls | None:
    """Return the steps in which a server proves who it is; None if there are none.

    What is sent with REQUIRETLS goes no other way (RFC 8689 section 4.2.1).
    """
    steps = tuple(s for s in tls.steps if s.check in {Check.NAME, Check.DANE})
    return _keyed(steps) if steps else None


def _keyed(steps: Iterable[Step]) -> HopTls:
    steps = tuple(steps)
    parts = (
        f"{s.check}{'!' if s.required else ''}{','.join(s.names)}"
        f"{','.join(str(t) for t in s.tlsa)}{s.by}"
        for s in steps
    )
    return HopTls(steps, "|".join(parts))
