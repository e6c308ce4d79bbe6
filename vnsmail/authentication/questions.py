"""DNS questions as values, so that who decides never waits for a network. Pure.

An evaluation is a generator: it yields a Question, is sent the Answer, and returns its
verdict. Whoever drives it asks the name server, or a table of a test.

Rules of this file: values only. Text of TXT records is Latin-1, so each character is one
octet; names are in lower case without the dot at the end.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

Record: TypeAlias = Literal["A", "AAAA", "MX", "PTR", "TXT"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of DNS."""

    name: str
    record: Record


@dataclass(frozen=True, slots=True)
class Answer:
    """What DNS says: values, that there are none, or that nobody can say now."""

    values: tuple[str, ...] = ()
    """Addresses, names (mail exchangers by preference), or texts."""
    exists: bool = True
    """Whether there is such a name, with values of this kind or not (RFC 8020)."""
    trouble: str = ""
    """Why nobody can say now; empty where DNS answered."""


Asking: TypeAlias = Generator[Question, Answer, T]


def drive(asking: Asking[T], answer: Callable[[Question], Answer]) -> T:
    """Return what an evaluation comes to, with answers that are at hand."""
    try:
        question = next(asking)
        while True:
            question = asking.send(answer(question))
    except StopIteration as ended:
        value: T = ended.value
        return value
