"""How many there may be at a time, where the number can change."""

import asyncio
from collections import deque


class Room:
    """A semaphore whose size can be changed while it is in use.

    Args:
        most: how many may have room at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0
        """Who has room now; more than ``most`` only after that became less."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def most(self) -> int:
        """How many may have room at a time."""
        return self._most

    @most.setter
    def most(self, number: int) -> None:
        self._most = number
        self._wake()

    def locked(self) -> bool:
        """Say whether whoever comes now has to wait."""
        return self.taken >= self._most or bool(self._waiting)

    async def acquire(self) -> None:
        """Wait for room, in the order of asking, and take it."""
        if not self.locked():
            self.taken += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()  # it was ours already
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def release(self) -> None:
        """Give room back."""
        self.taken -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.taken < self._most:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self.taken += 1
                waiter.set_result(None)
