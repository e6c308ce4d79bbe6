"""How much of a worker's memory each of its owners may use for mail on its way. Pure.

An owner alone has it all; of many busy ones each has its part, and always enough to
go on. What is beyond its part stays on disk until its turn comes.
"""

MESSAGES = 8000
"""Messages in memory of all owners of a worker, ready or under way."""

LEAST_MESSAGES = 20

MOST_MESSAGES = 1000
"""Of one owner, however few others there are."""

BYTES = 256 * 1024 * 1024
"""Bytes of bodies in memory of all owners."""

LEAST_BYTES = 512 * 1024
MOST_BYTES = 32 * 1024 * 1024


class Shares:
    """Shared by the owners of one worker."""

    def __init__(self, messages: int = MESSAGES, octets: int = BYTES) -> None:
        self._messages = messages
        self._octets = octets
        self._active: set[str] = set()

    def busy(self, owner: str) -> None:
        """An owner has mail on its way."""
        self._active.add(owner)

    def idle(self, owner: str) -> None:
        """An owner has none any more."""
        self._active.discard(owner)

    @property
    def messages(self) -> int:
        """Messages that an owner may have in memory."""
        part = self._messages // max(len(self._active), 1)
        return min(max(part, LEAST_MESSAGES), MOST_MESSAGES)

    @property
    def octets(self) -> int:
        """Bytes of bodies that an owner may have in memory."""
        part = self._octets // max(len(self._active), 1)
        return min(max(part, LEAST_BYTES), MOST_BYTES)
