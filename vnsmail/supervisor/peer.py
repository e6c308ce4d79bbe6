"""Asking another process over a channel: questions with ids, answers matched to them.

Rules of this file: every question is answered, or fails with an error that has words;
when the other end goes, all that wait fail at once with ChannelClosed. The other end may
have been taken over: what it says wrongly ends this conversation, and nothing else.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vnsmail.channel import Channel, ChannelClosed, close_all
from vnsmail.errors import VnsmailError
from vnsmail.log import logger

log = logger("supervisor")


class NoAnswer(VnsmailError):
    """The other end is there, and says nothing."""

    retry_helps = True

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"a process of vnsmail did not answer within {self.seconds:g} s"


class HasId(Protocol):
    """A message that carries the number of its question."""

    @property
    def id(self) -> int: ...


AnswerT = TypeVar("AnswerT", bound=HasId)


class Peer(Generic[AnswerT]):
    """The asking end of a channel whose other end answers in any order."""

    def __init__(
        self,
        channel: Channel,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], AnswerT],
    ) -> None:
        self._channel = channel
        self._encode = encode
        self._decode = decode
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[AnswerT]] = {}
        self._closed = False

    async def listen(self) -> None:
        """Receive answers until the other end goes, or says what means nothing.

        Run it as a task beside ``ask``.
        """
        try:
            while True:
                payload, fds = await self._channel.receive()
                close_all(fds)
                answer = self._decode(payload)
                waiter = self._waiting.pop(answer.id, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(answer)
        except ChannelClosed:
            return
        except Exception as error:  # noqa: BLE001  decoders have many ways to say no
            log.warning("peer.misspoke", reason=str(error))
        finally:
            self.close()

    async def ask(
        self,
        question: Callable[[int], HasId],
        fds: Sequence[int] = (),
        *,
        seconds: float = 60.0,
    ) -> AnswerT:
        """Send ``question(id)`` with descriptors, and return the answer to it.

        Raises:
            ChannelClosed: the other end is gone.
            NoAnswer: it said nothing within ``seconds``.
            MessageTooLong: the question does not fit a message.
        """
        if self._closed:
            raise ChannelClosed
        self._last_id += 1
        number = self._last_id
        waiter: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            async with asyncio.timeout(seconds):
                await self._channel.send(self._encode(question(number)), fds)
                return await waiter
        except TimeoutError:
            raise NoAnswer(seconds) from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Give up: whoever waits is told, and nobody can ask any more."""
        self._closed = True
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(ChannelClosed())
        self._waiting.clear()
        self._channel.close()
