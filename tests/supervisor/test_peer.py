import asyncio
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.channel import MAX_LARGE, Channel, ChannelClosed, MessageTooLong, pair
from vnsmail.supervisor.peer import NoAnswer, Peer


class Question(msgspec.Struct, frozen=True, tag=True):
    id: int
    text: str = ""


class Answer(msgspec.Struct, frozen=True, tag=True):
    id: int
    text: str = ""


decode_question = msgspec.msgpack.Decoder(Question).decode


class Conversation:
    """A peer that listens, and the other end of its channel."""

    def __init__(self):
        ours, theirs = pair()
        self.other = Channel(theirs, large=True)
        self.peer: Peer[Answer] = Peer(
            Channel(ours, large=True),
            msgspec.msgpack.encode,
            msgspec.msgpack.Decoder(Answer).decode,
        )
        self.listening = asyncio.ensure_future(self.peer.listen())

    def ask(self, text="", fds=(), **options):
        return asyncio.ensure_future(
            self.peer.ask(lambda number: Question(number, text), fds, **options)
        )

    async def hear(self):
        payload, fds = await self.other.receive()
        return decode_question(payload), fds

    async def say(self, number, text=""):
        await self.other.send(msgspec.msgpack.encode(Answer(number, text)))

    async def end(self):
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)
        self.other.close()


@pytest.fixture
async def conversation():
    conversation = Conversation()
    yield conversation
    await conversation.end()


async def turn():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_answers_in_any_order(conversation):
    """Each question gets its own answer, whichever comes first."""
    one, two = conversation.ask("one"), conversation.ask("two")
    (first, _), (second, _) = await conversation.hear(), await conversation.hear()
    await conversation.say(second.id, "to two")
    await conversation.say(first.id, "to one")

    assert ("to one", "to two") == ((await one).text, (await two).text)


async def test_descriptors_go_along(conversation):
    """A question can carry descriptors; those of an answer are closed."""
    reader, writer = os.pipe()
    asking = conversation.ask(fds=(reader,))
    question, fds = await conversation.hear()
    assert 1 == len(fds)
    payload = msgspec.msgpack.encode(Answer(question.id))
    await conversation.other.send(payload, fds)
    await asking
    for fd in (*fds, reader):
        os.close(fd)

    with pytest.raises(BrokenPipeError):  # nobody has the reading end any more
        os.write(writer, b"x")
    os.close(writer)


async def test_the_other_end_goes(conversation):
    """All who wait are told, and nobody can ask any more."""
    waiting = [conversation.ask() for _ in range(3)]
    await turn()
    conversation.other.close()
    for asking in waiting:
        with pytest.raises(ChannelClosed):
            await asking
    await conversation.listening

    with pytest.raises(ChannelClosed):
        await conversation.ask()


async def test_no_answer(conversation):
    """Silence has words, and a late answer finds nobody."""
    asking = conversation.ask(seconds=0.01)
    question, _ = await conversation.hear()
    with pytest.raises(NoAnswer, match=r"did not answer within 0\.01 s"):
        await asking
    await conversation.say(question.id)
    asking = conversation.ask()
    question, _ = await conversation.hear()
    await conversation.say(question.id, "in time")

    assert "in time" == (await asking).text


async def test_an_answer_to_nothing(conversation):
    """It is passed over."""
    await conversation.say(99)
    asking = conversation.ask()
    question, _ = await conversation.hear()
    await conversation.say(question.id)

    assert question.id == (await asking).id


async def test_who_asked_is_gone(conversation):
    """The answer to one who was cancelled is nobody else's."""
    gone, waits = conversation.ask(), conversation.ask()
    first, _ = await conversation.hear()
    second, _ = await conversation.hear()
    gone.cancel()
    await turn()
    await conversation.say(first.id, "to nobody")
    await conversation.say(second.id, "yours")

    assert "yours" == (await waits).text


@pytest.mark.parametrize("size", [200_000, 1_000_000])
async def test_large_ones(conversation, size):
    """Questions and answers may be larger than a packet."""
    asking = conversation.ask("q" * size)
    question, _ = await conversation.hear()
    await conversation.say(question.id, "a" * size)

    assert "q" * size == question.text
    assert "a" * size == (await asking).text


async def test_too_large(conversation):
    """A question that fits no message fails alone."""
    with pytest.raises(MessageTooLong):
        await conversation.ask("q" * MAX_LARGE)
    asking = conversation.ask()
    question, _ = await conversation.hear()
    await conversation.say(question.id)
    await asking


@given(st.binary(min_size=1, max_size=100))
async def test_nonsense_ends_the_conversation_only(data):
    """A process that was taken over can say what it likes: it is not heard further."""
    conversation = Conversation()
    waiting = conversation.ask()
    await turn()
    await conversation.other.send(data)
    await turn()
    if conversation.listening.done():
        conversation.listening.result()
        with pytest.raises(ChannelClosed):
            await waiting
    waiting.cancel()
    await conversation.end()


async def test_more_than_fits(conversation):
    """A packet that was cut off ends the conversation too."""
    waiting = conversation.ask()
    await turn()
    conversation.other._socket.send(b"x" * 150_000)
    with pytest.raises(ChannelClosed):
        await waiting
    await conversation.listening


async def test_closed(conversation):
    """Closing tells whoever waits, and may be done twice."""
    waiting = conversation.ask()
    await turn()
    conversation.listening.cancel()
    with pytest.raises(ChannelClosed):
        await waiting
    conversation.peer.close()
