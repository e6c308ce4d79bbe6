"""The server session as a machine with any driver: questions answered late, or never."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.smtp.test_fuzz_corpus import ENVELOPE, LINES
from vnsmail.model import Role
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
    AuthAborted,
    AuthRequested,
    AuthResponse,
    BodyReceived,
    MailRequested,
    MessageReceived,
    Question,
    ServerConfig,
    ServerSession,
    SessionEnded,
    TlsRequested,
    TransactionAborted,
)

CONFIG = ServerConfig(
    "mx.alpha.example",
    1000,
    role=Role.SUBMISSION,
    starttls=True,
    mechanisms=("PLAIN", "LOGIN"),
)
REFUSALS = st.sampled_from(
    [Reply(451, ("later",), "4.3.0"), Reply(550, ("no",)), Reply(421, ("bye",))]
)


class Sessions(RuleBasedStateMachine):
    """A session whose driver does what it may, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.session = ServerSession(CONFIG)
        self.question: Question | None = None
        self.open_transaction = False
        self.signing_in = False
        self.ended = False
        self.out = b""

    # The client -----------------------------------------------------------------------

    @rule(lines=st.lists(LINES, min_size=1, max_size=4).map(b"".join))
    def says(self, lines: bytes) -> None:
        self.session.receive_data(lines)

    @rule(data=st.binary(min_size=1, max_size=20))
    def says_anything(self, data: bytes) -> None:
        self.session.receive_data(data)

    @rule()
    def sends_an_envelope(self) -> None:
        self.session.receive_data(b"EHLO b.example\r\n" + ENVELOPE)

    @rule()
    def hangs_up(self) -> None:
        self.session.receive_eof()

    # The driver -----------------------------------------------------------------------

    @rule()
    def looks(self) -> None:
        event = self.session.next_event()
        if event is None:
            return
        assert not self.ended, "nothing comes behind the end"
        if self.session.closing:
            self.question = None  # the end makes it void
        assert self.question is None, "one question at a time"
        if isinstance(event, Question):
            self.question = event
        self.note(event)

    def note(self, event: object) -> None:
        match event:
            case BodyReceived():
                assert self.open_transaction
            case MessageReceived():
                assert self.open_transaction
                assert self.session.signed_in
            case TransactionAborted():
                assert self.open_transaction
                self.open_transaction = False
            case AuthRequested():
                assert self.session.secure
                assert not self.session.signed_in
                self.signing_in = True
            case AuthResponse():
                assert self.signing_in
            case AuthAborted():
                assert self.signing_in
                self.signing_in = False
            case TlsRequested():
                assert not self.session.secure
            case SessionEnded():
                self.ended = True
            case _:
                pass

    @precondition(lambda self: self.question is not None)
    @rule()
    def accepts(self) -> None:
        question, self.question = self.question, None
        ended = self.session.closing
        self.session.accept()
        if ended:
            return
        match question:
            case MailRequested():
                self.open_transaction = True
            case MessageReceived():
                self.open_transaction = False
            case AuthRequested() | AuthResponse():
                self.signing_in = False
            case _:
                pass

    @precondition(lambda self: self.question is not None)
    @rule(reply=REFUSALS)
    def refuses(self, reply: Reply) -> None:
        question, self.question = self.question, None
        self.session.reject(reply)
        match question:
            case MessageReceived():
                self.open_transaction = False
            case AuthRequested() | AuthResponse():
                self.signing_in = False
            case _:
                pass

    @precondition(lambda self: isinstance(self.question, AuthRequested | AuthResponse))
    @rule(data=st.binary(max_size=20))
    def challenges(self, data: bytes) -> None:
        self.question = None
        self.session.challenge(data)

    @precondition(lambda self: self.session.starting_tls and self.question is None)
    @rule()
    def shakes_hands(self) -> None:
        self.session.tls_started()
        assert self.session.secure
        assert not self.session.helo_name

    @rule()
    def writes(self) -> None:
        said = self.session.data_to_send()
        assert not said or said.endswith(b"\r\n")
        self.out += said

    @rule()
    def shuts_down(self) -> None:
        self.session.shutdown()

    # Always -----------------------------------------------------------------------------

    @invariant()
    def nothing_is_signed_in_the_clear(self) -> None:
        assert self.session.secure or not self.session.signed_in

    @invariant()
    def an_end_is_an_end(self) -> None:
        if self.session.closing:
            assert self.session.buffered == 0

    def teardown(self) -> None:
        while self.question is None and self.session.next_event() is not None:
            pass


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
