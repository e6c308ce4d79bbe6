"""How many sessions may be open at once. Pure.

Rules of this file: it only counts; what was admitted must leave.
"""

from typing import Generic, TypeVar

from vnsmail.smtp.replies import Reply

MAX_SESSIONS = 500
"""Sessions of one owner. Each may hold some 700 KiB of a large body in memory, and one
worker serves many owners, of whom few are attacked at a time."""

MAX_SESSIONS_PER_PEER = 50
"""Sessions from one address; Postfix has the same (smtpd_client_connection_count_limit).
One client can then not take the place of all others."""

TOO_MANY = Reply(421, ("too many connections, try again later",), "4.7.0")
TOO_MANY_OF_YOURS = Reply(421, ("too many connections from your address",), "4.7.0")

Peer = TypeVar("Peer")


class Admission(Generic[Peer]):
    """Counts the sessions of one owner, and those of each peer among them."""

    def __init__(self) -> None:
        self._peers: dict[Peer, int] = {}
        self.sessions = 0
        """Sessions that were admitted and have not left."""

    def admit(self, peer: Peer, most: int, most_of_peer: int) -> Reply | None:
        """Count one session more; or return the reply that turns it away."""
        if self.sessions >= most:
            return TOO_MANY
        of_peer = self._peers.get(peer, 0)
        if of_peer >= most_of_peer:
            return TOO_MANY_OF_YOURS
        self._peers[peer] = of_peer + 1
        self.sessions += 1
        return None

    def leave(self, peer: Peer) -> None:
        """Count a session less that was admitted."""
        left = self._peers.pop(peer) - 1
        if left:
            self._peers[peer] = left
        self.sessions -= 1
