"""The client's side, against a server that says what it is told to say."""

from typing import Any

import pytest

from tests.smtp.helpers import in_bytes
from vnsmail.smtp.client_session import (
    BodyWanted,
    ClientSession,
    Disconnected,
    Ready,
    Refused,
    Transaction,
    TransactionFinished,
)
from vnsmail.smtp.errors import SmtpProtocolError, SmtpSyntaxError
from vnsmail.smtp.replies import Reply

PIPELINING = b"250-mx\r\n250-PIPELINING\r\n250 SIZE 1000\r\n"
PLAIN = b"250 mx\r\n"

ANNA, BOB, CARL = "anna@x.example", "bob@x.example", "carl@x.example"

OK = Reply(250, ("ok",), "2.0.0")
NO_USER = Reply(550, ("no such user",), "5.1.1")
LOST = Reply(421, ("connection lost",), "4.4.2")


def message(*recipients, **other):
    given: dict[str, Any] = {
        "sender": "me@alpha.example",
        "body_size": 5,
        "eight_bit": False,
        "smtputf8": False,
    }
    return Transaction(recipients=recipients, **(given | other))


class Client:
    """A session, and what it says and tells."""

    def __init__(self, hello=PIPELINING, greeting=b"220 mx\r\n"):
        self.session = ClientSession("alpha.example")
        self.hears(greeting)
        if hello:
            assert self.says() == b"EHLO alpha.example\r\n"
            self.hears(hello)

    def hears(self, data):
        self.session.receive_data(data)

    def says(self):
        return self.session.data_to_send()

    @property
    def over(self):
        return self.session.closing

    def tells(self):
        events = []
        while (event := self.session.next_event()) is not None:
            events.append(event)
        return events

    def loses(self):
        self.session.receive_eof()

    def begins(self, *recipients, **other):
        self.session.begin(message(*recipients, **other))


def ready(hello=PIPELINING):
    client = Client(hello)
    [event] = client.tells()
    assert isinstance(event, Ready)
    return client


def in_body(hello=PIPELINING):
    """Return a client that may send the body, to Anna."""
    client = ready(hello)
    client.begins(ANNA)
    if hello == PIPELINING:
        client.says()
        client.hears(b"250 ok\r\n250 ok\r\n354 go\r\n")
    else:
        for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            client.says()
            client.hears(reply)
    assert client.tells() == [BodyWanted()]
    return client


# Greeting and hello (RFC 5321 sections 3.1 and 3.2) --------------------------------------


def test_extensions():
    """EHLO's answer is taken apart; what is no extension line is left out."""
    client = Client(
        b"250-mx hello\r\n250-pipelining\r\n250-SIZE 1000\r\n250-AUTH PLAIN LOGIN\r\n"
        b"250-X=Y\r\n250-\r\n250 8BITMIME\r\n"
    )
    expected = {
        "PIPELINING": "",
        "SIZE": "1000",
        "AUTH": "PLAIN LOGIN",
        "8BITMIME": "",
    }

    assert [Ready(expected)] == client.tells()


def test_helo_where_there_is_no_ehlo():
    """A server that knows no EHLO says so with 5yz, and is asked with HELO."""
    client = Client(b"502 what?\r\n")

    assert client.says() == b"HELO alpha.example\r\n"
    client.hears(b"250-mx\r\n250 PIPELINING\r\n")
    assert [Ready({})] == client.tells()


@pytest.mark.parametrize("code", [450, 554])
def test_greeting_refused(code):
    """A server that does not want us is told goodbye, if the caller wants to."""
    client = Client(None, b"%d 5.7.1 no\r\n" % code)
    [event] = client.tells()

    assert isinstance(event, Refused)
    assert event.reply.code == code
    assert not client.over
    client.session.quit()
    assert client.says() == b"QUIT\r\n"
    client.hears(b"221 bye\r\n")
    assert client.over
    assert client.tells() == []


def test_ehlo_refused_for_now():
    """4yz to EHLO is no reason to say HELO."""
    client = Client(b"451 later\r\n")

    assert [Refused(Reply(451, ("later",)))] == client.tells()
    assert client.says() == b""


def test_both_hellos_refused():
    client = Client(b"502 what?\r\n")
    client.says()
    client.hears(b"550 go away\r\n")

    assert [Refused(Reply(550, ("go away",)))] == client.tells()


def test_421_at_once():
    """421 ends the connection without goodbye."""
    client = Client(None, b"421 4.3.2 too busy\r\n")

    assert [Refused(Reply(421, ("too busy",), "4.3.2"))] == client.tells()
    assert client.over


def test_begin_where_refused():
    """A server that refused us is sent no mail."""
    client = Client(None, b"554 no\r\n")
    client.tells()
    client.begins(ANNA)

    assert [TransactionFinished({ANNA: LOST})] == client.tells()
    assert client.says() == b""
    client.session.quit()
    assert client.says() == b"QUIT\r\n"


def test_name_that_is_none():
    """Our own name has to be one."""
    with pytest.raises(SmtpSyntaxError):
        ClientSession("under_score")


# A transaction, pipelined (RFC 2920) --------------------------------------------------


def test_pipelined():
    """The envelope goes in one piece; the body waits for 354."""
    client = ready()
    client.begins(ANNA, BOB)

    assert client.says() == (
        b"MAIL FROM:<me@alpha.example> SIZE=5\r\n"
        b"RCPT TO:<anna@x.example>\r\n"
        b"RCPT TO:<bob@x.example>\r\n"
        b"DATA\r\n"
    )
    client.hears(b"250 ok\r\n250 ok\r\n550 5.1.1 no such user\r\n")
    assert client.tells() == []
    client.hears(b"354 go\r\n")
    assert client.tells() == [BodyWanted()]
    client.session.send_body(b"hi\r\n.")
    client.session.send_body(b"x")
    client.session.finish_body()
    assert client.says() == b"hi\r\n..x\r\n.\r\n"
    client.hears(b"250 2.0.0 ok\r\n")
    assert [TransactionFinished({ANNA: OK, BOB: NO_USER})] == client.tells()
    client.begins(CARL)
    assert client.says().startswith(b"MAIL")


def test_message_refused():
    """The reply to the body is for everybody who was accepted."""
    client = in_body()
    client.session.finish_body()
    client.says()
    client.hears(b"554 5.7.1 spam\r\n")

    assert [TransactionFinished({ANNA: Reply(554, ("spam",), "5.7.1")})] == (
        client.tells()
    )
    client.begins(ANNA)
    assert client.says().startswith(b"MAIL")


def test_sender_refused():
    """MAIL's refusal is everybody's; the replies behind it are counted off."""
    client = ready()
    client.begins(ANNA, BOB)
    client.says()
    client.hears(b"550 5.7.1 not you\r\n503 x\r\n503 x\r\n")
    assert client.tells() == []
    client.hears(b"503 x\r\n")
    refusal = Reply(550, ("not you",), "5.7.1")

    assert [TransactionFinished({ANNA: refusal, BOB: refusal})] == client.tells()
    assert client.says() == b""


def test_all_recipients_refused():
    """Everybody has his own refusal; RSET ends what MAIL began."""
    client = ready()
    client.begins(ANNA, BOB)
    client.says()
    client.hears(b"250 ok\r\n550 5.1.1 no such user\r\n452 full\r\n554 nobody\r\n")

    assert [
        TransactionFinished({ANNA: NO_USER, BOB: Reply(452, ("full",))})
    ] == client.tells()
    assert client.says() == b"RSET\r\n"
    client.begins(CARL)
    assert client.says().startswith(b"MAIL")
    client.hears(b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.tells() == [BodyWanted()]


@pytest.mark.parametrize(
    ("replies", "refusal"),
    [
        (b"250 ok\r\n550 5.1.1 no such user\r\n354 go\r\n", NO_USER),
        (b"550 5.1.1 no such user\r\n250 ok\r\n354 go\r\n", NO_USER),
    ],
)
@pytest.mark.parametrize("answer", [b"250 thanks\r\n", b"554 no\r\n"])
def test_a_body_wanted_for_nobody(replies, refusal, answer):
    """RFC 2920 3.1: a dot alone, and its answer changes nothing."""
    client = ready()
    client.begins(ANNA)
    client.says()
    client.hears(replies)
    assert client.says() == b".\r\n"
    assert client.tells() == []
    client.hears(answer)

    assert [TransactionFinished({ANNA: refusal})] == client.tells()
    assert client.says() == b""


def test_data_refused():
    """DATA's refusal is for those who were accepted, and RSET follows."""
    client = ready()
    client.begins(ANNA, BOB)
    client.says()
    client.hears(b"250 ok\r\n250 ok\r\n550 5.1.1 no such user\r\n451 4.3.1 full\r\n")
    full = Reply(451, ("full",), "4.3.1")

    assert [TransactionFinished({ANNA: full, BOB: NO_USER})] == client.tells()
    assert client.says() == b"RSET\r\n"


def test_reset_refused():
    """Who knows what is still open then: the connection is not used any more."""
    client = ready()
    client.begins(ANNA)
    client.says()
    client.hears(b"250 ok\r\n250 ok\r\n451 later\r\n")
    client.tells()
    client.says()
    client.hears(b"500 what?\r\n")
    [event] = client.tells()

    assert isinstance(event, Disconnected)
    assert client.over


# Step by step (no PIPELINING) -----------------------------------------------------------


def steps(client, *dialogue):
    """Hold a dialogue of what we say and hear."""
    for said, heard in dialogue:
        assert client.says() == said
        client.hears(heard)


MAIL = b"MAIL FROM:<me@alpha.example>\r\n"
TO_ANNA, TO_BOB = b"RCPT TO:<anna@x.example>\r\n", b"RCPT TO:<bob@x.example>\r\n"


def test_step_by_step():
    """Each command waits for the reply before."""
    client = ready(PLAIN)
    client.begins(ANNA, BOB)
    steps(
        client,
        (MAIL, b"250 ok\r\n"),
        (TO_ANNA, b"550 5.1.1 no such user\r\n"),
        (TO_BOB, b"251 will forward\r\n"),
        (b"DATA\r\n", b"354 go\r\n"),
    )
    assert client.tells() == [BodyWanted()]
    client.session.finish_body()
    steps(client, (b".\r\n", b"250 2.0.0 ok\r\n"))

    assert [TransactionFinished({ANNA: NO_USER, BOB: OK})] == client.tells()


def test_step_by_step_sender_refused():
    client = ready(PLAIN)
    client.begins(ANNA)
    steps(client, (MAIL, b"550 5.1.1 no such user\r\n"))

    assert [TransactionFinished({ANNA: NO_USER})] == client.tells()
    assert client.says() == b""


def test_step_by_step_all_recipients_refused():
    """The next transaction waits until the old one is reset."""
    client = ready(PLAIN)
    client.begins(ANNA)
    steps(client, (MAIL, b"250 ok\r\n"), (TO_ANNA, b"550 5.1.1 no such user\r\n"))
    assert [TransactionFinished({ANNA: NO_USER})] == client.tells()
    client.begins(BOB)

    steps(client, (b"RSET\r\n", b"250 ok\r\n"), (MAIL, b"250 ok\r\n"))
    assert client.says() == TO_BOB


def test_lost_while_the_next_one_waits():
    """A transaction that could not even begin ends as well."""
    client = ready(PLAIN)
    client.begins(ANNA)
    steps(client, (MAIL, b"250 ok\r\n"), (TO_ANNA, b"550 5.1.1 no such user\r\n"))
    client.tells()
    client.begins(BOB)
    client.says()
    client.loses()

    assert [TransactionFinished({BOB: LOST})] == client.tells()


# What a server cannot take --------------------------------------------------------------

EVERYTHING = (
    b"250-mx\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
)


def test_everything_is_announced():
    """The MAIL command says what the message needs."""
    client = ready(EVERYTHING)
    client.begins(ANNA, sender="jürg@x.example", eight_bit=True, smtputf8=True)

    assert client.says().startswith(
        "MAIL FROM:<jürg@x.example> SIZE=5 BODY=8BITMIME SMTPUTF8\r\n".encode()
    )


@pytest.mark.parametrize(
    ("other", "code", "enhanced"),
    [
        ({"eight_bit": True}, 554, "5.6.3"),
        ({"smtputf8": True}, 550, "5.6.7"),
        ({"body_size": 1001}, 552, "5.3.4"),
        ({"sender": "jürg@x.example"}, 553, "5.6.7"),
        ({"sender": "me"}, 501, "5.1.7"),
        ({"sender": "me@x.example> X=Y"}, 501, "5.1.7"),
        ({"sender": "me@x.example\r\nRCPT TO:<a@b>"}, 501, "5.1.7"),
    ],
)
def test_not_even_tried(other, code, enhanced):
    """What would be refused anyhow is refused here; the session stays ready."""
    client = ready()
    client.begins(ANNA, BOB, **other)
    [event] = client.tells()

    assert isinstance(event, TransactionFinished)
    assert list(event.recipients) == [ANNA, BOB]
    assert {(code, enhanced)} == {
        (reply.code, reply.enhanced) for reply in event.recipients.values()
    }
    assert client.says() == b""
    client.begins(ANNA)
    assert client.says().startswith(b"MAIL")


@pytest.mark.parametrize("size", ["", " 0", " x", " 99999999999999999999"])
def test_no_limit(size):
    """A server may announce SIZE without a limit that matters (RFC 1870 section 4)."""
    client = ready(f"250-mx\r\n250 SIZE{size}\r\n".encode())
    client.begins(ANNA, body_size=10**12)

    assert client.says() == b"MAIL FROM:<me@alpha.example> SIZE=1000000000000\r\n"


def test_recipients_that_are_none():
    """An address that cannot be sent fails alone."""
    bad, foreign = "a\r\nDATA@x.example", "дима@x.example"
    client = ready()
    client.begins(bad, ANNA, foreign, "postmaster", ANNA)
    assert client.says() == (
        b"MAIL FROM:<me@alpha.example> SIZE=5\r\n"
        b"RCPT TO:<anna@x.example>\r\nRCPT TO:<postmaster>\r\nDATA\r\n"
    )
    client.hears(b"250 ok\r\n250 ok\r\n250 ok\r\n451 later\r\n")
    [event] = client.tells()
    codes = {to: reply.enhanced for to, reply in event.recipients.items()}

    assert codes == {
        bad: "5.1.3",
        ANNA: "",
        foreign: "5.6.7",
        "postmaster": "",
    }


def test_nobody():
    """A transaction for nobody is over at once."""
    client = ready()
    client.begins()

    assert [TransactionFinished({})] == client.tells()
    assert client.says() == b""


def test_null_reverse_path():
    """A message about a message has no sender."""
    client = ready(PLAIN)
    client.begins(ANNA, sender="")

    assert client.says() == b"MAIL FROM:<>\r\n"


# Connections that end --------------------------------------------------------------------


def test_lost_before_the_greeting():
    session = ClientSession("alpha.example")
    session.receive_eof()

    assert Disconnected("connection lost") == session.next_event()
    assert session.closing


def test_lost_while_idle():
    """That is told once, however often the end is told to us."""
    client = ready()
    client.loses()
    client.loses()

    assert [Disconnected("connection lost")] == client.tells()


def test_lost_in_the_envelope():
    """What was said for good stays; the others can be tried again."""
    client = ready()
    client.begins(ANNA, BOB)
    client.says()
    client.hears(b"250 ok\r\n550 5.1.1 no such user\r\n250")
    client.loses()

    assert [TransactionFinished({ANNA: NO_USER, BOB: LOST})] == client.tells()
    assert client.over


def test_lost_after_the_sender_was_refused():
    """MAIL's refusal was for good, although not all replies came."""
    client = ready()
    client.begins(ANNA)
    client.says()
    client.hears(b"550 5.1.1 no such user\r\n")
    client.loses()

    assert [TransactionFinished({ANNA: NO_USER})] == client.tells()


def test_lost_in_the_body():
    """Nothing can have been delivered; what is still sent is thrown away."""
    client = in_body()
    client.session.send_body(b"half")
    client.loses()

    assert [TransactionFinished({ANNA: LOST})] == client.tells()
    client.session.send_body(b"other half")
    client.session.finish_body()
    assert client.tells() == []


def test_lost_after_the_body():
    """It may have been delivered, and the reply says so (RFC 1047)."""
    client = in_body()
    client.session.finish_body()
    client.says()
    client.loses()
    [event] = client.tells()
    reply = event.recipients[ANNA]

    assert (reply.code, reply.enhanced) == (421, "4.4.2")
    assert "may have been delivered" in reply.text


def test_421_in_the_envelope():
    """The server goes away; who has no answer yet gets this one."""
    client = ready()
    client.begins(ANNA, BOB, CARL)
    client.says()
    client.hears(b"250 ok\r\n550 5.1.1 no such user\r\n250 ok\r\n421 4.3.2 down\r\n")
    down = Reply(421, ("down",), "4.3.2")

    assert [TransactionFinished({ANNA: NO_USER, BOB: down, CARL: down})] == (
        client.tells()
    )
    assert client.over


def test_replies_behind_421():
    """After 421 the server has nothing to say."""
    client = in_body()
    client.session.finish_body()
    client.says()
    client.hears(b"421 4.3.2 down\r\n250 2.0.0 ok\r\n")

    assert [TransactionFinished({ANNA: Reply(421, ("down",), "4.3.2")})] == (
        client.tells()
    )


def test_421_while_idle():
    """A server that has waited long enough says so."""
    client = ready()
    client.hears(b"421 4.4.2 idle\r\n")

    assert [Refused(Reply(421, ("idle",), "4.4.2"))] == client.tells()
    assert client.over


def test_refused_in_the_body():
    """A server that does not read to the end has its last word; so has the session."""
    client = in_body()
    client.session.send_body(b"x" * 100)
    client.says()
    client.hears(b"552 5.3.4 too big\r\n")

    assert [TransactionFinished({ANNA: Reply(552, ("too big",), "5.3.4")})] == (
        client.tells()
    )
    assert client.over


def test_begin_after_the_end():
    """Who did not notice the end is told by the transaction."""
    client = ready()
    client.loses()
    client.tells()
    client.begins(ANNA)

    assert [TransactionFinished({ANNA: LOST})] == client.tells()


def test_quit():
    """QUIT's reply ends the session, whatever it is; then nothing is told."""
    client = ready()
    client.session.quit()
    client.session.quit()

    assert client.says() == b"QUIT\r\n"
    assert not client.over
    client.hears(b"500 what?\r\n")
    assert client.over
    client.loses()
    assert client.tells() == []


def test_quit_with_a_reset_unanswered():
    """Replies from before are let pass."""
    client = ready()
    client.begins(ANNA)
    client.says()
    client.hears(b"250 ok\r\n250 ok\r\n451 later\r\n")
    client.tells()
    client.session.quit()

    assert client.says() == b"RSET\r\nQUIT\r\n"
    client.hears(b"550 no\r\n")
    assert not client.over
    client.hears(b"221 bye\r\n")
    assert client.over
    assert client.tells() == []


@pytest.mark.parametrize("end", [b"421 bye\r\n", b"nonsense\r\n", None])
def test_quit_unanswered(end):
    """However the connection ends after QUIT, that is fine."""
    client = ready()
    client.session.quit()
    client.says()
    if end is None:
        client.loses()
    else:
        client.hears(end)

    assert client.over
    assert client.tells() == []


# Servers that cannot be followed -----------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"250 to nothing\r\n", b"nonsense\r\n", b"250 a\n", b"354 go\r\n"]
)
def test_nonsense_while_idle(data):
    """A reply to nothing would be taken for the next command's: that is the end."""
    client = ready()
    client.hears(data)
    [event] = client.tells()

    assert isinstance(event, Disconnected)
    assert event.text.startswith("protocol error: ")
    assert client.over


def test_reply_before_its_command():
    """A reply that comes before its command was sent is no reply to it: somebody
    in between may have put it there."""
    client = Client(None, b"220 mx\r\n250 mx\r\n")
    [event] = client.tells()

    assert isinstance(event, Disconnected)


def test_extra_reply_behind_the_last_one():
    """The message was accepted all the same; but the connection is at its end."""
    client = in_body()
    client.session.finish_body()
    client.says()
    client.hears(b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n")
    [finished, event] = client.tells()

    assert TransactionFinished({ANNA: OK}) == finished
    assert isinstance(event, Disconnected)
    assert client.over


def test_accepted_before_the_end():
    """250 in the middle of a body is no acceptance."""
    client = in_body()
    client.session.send_body(b"x")
    client.says()
    client.hears(b"250 2.0.0 ok\r\n")
    [event] = client.tells()

    assert (event.recipients[ANNA].code, event.recipients[ANNA].enhanced) == (
        421,
        "4.5.0",
    )


@pytest.mark.parametrize(
    "replies",
    [
        b"354 go\r\n",
        b"250 ok\r\n354 go\r\n",
        b"250 ok\r\n250 ok\r\n250 ok\r\n",
        b"250 ok\r\n250 ok\r\nnonsense\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [lambda data: [data], in_bytes], ids=["once", "cut"])
def test_nonsense_in_the_envelope(replies, pieces):
    """Everybody can be tried again, elsewhere."""
    client = ready()
    client.begins(ANNA)
    client.says()
    for piece in pieces(replies):
        client.hears(piece)
    [event] = client.tells()

    assert isinstance(event, TransactionFinished)
    assert (event.recipients[ANNA].code, event.recipients[ANNA].enhanced) == (
        421,
        "4.5.0",
    )
    assert client.over


# Faults of the caller -----------------------------------------------------------------------


def test_begin_too_early():
    client = Client(None)
    with pytest.raises(RuntimeError, match="not ready"):
        client.begins(ANNA)


def test_begin_twice():
    client = ready()
    client.begins(ANNA)
    with pytest.raises(RuntimeError, match="not ready"):
        client.begins(BOB)
    with pytest.raises(RuntimeError, match="under way"):
        client.session.quit()


def test_body_not_wanted():
    client = ready()
    with pytest.raises(RuntimeError, match="no body"):
        client.session.send_body(b"x")
    with pytest.raises(RuntimeError, match="no body"):
        client.session.finish_body()


@pytest.mark.parametrize("body", [b"a\n.\nMAIL FROM:<>", b"a\rb", b"a\r"])
def test_body_with_bare_newlines(body):
    """It is not sent; the connection has to go, as half a body is with the server."""
    client = in_body()

    def send():
        client.session.send_body(body)
        client.session.finish_body()

    with pytest.raises(SmtpProtocolError):
        send()

    assert client.over
    assert b"\n" not in client.says()
    client.loses()
    assert client.tells() == []
