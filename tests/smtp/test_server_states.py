import itertools
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.helpers import Driver
from vnsmail.smtp import commands as said
from vnsmail.smtp.server_events import Connected, MessageReceived
from vnsmail.smtp.server_states import (
    IN_TRANSACTION,
    OUT_OF_PLACE,
    TRANSITIONS,
    EndOfAuth,
    EndOfBody,
    EndOfChunk,
    State,
    TlsStarted,
)

COMMANDS = set(get_args(said.Command))
TALKING = [
    State.GREETED,
    State.IDLE,
    State.SENDER,
    State.RECIPIENTS,
    State.CHUNKS,
]


def test_every_state_has_a_row():
    """A state is in the table, and an end is reached from each state but those in which
    nobody listens to commands."""
    assert set(State) == set(TRANSITIONS)
    for state in TALKING:
        assert State.ENDED is TRANSITIONS[state][said.Quit]
    assert TRANSITIONS[State.ENDED] == {}


def test_commands_are_heard_only_between_bodies():
    """In a body nothing is a command; before the greeting, nothing is."""
    assert {Connected} == set(TRANSITIONS[State.NEW])
    assert {EndOfBody} == set(TRANSITIONS[State.BODY])
    assert {MessageReceived} == set(TRANSITIONS[State.WHOLE])
    assert {EndOfChunk, EndOfBody} == set(TRANSITIONS[State.CHUNK])
    assert {EndOfAuth} == set(TRANSITIONS[State.AUTH])
    assert {TlsStarted} == set(TRANSITIONS[State.TLS])


def test_the_order_of_a_transaction():
    """MAIL, RCPT, DATA: each only in its place (RFC 5321 section 4.1.4)."""
    places = {
        said.Mail: {State.IDLE},
        said.Rcpt: {State.SENDER, State.RECIPIENTS},
        said.Data: {State.RECIPIENTS},
        said.Bdat: {State.RECIPIENTS, State.CHUNKS},
        said.Auth: {State.IDLE},
        said.Starttls: {State.IDLE},
    }
    anywhere = COMMANDS - set(places)

    for command, states in places.items():
        assert states == {s for s in State if command in TRANSITIONS[s]}
    for command, state in itertools.product(anywhere, TALKING):
        assert command in TRANSITIONS[state]


def test_what_is_out_of_place_has_words():
    """A state in which a command can be out of place has a text for that."""
    assert set(TALKING) == set(OUT_OF_PLACE)
    assert IN_TRANSACTION == {
        State.SENDER,
        State.RECIPIENTS,
        State.BODY,
        State.CHUNK,
        State.CHUNKS,
    }


LINES = {
    said.Ehlo: b"EHLO b.example",
    said.Helo: b"HELO b.example",
    said.Mail: b"MAIL FROM:<>",
    said.Rcpt: b"RCPT TO:<a@alpha.example>",
    said.Data: b"DATA",
    said.Bdat: b"BDAT 0",
    said.Starttls: b"STARTTLS",
    said.Auth: b"AUTH PLAIN",
    said.Rset: b"RSET",
    said.Noop: b"NOOP",
    said.Vrfy: b"VRFY a",
    said.Help: b"HELP",
    said.Unknown: b"XYZZY",
}


def test_every_command_is_tried_below():
    assert {*LINES, said.Quit} == COMMANDS


@given(st.lists(st.sampled_from(list(LINES))))
def test_the_session_follows_the_table(steps):
    """In any order of commands: 503 where the table has no key, else no 503."""
    driver = Driver()
    driver.sent()
    state = State.GREETED
    for step in steps:
        code = driver.feed(LINES[step] + b"\r\n")[:3]
        assert (step not in TRANSITIONS[state]) == (code == b"503")
        if code == b"502":  # no certificate, and nobody can sign in
            assert step in {said.Starttls, said.Auth}
            continue
        state = TRANSITIONS[state].get(step, state)
        if state is State.CHUNK:
            assert code == b"250"
            state = State.CHUNKS
        if state is State.BODY:
            assert code == b"354"
            assert driver.feed(b".\r\n") == b"250 2.0.0 accepted\r\n"
            state = State.IDLE
        if driver.session.closing:
            break
