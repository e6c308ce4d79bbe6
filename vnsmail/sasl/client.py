"""SASL (RFC 4422), the client's side: who proves that it knows a password. Pure.

Rules of this file: an exchange is over when ``respond`` gives None; whether the server
has proven something too is asked of ``satisfied`` when it says that all is well. A
password is said as it is only where ``plain`` allows it.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from scramp import ScramClient, ScramException

from vnsmail.sasl import prepare
from vnsmail.sasl.prepare import Unprepared

MOST_ITERATIONS = 600_000
"""Of SCRAM. What a server asks for is computed in the middle of other work; this many
take some 0.2 s, and OWASP asks for no more."""

_ITERATIONS = re.compile(r"(?:^|,)i=([0-9]{1,10})(?:,|$)")


class Exchange(Protocol):
    """One attempt to sign in."""

    @property
    def mechanism(self) -> str:
        """Return its name in the IANA registry."""
        ...

    @property
    def satisfied(self) -> bool:
        """Whether the server may say that all is well."""
        ...

    def first(self) -> bytes | None:
        """Return what is said along with AUTH; None: the server begins."""
        ...

    def respond(self, challenge: bytes) -> bytes | None:
        """Return the answer to a challenge; None: there is none, it is called off."""
        ...


@dataclass(frozen=True, slots=True)
class Login:
    """Name and password at one server."""

    user: str
    password: str = field(repr=False)

    @property
    def key(self) -> str:
        """Return what tells it from others in this process, and gives nothing away."""
        return f"{hash((self.user, self.password)):x}"

    def begin(self, offered: Collection[str], *, plain: bool) -> Exchange | None:
        """Return an exchange of the best mechanism; None if there is none.

        Args:
            offered: what the server has, in upper case.
            plain: the server has proven who it is, and may see the password.
        """
        for name, make in _MECHANISMS.items():
            if name not in offered or (name in _TELLS_THE_PASSWORD and not plain):
                continue
            try:
                return make(self.user, self.password)
            except ScramException:
                continue  # a name or password that SASLprep forbids
        return None


class Scram:
    """SCRAM-SHA-256 (RFC 5802, RFC 7677): neither side sees what the other knows."""

    mechanism = "SCRAM-SHA-256"

    def __init__(self, user: str, password: str, nonce: str | None = None) -> None:
        """``nonce`` is for tests only."""
        self._client = ScramClient(
            [self.mechanism], _prepared(user), password, c_nonce=nonce
        )
        self._step = self._final
        self.satisfied = False

    def first(self) -> bytes | None:
        text: str = self._client.get_client_first()
        return text.encode()

    def respond(self, challenge: bytes) -> bytes | None:
        try:
            return self._step(challenge.decode())
        except (ScramException, UnicodeDecodeError, ValueError):
            return None

    def _final(self, challenge: str) -> bytes | None:
        asked = _ITERATIONS.search(challenge)
        if asked is None or not 0 < int(asked[1]) <= MOST_ITERATIONS:
            return None
        self._client.set_server_first(challenge)
        text: str = self._client.get_client_final()
        self._step = self._end
        return text.encode()

    def _end(self, challenge: str) -> bytes | None:
        if self.satisfied:
            return None
        self._client.set_server_final(challenge)
        self.satisfied = True
        return b""


class Plain:
    """PLAIN (RFC 4616): name and password, as they are."""

    mechanism = "PLAIN"
    satisfied = True

    def __init__(self, user: str, password: str) -> None:
        parts = ("", _prepared(user), _prepared(password))
        self._response = "\0".join(parts).encode()

    def first(self) -> bytes | None:
        return self._response

    def respond(self, challenge: bytes) -> bytes | None:
        # Some servers ask for what came along with AUTH; there is nothing after that.
        response, self._response = self._response, b""
        return response or None


class LoginMechanism:
    """LOGIN (draft-murchison-sasl-login-00): the same, one after the other."""

    mechanism = "LOGIN"

    def __init__(self, user: str, password: str) -> None:
        self._left = [user.encode(), password.encode()]

    @property
    def satisfied(self) -> bool:
        return not self._left

    def first(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes | None:
        return self._left.pop(0) if self._left else None


_MECHANISMS: Mapping[str, Callable[[str, str], Exchange]] = {
    "SCRAM-SHA-256": Scram,
    "PLAIN": Plain,
    "LOGIN": LoginMechanism,
}
"""The best first."""

_TELLS_THE_PASSWORD = {"PLAIN", "LOGIN"}


def _prepared(text: str) -> str:
    """Return a text as RFC 4013 wants it; as it is where that cannot be."""
    try:
        return prepare.password(text)
    except Unprepared:
        return text
