"""What DNS said, for as long as it said, under the question as it was asked. Pure.

The resolver below keeps answers too, but finding one there takes it longer than a whole
dialogue with a server: names are taken apart, and what does not exist is found out
anew by an exception with a text.

Rules of this file: the clock is the caller's; what is out of date is never returned; of
too many, those go first that nobody has asked for longest.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

LONGEST = 300.0
"""Seconds at most: what the resolver below keeps longer it is asked for again."""


class Kept(Generic[T]):
    """Answers by question.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[tuple[str, str], tuple[float, T]] = OrderedDict()

    def find(self, question: tuple[str, str], now: float) -> T | None:
        """Return what is kept; None if it is not, or too old.

        Args:
            question: name in lower case, and type of record.
            now: seconds on the clock that ``keep`` was told of.
        """
        found = self._found.get(question)
        if found is None:
            return None
        if found[0] <= now:
            del self._found[question]
            return None
        self._found.move_to_end(question)
        return found[1]

    def keep(
        self, question: tuple[str, str], answer: T, until: float, now: float
    ) -> None:
        """Keep an answer until then, and no longer than LONGEST."""
        until = min(until, now + LONGEST)
        if until <= now:
            return
        self._found[question] = (until, answer)
        self._found.move_to_end(question)
        if len(self._found) > self._most:
            self._found.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing of what was said so far."""
        self._found.clear()
