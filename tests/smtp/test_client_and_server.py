"""Our client talks to our server over a fake link, and both must agree."""

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.helpers import CONFIG, Driver, cut
from vnsmail.smtp.address import parse_forward_path
from vnsmail.smtp.client_session import (
    BodyWanted,
    ClientSession,
    Event,
    Ready,
    Transaction,
    TransactionFinished,
)
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
    DataRequested,
    MailRequested,
    MessageReceived,
    Question,
    RecipientRequested,
)

ADDRESSES = [
    "anna@alpha.example",
    '"bob \\"b\\" > <>"@alpha.example',
    "carl@[IPv6:2001:db8::1]",
    "дима@почта.example",
    "no@alpha.example",
    "later@alpha.example",
    "postmaster",
]
REFUSALS = {
    "no": Reply(550, ("no such user", "at all"), "5.1.1"),
    "later": Reply(452, ("mailbox full",), "4.2.2"),
}
KINDS = (MailRequested, DataRequested, MessageReceived)

bodies = st.lists(
    st.sampled_from([b"\r\n", b".", b"text", b"\r\n.\r\n", b"\xff", b"QUIT\r\n"]),
    max_size=8,
).map(b"".join)


class Link:
    """Carries octets in pieces of any size between the two; counts no time."""

    def __init__(
        self, driver: Driver, *, hidden: tuple[bytes, ...], places: list[int]
    ) -> None:
        self.driver = driver
        self.client = ClientSession("client.example")
        self.hidden = hidden
        """What the server offers, and the client is not told of."""
        self.places = places
        self.body = b""
        """Of the transaction under way."""
        self.results: list[dict[str, Reply]] = []

    def run(self, todo: list[tuple[Transaction, bytes]]) -> None:
        work = iter(todo)
        to_client = self.driver.sent()
        for _ in range(1000):
            for extension in self.hidden:
                to_client = to_client.replace(b"250-%b\r\n" % extension, b"")
            for piece in cut(to_client, self.places):
                self.client.receive_data(piece)
            while (event := self.client.next_event()) is not None:
                self._react(event, work)
            to_server = self.client.data_to_send()
            if not to_server:
                return
            to_client = self.driver.feed(*cut(to_server, self.places))
        raise AssertionError("the dialogue never ends")

    def _react(self, event: Event, work: Iterator[tuple[Transaction, bytes]]) -> None:
        if isinstance(event, BodyWanted):
            for piece in cut(self.body, self.places):
                self.client.send_body(piece)
            self.client.finish_body()
            return
        if isinstance(event, TransactionFinished):
            self.results.append(event.recipients)
        else:
            assert isinstance(event, Ready)
        if (following := next(work, None)) is None:
            self.client.quit()
        else:
            transaction, self.body = following
            self.client.begin(transaction)


def transaction(recipients: list[str], body: bytes) -> Transaction:
    return Transaction(
        sender="jürg@b.example",
        recipients=tuple(recipients),
        body_size=len(body),
        eight_bit=not body.isascii(),
        smtputf8=True,
    )


def expected_body(body: bytes) -> bytes:
    return body if not body or body.endswith(b"\r\n") else body + b"\r\n"


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(ADDRESSES), unique=True), bodies), max_size=3
    ),
    st.sampled_from([(), (b"CHUNKING",), (b"PIPELINING",)]),
    st.lists(st.integers(0, 300), max_size=8),
    st.dictionaries(st.sampled_from(KINDS), st.integers(400, 599), max_size=1),
)
def test_both_agree(messages, hidden, places, refused):
    """What the client reports of each recipient is what the server decided, and what
    the server has are the bodies that the client sent: in chunks, with DATA, and step
    by step."""

    def answer(question: Question) -> Reply | None:
        if isinstance(question, RecipientRequested):
            return REFUSALS.get(question.recipient.local_part)
        code = refused.get(type(question))
        # 421 ends the session; that has its own tests.
        return Reply(422 if code == 421 else code, ("refused",)) if code else None

    driver = Driver(replace(CONFIG, max_message_size=10**6), answer)
    link = Link(driver, hidden=hidden, places=places)
    link.run([(transaction(to, body), body) for to, body in messages])
    accepting = [
        (to, body)
        for to, body in messages
        if any(parse(each) not in REFUSALS for each in to)
    ]

    assert driver.told[-1] == "ended"
    assert link.client.closing
    assert [set(to) for to, _ in messages] == [set(result) for result in link.results]
    if not refused or MessageReceived in refused:
        assert [expected_body(body) for _, body in accepting] == driver.bodies
    for result in link.results:
        for address, reply in result.items():
            if MailRequested in refused:
                assert reply.text == "refused"
            elif (refusal := REFUSALS.get(parse(address))) is not None:
                assert refusal == reply
            else:
                assert reply.is_positive == (not refused)


def parse(address: str) -> str:
    return parse_forward_path(f"<{address}>", smtputf8=True).local_part
