"""What the dialogues cannot show: the methods, and when they may be called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.helpers import CONFIG, GREETING, Driver, cut, in_bytes
from vnsmail.smtp.replies import MAX_REPLY_LINE, Reply
from vnsmail.smtp.server_session import (
    BodyReceived,
    Connected,
    DataRequested,
    MailRequested,
    MessageReceived,
    RecipientRequested,
    ServerConfig,
    ServerSession,
    SessionEnded,
    TransactionAborted,
)

HELO = b"HELO b.example\r\n"
ENVELOPE = HELO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<x@alpha.example>\r\n"
LATER = Reply(451, ("later",), "4.3.0")


def greeted():
    session = ServerSession(CONFIG)
    assert Connected() == session.next_event()
    session.accept()
    session.data_to_send()
    return session


def at(question, data):
    """Return a session in which this question is open, and everything was accepted."""
    session = greeted()
    session.receive_data(data)
    while not isinstance(event := session.next_event(), question):
        if not isinstance(event, BodyReceived):
            session.accept()
    session.data_to_send()
    return session


# Questions ---------------------------------------------------------------------------


def test_nothing_is_read_while_a_question_is_open():
    """What is pipelined behind a question waits for its answer."""
    session = greeted()
    session.receive_data(ENVELOPE + b"NOOP\r\n")

    assert isinstance(session.next_event(), MailRequested)
    assert session.next_event() is None
    assert session.data_to_send() == b"250 mx.alpha.example\r\n"
    assert len(b"RCPT TO:<x@alpha.example>\r\nNOOP\r\n") == session.buffered
    session.receive_data(b"RS")
    assert session.next_event() is None
    session.accept()
    assert isinstance(session.next_event(), RecipientRequested)
    session.accept()
    assert len(b"RS") == session.buffered
    assert (
        session.data_to_send()
        == b"250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n250 2.0.0 ok\r\n"
    )


def test_answers_with_text():
    """A text or code given replaces the standard one."""
    session = greeted()
    session.receive_data(ENVELOPE + b"DATA\r\n")
    session.next_event()
    session.accept("nice sender")
    session.next_event()
    session.accept("will forward", "2.1.9")
    session.next_event()
    session.accept("go", "2.0.0")
    session.receive_data(b".\r\n")
    session.next_event()
    session.accept("accepted as 01ABC")
    session.receive_data(b"MAIL FROM:<>\r\n")
    session.next_event()
    session.accept(enhanced="2.0.0")

    assert session.data_to_send().splitlines() == [
        b"250 mx.alpha.example",
        b"250 2.1.0 nice sender",
        b"250 2.1.9 will forward",
        b"354 go",
        b"250 2.0.0 accepted as 01ABC",
        b"250 2.0.0 ok",
    ]


def test_greeting_with_text():
    """The greeting begins with the name, whatever is said behind it."""
    session = ServerSession(CONFIG)
    session.next_event()
    session.accept("hello there")

    assert session.data_to_send() == b"220 mx.alpha.example ESMTP hello there\r\n"


def test_answer_without_question():
    """An answer when nothing was asked is a fault of the caller."""
    session = greeted()
    with pytest.raises(RuntimeError, match="no question"):
        session.accept()
    with pytest.raises(RuntimeError, match="no question"):
        session.reject(LATER)
    session.receive_data(ENVELOPE)
    with pytest.raises(RuntimeError, match="no question"):
        session.accept()  # not told yet

    assert isinstance(session.next_event(), MailRequested)


@pytest.mark.parametrize("code", [220, 250, 354])
def test_refusal_that_is_none(code):
    """A refusal is 4yz or 5yz; the question stays open otherwise."""
    session = at(MailRequested, ENVELOPE)
    with pytest.raises(ValueError, match=f"{code} is not a refusal"):
        session.reject(Reply(code, ("ok",)))
    session.reject(LATER)

    assert b"451 4.3.0 later\r\n" in session.data_to_send()


# The greeting ------------------------------------------------------------------------


@pytest.mark.parametrize("refused", [False, True])
def test_talking_before_the_greeting(refused):
    """A client that does not wait for the greeting is turned away, and not heard."""
    session = ServerSession(CONFIG)
    session.receive_data(ENVELOPE)
    assert Connected() == session.next_event()
    if refused:
        session.reject(Reply(554, ("no",), "5.7.1"))
    else:
        session.accept()
    reply = session.data_to_send()

    assert reply == (
        b"554 5.7.1 no\r\n"
        if refused
        else b"554 5.5.1 you talked before the greeting\r\n"
    )
    assert SessionEnded(clean=False) == session.next_event()
    assert session.next_event() is None
    assert session.closing
    assert session.buffered == 0


def test_gone_before_the_greeting():
    """A client that closes at once is no early talker; it gets its greeting."""
    driver = Driver()

    assert driver.sent() == GREETING
    assert driver.eof() == b""
    assert driver.told == ["connected", "broken off"]


# Ends --------------------------------------------------------------------------------


def test_nothing_after_the_end():
    """After QUIT nothing is read, answered or told."""
    driver = Driver()
    driver.sent()
    told = driver.feed(b"QUIT\r\nNOOP\r\n", b"NOOP\r\n") + driver.eof()

    assert told == b"221 2.0.0 mx.alpha.example closing\r\n"
    assert driver.told == ["connected", "ended"]
    assert driver.session.buffered == 0
    driver.session.shutdown()
    assert driver.session.data_to_send() == b""


def test_shutdown_between_messages():
    """The client is told, and the session is over."""
    session = greeted()
    session.shutdown()

    assert session.data_to_send() == b"421 4.3.2 closing down, try again later\r\n"
    assert session.closing
    assert SessionEnded(clean=False) == session.next_event()


def test_shutdown_in_a_body():
    """What came of the body is to be thrown away."""
    session = at(DataRequested, ENVELOPE + b"DATA\r\n")
    session.accept()
    session.receive_data(b"half of it\r\n")
    session.shutdown(Reply(421, ("too slow",), "4.4.2"))

    sent = session.data_to_send()

    assert sent == b"354 end with <CRLF>.<CRLF>\r\n421 4.4.2 too slow\r\n"
    assert BodyReceived(b"half of it") == session.next_event()
    assert TransactionAborted() == session.next_event()
    assert SessionEnded(clean=False) == session.next_event()
    assert session.next_event() is None


@pytest.mark.parametrize("told", [False, True])
def test_shutdown_while_a_question_is_open(told):
    """The question is void: it is not told any more, and an answer does nothing."""
    session = greeted()
    session.receive_data(ENVELOPE)
    session.next_event()
    session.accept()
    if told:
        assert isinstance(session.next_event(), RecipientRequested)
    session.shutdown()
    session.accept()
    session.reject(LATER)

    assert session.data_to_send().endswith(
        b"sender ok\r\n421 4.3.2 closing down, try again later\r\n"
    )
    assert TransactionAborted() == session.next_event()
    assert SessionEnded(clean=False) == session.next_event()
    assert session.next_event() is None


@pytest.mark.parametrize("accepted", [True, False])
def test_shutdown_while_a_message_is_being_accepted(accepted):
    """The message gets its answer, as it may be on disk; then the session ends."""
    session = at(MessageReceived, ENVELOPE + b"DATA\r\n.\r\nNOOP\r\n")
    session.shutdown()
    assert not session.closing
    assert session.data_to_send() == b""
    if accepted:
        session.accept()
    else:
        session.reject(LATER)
    first, second = session.data_to_send().splitlines()

    assert (b"250 2.0.0 accepted" if accepted else b"451 4.3.0 later") == first
    assert second.startswith(b"421 4.3.2")
    assert SessionEnded(clean=False) == session.next_event()
    assert session.closing


def test_eof_while_a_message_is_being_accepted():
    """The answer is given all the same, and then what was pipelined behind it."""
    session = at(MessageReceived, ENVELOPE + b"DATA\r\n.\r\nNOOP\r\nQUIT\r\n")
    session.receive_eof()
    assert not session.closing
    session.accept()

    assert [line[:3] for line in session.data_to_send().splitlines()] == [
        b"250",
        b"250",
        b"221",
    ]
    assert SessionEnded(clean=True) == session.next_event()


def test_421_to_a_message():
    """A message may be refused together with the session."""
    session = at(MessageReceived, ENVELOPE + b"DATA\r\n.\r\n")
    session.reject(Reply(421, ("going down",), "4.3.2"))

    assert session.data_to_send() == b"421 4.3.2 going down\r\n"
    assert SessionEnded(clean=False) == session.next_event()
    assert session.next_event() is None


def test_eof_twice():
    """A connection may be lost after it was half closed."""
    driver = Driver()
    driver.eof()
    driver.eof()

    assert driver.told == ["connected", "broken off"]


# Facts and limits ----------------------------------------------------------------------


def test_what_the_client_calls_itself():
    """The last hello counts."""
    driver = Driver()

    assert (driver.session.helo_name, driver.session.extended) == ("", False)
    driver.feed(b"EHLO B.example\r\n")
    assert (driver.session.helo_name, driver.session.extended) == ("B.example", True)
    driver.feed(b"HELO [192.0.2.1]\r\n")
    assert (driver.session.helo_name, driver.session.extended) == ("[192.0.2.1]", False)
    driver.feed(b"EHLO bad_name\r\n")
    assert (driver.session.helo_name, driver.session.extended) == ("[192.0.2.1]", False)


def test_errors_are_counted_from_the_last_message():
    """A client that gets messages through may err again."""
    config = ServerConfig("mx", max_message_size=10, max_bad_commands=1)
    driver = Driver(config)
    driver.feed(HELO)
    for _ in range(3):
        driver.feed(b"BAD\r\n" + ENVELOPE + b"DATA\r\n.\r\n")
    assert not driver.session.closing
    driver.feed(b"BAD\r\nBAD\r\n")

    assert driver.session.closing


RCPTS = b"".join(b"RCPT TO:<x%d@alpha.example>\r\n" % n for n in range(100))


@pytest.mark.parametrize(
    "mail",
    [
        b"MAIL FROM:<spam@b.example>\r\n",
        b"MAIL FROM:<a@b.example> SIZE=9999\r\n",
        b"MAIL FROM:<a@b.example> X=Y\r\n",
        "MAIL FROM:<jürg@b.example>\r\n".encode(),
    ],
)
def test_pipelined_behind_a_refused_sender(mail):
    """Commands sent before the refusal could be known are no errors (RFC 2920 3.1)."""

    def refuse(question):
        if isinstance(question, MailRequested):
            return Reply(550, ("not you",), "5.7.1")
        return None

    driver = Driver(CONFIG, refuse)
    driver.feed(HELO)
    replies = driver.feed(mail + RCPTS + b"DATA\r\n").splitlines()

    assert len(replies) == 102
    assert {b"503 5.5.1 say MAIL first"} == set(replies[1:])
    assert not driver.session.closing
    driver.feed(b"RSET\r\n" + RCPTS)
    assert driver.session.closing


@pytest.mark.parametrize("rcpts", [RCPTS, b"RCPT TO:<bad>\r\n"])
def test_pipelined_behind_refused_recipients(rcpts):
    """DATA is no error if every recipient before it was refused."""

    def refuse(question):
        if isinstance(question, RecipientRequested):
            return Reply(550, ("no such user",), "5.1.1")
        return None

    driver = Driver(ServerConfig("mx", 1000, max_bad_commands=1), refuse)
    driver.feed(HELO)
    replies = driver.feed(b"MAIL FROM:<>\r\n" + rcpts + b"DATA\r\nRSET\r\n")

    assert replies.endswith(b"554 5.5.1 no valid recipients\r\n250 2.0.0 ok\r\n")
    assert not driver.session.closing


def test_misplaced_recipients_are_errors():
    """Without a MAIL before them they are nonsense, and are counted."""
    driver = Driver()
    driver.feed(HELO + RCPTS)

    assert driver.session.closing


def test_an_endless_line_takes_no_memory():
    """A line that never ends is not kept."""
    session = greeted()
    for _ in range(100):
        session.receive_data(b"x" * 10_000 + b"\r")
    assert session.buffered <= 1
    session.receive_data(b"\nNOOP\r\n")

    assert session.data_to_send() == b"500 5.5.2 line too long\r\n250 2.0.0 ok\r\n"


def test_an_endless_body_takes_no_memory():
    """A body over the limit is read to its end, and not given out."""
    driver = Driver()
    driver.feed(ENVELOPE + b"DATA\r\n")
    for _ in range(100):
        driver.feed(b"x" * 10_000)
        assert driver.session.buffered == 0
    assert driver.sent() == b""

    assert driver.feed(b"\r\n.\r\n") == b"552 5.3.4 the message is too big\r\n"
    assert driver.told[-1] == "aborted"


def test_a_body_that_begins_in_the_envelope_chunk():
    """Nothing is lost where the body follows DATA in the same piece."""
    driver = Driver()
    driver.feed(ENVELOPE + b"DATA\r\nearly\r\n.\r\nNOOP\r\n")

    assert driver.bodies == [b"early\r\n"]


def test_replies_are_short():
    """No reply line is over 512 octets, also those with a name or limit in them."""
    config = ServerConfig("a" * 63 + ".example", max_message_size=10**18)
    driver = Driver(config)
    driver.feed(b"EHLO x\r\n")
    lines = Driver(config).sent().splitlines(keepends=True)

    assert all(len(line) <= MAX_REPLY_LINE for line in lines)


# Properties ----------------------------------------------------------------------------

commands = st.sampled_from(
    [
        b"EHLO b.example\r\n",
        b"HELO b\r\n",
        b"MAIL FROM:<a@b.example>\r\n",
        b"MAIL FROM:<a@b.example> SIZE=2000\r\n",
        b"RCPT TO:<x@alpha.example>\r\n",
        b"RCPT TO:<no@alpha.example>\r\n",
        b"DATA\r\n",
        b"text\r\n.\r\n",
        b"text\n.\r\n",
        b".\r\n",
        b"..\r\n",
        b"x" * 1100,
        b"\r\n",
        b"\r",
        b"\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"BAD\r\n",
        b"QUIT\r\n",
        b"\xff\x00",
    ]
)
dialogues = st.lists(commands, max_size=30).map(b"".join)
with_envelope = dialogues.map(lambda data: ENVELOPE + b"DATA\r\n" + data)


def refuse_no(question):
    if (
        isinstance(question, RecipientRequested)
        and question.recipient.local_part == "no"
    ):
        return Reply(550, ("no",), "5.1.1")
    return None


def hold(chunks, *, eof):
    driver = Driver(CONFIG, refuse_no)
    out = driver.sent() + driver.feed(*chunks)
    if eof:
        out += driver.eof()
    return out, driver.told, driver.bodies, driver.session.closing


@given(dialogues | with_envelope, st.lists(st.integers(0, 2000)), st.booleans())
def test_cuts_make_no_difference(data, places, eof):
    """The same octets give the same replies and events however they are cut."""
    whole = hold([data] if data else [], eof=eof)

    assert whole == hold(cut(data, places), eof=eof)
    assert whole == hold(in_bytes(data), eof=eof)


@given(st.lists(st.binary(max_size=40) | commands, max_size=20), st.booleans())
def test_any_octets_are_a_session(chunks, eof):
    """Nothing that a client sends raises; every transaction has one end."""
    _, told, bodies, closing = hold(chunks, eof=eof)
    mails = sum(event.startswith("mail") for event in told)
    ends = sum(event.startswith(("message", "aborted")) for event in told)

    assert told[0] == "connected"
    assert mails - ends in ({0} if closing else {0, 1})
    assert closing == (told[-1] in {"ended", "broken off"})
    assert not any(b"\n" in body.replace(b"\r\n", b"") for body in bodies)
    assert not any(b"\r" in body.replace(b"\r\n", b"") for body in bodies)
