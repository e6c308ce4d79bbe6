"""The server's side of SASL mechanisms, as responses in, steps out (RFC 4422). Pure.

    exchange = begin("PLAIN", keys_of)
    step = exchange.respond(initial)        # None where the client gave none
    while isinstance(step, Ask):
        step = exchange.respond(...)        # what the client says to step.data

A mechanism that sends the password ends in ``Check``: whoever has the hashes looks. One
that proves it ends in ``Proven``.

Rules of this file: it knows nobody; what it is told to look up it looks up without
hearing whether that is somebody. The authorization identity must be empty or the name
itself: nobody acts for another. What is malformed is ``Malformed``, whatever it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from scramp import ScramException, ScramMechanism

from vnsmail.sasl import prepare
from vnsmail.sasl.passwords import ScramKeys
from vnsmail.sasl.prepare import Unprepared

KeysOf: TypeAlias = Callable[[str], ScramKeys]
"""Returns the keys of a name, and such that fit nobody for a name that nobody has."""

MAX_RESPONSE = 4096
"""Octets; a name and a password of the longest, in UTF-8, are as long."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Say this to the client, and go on with its response."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Check:
    """Who the client says it is, and the password that has to be checked."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proven:
    """The client proved that it is this one."""

    name: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The client proved nothing."""

    name: str = ""
    """Who it says it is, as far as that is known."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """The response is none of this mechanism."""


Step: TypeAlias = Ask | Check | Proven | Failed | Malformed


class Exchange(Protocol):
    """One exchange of one mechanism."""

    def respond(self, response: bytes | None) -> Step:
        """Take the client's response; None for one that begins without a response.

        After anything but ``Ask`` the exchange is over.
        """
        ...


class Plain:
    """PLAIN: authorization identity, name and password in one response (RFC 4616)."""

    def respond(self, response: bytes | None) -> Step:
        if response is None:
            return Ask(b"")
        parts = _text(response).split("\0")
        if len(parts) != 3:
            return Malformed()
        acts_as, name, password = parts
        return _check(name, password, acts_as)


class Login:
    """LOGIN: name and password, one after the other (draft-murchison-sasl-login-00)."""

    def __init__(self) -> None:
        self._name: str | None = None

    def respond(self, response: bytes | None) -> Step:
        if response is None:
            return Ask(b"Username:")
        text = _text(response)
        if "\0" in text or not text:
            return Malformed()
        if self._name is None:
            self._name = text
            return Ask(b"Password:")
        return _check(self._name, text)


class Scram:
    """SCRAM-SHA-256: both sides prove that they know the password (RFC 5802, 7677).

    There is no channel binding: clients that find -PLUS announced insist on bindings
    that Python's ssl module cannot give (tls-exporter, and tls-unique with TLS 1.3).
    """

    def __init__(self, keys_of: KeysOf, nonce: str | None = None) -> None:
        """``nonce`` is for tests only."""
        self._name = ""
        self._keys_of = keys_of
        self._server = ScramMechanism("SCRAM-SHA-256").make_server(
            self._look_up, s_nonce=nonce
        )
        self._respond: Callable[[bytes], Step] = self._first

    def respond(self, response: bytes | None) -> Step:
        if response is None:
            return Ask(b"")
        return self._respond(response)

    def _first(self, response: bytes) -> Step:
        try:
            self._server.set_client_first(_text(response))
            answer = self._server.get_server_first()
        except ScramException:
            return Malformed()
        self._respond = self._final
        return Ask(answer.encode())

    def _final(self, response: bytes) -> Step:
        try:
            self._server.set_client_final(_text(response))
            answer = self._server.get_server_final()
        except ScramException:
            return Failed(self._name)
        self._respond = self._end
        return Ask(answer.encode())

    def _end(self, response: bytes) -> Step:
        # The server's proof was the last word; RFC 4954 section 4 has it said as a
        # challenge, which the client answers with nothing.
        return Malformed() if response else Proven(self._name)

    def _look_up(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        try:
            self._name = prepare.name(name)
        except Unprepared as error:
            raise ScramException(str(error)) from None
        keys = self._keys_of(self._name)
        return keys.salt, keys.stored_key, keys.server_key, keys.iterations


_WITHOUT_KEYS: Mapping[str, Callable[[], Exchange]] = {"PLAIN": Plain, "LOGIN": Login}

MECHANISMS = ("SCRAM-SHA-256", "PLAIN", "LOGIN")
"""The best first, by the names of the IANA registry."""


def begin(mechanism: str, keys_of: KeysOf) -> Exchange | None:
    """Return a new exchange; None if there is no such mechanism."""
    if mechanism == "SCRAM-SHA-256":
        return Scram(keys_of)
    maker = _WITHOUT_KEYS.get(mechanism)
    return maker() if maker else None


def _check(name: str, password: str, acts_as: str = "") -> Step:
    if not name or not password:
        return Malformed()
    try:
        prepared = prepare.name(name)
        if acts_as and prepare.name(acts_as) != prepared:
            return Failed(prepared)
    except Unprepared:
        return Malformed()
    return Check(prepared, password)


def _text(response: bytes) -> str:
    """Return a response as text; what is too long or no UTF-8 becomes what is malformed."""
    if len(response) > MAX_RESPONSE:
        return ""
    try:
        return response.decode()
    except UnicodeDecodeError:
        return ""
