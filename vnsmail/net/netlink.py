"""A socket that tells the kernel many things at once, and asks it for whole tables.

One send carries as many messages as fit; the kernel performs them in their order and
acknowledges each. That is what makes a thousand virtual hosts a matter of seconds: a
round trip and a library's objects for each message cost more than the kernel's work.

Rules of this file: a socket belongs to the namespace of the thread that opened it, for
good, whoever uses it later; each answer is matched to its request by number; a dump that
the kernel says is not one moment's picture is asked for again.
"""

import errno
import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from vnsmail.net import messages, namespaces
from vnsmail.net.messages import ACK, DUMP, HEADER

AT_ONCE = 64
"""Messages a send; the acknowledgements of more might not fit the socket's buffer."""

_SEND_LIMIT = 32 * 1024  # bytes
_RECEIVE = 64 * 1024  # bytes; a dump comes in pieces of 32 KiB at most
_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _STRICT = 10, 11, 12
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_HAS_TEXT = 0x200  # NLM_F_ACK_TLVS
_CAPPED = 0x100  # NLM_F_CAPPED: only the header of the request comes back
_SIOCGIFINDEX = 0x8933
_PATIENCE = 5  # times a dump is repeated while the network changes under it


@dataclass(frozen=True, slots=True)
class Refusal:
    """The kernel's answer to a message that it did not perform."""

    errno: int
    reason: str


class Kernel:
    """A netlink socket in the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
        )
        self._numbers = itertools.count(1)
        self._left = memoryview(b"")
        try:
            self._socket.bind((0, 0))
            for option in (_CAP_ACK, _EXT_ACK, _STRICT):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> int:
        """Which network namespace this socket is in (namespaces.identity)."""
        return namespaces.identity(self._socket)

    def index(self, name: str) -> int:
        """Return the index of a link.

        Raises:
            OSError: ENODEV, there is none of that name.
        """
        request = struct.pack("16s24x", name.encode()[:15])
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, request)
        except OSError as error:
            reason = f"there is no link {name}"
            raise OSError(error.errno or errno.ENODEV, reason) from None
        index: int = struct.unpack_from("=16si", answer)[1]
        return index

    def change(self, requests: Sequence[bytes]) -> list[Refusal | None]:
        """Let the kernel perform messages; returns what it said to each.

        One that is refused keeps none of the others from being tried.
        """
        answers: list[Refusal | None] = []
        batch: list[bytes] = []
        size = 0
        for request in requests:
            if len(batch) == AT_ONCE or size + len(request) > _SEND_LIMIT:
                answers += self._exchange(batch)
                batch, size = [], 0
            batch.append(request)
            size += len(request)
        return answers + self._exchange(batch) if batch else answers

    def do(self, request: bytes) -> None:
        """Let the kernel perform one message.

        Raises:
            OSError: it refused.
        """
        (refusal,) = self.change([request])
        if refusal is not None:
            raise OSError(refusal.errno, refusal.reason or os.strerror(refusal.errno))

    def ask(self, request: bytes) -> memoryview:
        """Return the payload of the one message that answers a question.

        Raises:
            OSError: the kernel refused.
        """
        number = next(self._numbers)
        self._socket.send(_numbered(request, number, 0))
        for kind, _, payload in self._answers(number):
            if kind != messages.ERROR:
                return payload
            if refusal := _refusal(payload, 0):
                raise OSError(refusal.errno, os.strerror(refusal.errno))
        raise OSError(errno.EIO, "the kernel did not answer")

    def dump(self, kind: int, body: bytes) -> list[memoryview]:
        """Return the payloads of all messages of a table.

        Raises:
            OSError: the kernel refused; EOPNOTSUPP if it has no such table.
        """
        request = messages.message(kind, DUMP, body)
        found, whole = self._dump_once(request)
        for _ in range(_PATIENCE):
            if whole:
                break
            found, whole = self._dump_once(request)
        # What changes under our eyes will be looked at again by whoever planned on it.
        return found

    def _dump_once(self, request: bytes) -> tuple[list[memoryview], bool]:
        number = next(self._numbers)
        self._socket.send(_numbered(request, number, 0))
        found: list[memoryview] = []
        whole = True
        for kind, flags, payload in self._answers(number):
            whole = whole and not flags & _INTERRUPTED
            if kind == messages.DONE:
                break
            if kind == messages.ERROR:
                refusal = _refusal(payload, flags)
                if refusal is not None:
                    raise OSError(refusal.errno, os.strerror(refusal.errno))
                break
            found.append(payload)
        return found, whole

    def _exchange(self, batch: Sequence[bytes]) -> list[Refusal | None]:
        first = next(self._numbers)
        numbers = [first, *itertools.islice(self._numbers, len(batch) - 1)]
        self._socket.send(
            b"".join(
                _numbered(request, number, ACK)
                for request, number in zip(batch, numbers, strict=True)
            )
        )
        answers: list[Refusal | None] = []
        while len(answers) < len(batch):
            for kind, flags, payload in self._answers(first + len(answers)):
                if kind == messages.ERROR:
                    answers.append(_refusal(payload, flags))
                    break
        return answers

    def _answers(self, number: int) -> Iterator[tuple[int, int, memoryview]]:
        """Return type, flags and payload of what answers a request, as it comes."""
        while True:
            while self._left:
                length, kind, flags, sequence, _ = HEADER.unpack_from(self._left)
                payload = self._left[HEADER.size : length]
                self._left = self._left[(length + 3) & ~3 :]
                if sequence == number:
                    yield kind, flags, payload
            self._left = memoryview(self._socket.recv(_RECEIVE))


def _numbered(request: bytes, number: int, flags: int) -> bytes:
    length, kind, own, _, _ = HEADER.unpack_from(request)
    return HEADER.pack(length, kind, own | flags, number, 0) + request[HEADER.size :]


def _refusal(payload: memoryview, flags: int) -> Refusal | None:
    """Return what an error message says; None if it is no error."""
    number = -int(struct.unpack_from("=i", payload)[0])
    if number == 0:
        return None
    reason = ""
    if flags & _HAS_TEXT:
        (echoed,) = struct.unpack_from("=I", payload, 4)
        start = 4 + (HEADER.size if flags & _CAPPED else echoed)
        reason = messages.text_in(messages.attributes(payload, start), 1)
    return Refusal(number, reason)
