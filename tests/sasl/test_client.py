"""The client's side of SASL, against the server's side and against liars."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.sasl import passwords
from vnsmail.sasl.client import MOST_ITERATIONS, Login, Scram
from vnsmail.sasl.mechanisms import Ask, Check, Failed, Proven, begin

KEYS = passwords.read_keys(passwords.derive("correct horse").scram)
RIGHT = "correct horse"
ALL = ("PLAIN", "SCRAM-SHA-256", "LOGIN", "GSSAPI")


def chosen(login, offered, *, plain):
    exchange = login.begin(offered, plain=plain)
    assert exchange is not None
    return exchange


def sign_in(offered, password=RIGHT, *, plain=True):
    """Sign in at a server; return its last step, and the exchange."""
    exchange = chosen(Login("ann", password), offered, plain=plain)
    assert KEYS is not None
    keys = KEYS
    server = begin(exchange.mechanism, lambda _: keys)
    assert server is not None
    step = server.respond(exchange.first())
    while isinstance(step, Ask):
        step = server.respond(exchange.respond(step.data))
    return step, exchange


def test_scram_goes_first_and_proves_both_sides():
    step, exchange = sign_in(ALL)
    assert exchange.mechanism == "SCRAM-SHA-256"
    assert step == Proven("ann")
    assert exchange.satisfied


def test_scram_with_a_wrong_password():
    step, exchange = sign_in(ALL, "wrong horse")
    assert step == Failed("ann")
    assert not exchange.satisfied


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_says_the_password(mechanism):
    step, exchange = sign_in((mechanism, "NTLM"))
    assert step == Check("ann", "correct horse")
    assert exchange.satisfied


def test_never_says_the_password_to_who_has_proven_nothing():
    login = Login("ann", "correct horse")
    assert login.begin(("PLAIN", "LOGIN"), plain=False) is None
    assert chosen(login, ALL, plain=False).mechanism == "SCRAM-SHA-256"
    assert login.begin((), plain=True) is None


def test_is_not_shown():
    assert "horse" not in repr(Login("ann", "correct horse"))
    assert "horse" not in Login("ann", "correct horse").key
    assert Login("ann", "a").key != Login("ann", "b").key


@pytest.mark.parametrize("count", [0, MOST_ITERATIONS + 1, 10**9])
def test_computes_no_more_than_it_has_time_for(count):
    exchange = Scram("ann", "correct horse", nonce="abc")
    exchange.first()
    assert exchange.respond(f"r=abcdef,s=QSXCR+Q6sek8bf92,i={count}".encode()) is None


def test_a_server_that_proves_nothing():
    """It says what it likes in the end; it does not know the password."""
    exchange = Scram("ann", "correct horse", nonce="abc")
    exchange.first()
    assert exchange.respond(b"r=abcdef,s=QSXCR+Q6sek8bf92,i=4096") is not None
    assert exchange.respond(b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=") is None
    assert not exchange.satisfied


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from(ALL[:3]))
def test_any_challenge(challenges, mechanism):
    exchange = chosen(Login("ann", "correct horse"), (mechanism,), plain=True)
    exchange.first()
    for each in challenges:
        answer = exchange.respond(each)
        assert answer is None or isinstance(answer, bytes)
    if mechanism == "SCRAM-SHA-256":
        assert not exchange.satisfied


def test_what_scram_cannot_take():
    """A password that SASLprep forbids is said by a mechanism that does not prepare it."""
    login = Login("ann", "\u0627a")
    assert chosen(login, ALL, plain=True).mechanism == "PLAIN"
    assert login.begin(ALL, plain=False) is None
