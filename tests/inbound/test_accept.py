import ipaddress
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.inbound.accept import (
    MAX_USER,
    NO_SUCH_USER,
    RELAYING_DENIED,
    AcceptPolicy,
    Taken,
)
from vnsmail.smtp.address import Mailbox, parse_forward_path, parse_mailbox

ADDRESSES = [ipaddress.ip_address("10.77.0.11"), ipaddress.ip_address("fd77::11")]
HOST = AcceptPolicy.of(
    ["alpha.example", "Alpha.Test", "xn--bcher-kva.example"],
    ["ann", "bob.b"],
    addresses=ADDRESSES,
)
ANYBODY = AcceptPolicy.of(["machine.example"], [], any_user=True)


@pytest.mark.parametrize(
    ("recipient", "user", "address"),
    [
        ("ann@alpha.example", "ann", "ann@alpha.example"),
        ("ANN@ALPHA.EXAMPLE", "ann", "ann@alpha.example"),
        ("Bob.B@alpha.test", "bob.b", "bob.b@alpha.test"),
        ('"ann"@alpha.test', "ann", "ann@alpha.test"),
        ("PostMaster@alpha.example", "postmaster", "postmaster@alpha.example"),
        ("postmaster@alpha.test", "postmaster", "postmaster@alpha.test"),
        ("ann@[10.77.0.11]", "ann", "ann@alpha.example"),
        ("postmaster@[IPv6:fd77:0::11]", "postmaster", "postmaster@alpha.example"),
        ("ann@bücher.example", "ann", "ann@xn--bcher-kva.example"),
    ],
)
def test_own_users_at_own_domains(recipient, user, address):
    """Every user is at every domain; case does not matter (RFC 5321 section 2.4)."""
    mailbox = parse_mailbox(recipient, smtputf8=True)

    assert Taken(user, address) == HOST.decide(mailbox)
    assert address == HOST.spelled(mailbox)


def test_just_postmaster():
    """<postmaster> has a mailbox wherever there is a domain (RFC 5321 4.5.1)."""
    mailbox = parse_forward_path("<PostMaster>")

    assert Taken("postmaster", "postmaster@alpha.example") == HOST.decide(mailbox)
    assert RELAYING_DENIED == AcceptPolicy.of([], []).decide(mailbox)


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("eve@alpha.example", NO_SUCH_USER),
        ("ann+x@alpha.example", NO_SUCH_USER),
        ("\u212aann@alpha.example", NO_SUCH_USER),
        ("ann@b.example", RELAYING_DENIED),
        ("ann@sub.alpha.example", RELAYING_DENIED),
        ("ann@alpha.example.b.example", RELAYING_DENIED),
        ("postmaster@b.example", RELAYING_DENIED),
        ("ann@[10.77.0.12]", RELAYING_DENIED),
        ("ann@grün.example", RELAYING_DENIED),
        ('"ann@alpha.example"@b.example', RELAYING_DENIED),
        ("ann%b.example@alpha.example", NO_SUCH_USER),
    ],
)
def test_others(recipient, reply):
    """Strangers are unknown here, and mail for elsewhere is not relayed."""
    mailbox = parse_mailbox(recipient, smtputf8=True)

    assert reply == HOST.decide(mailbox)
    assert str(mailbox) == HOST.spelled(mailbox)


def test_kelvin_sign_is_no_k():
    """A letter that becomes another user's in lower case reaches nobody."""
    policy = AcceptPolicy.of(["alpha.example"], ["kim"])

    assert NO_SUCH_USER == policy.decide(Mailbox("\u212aim", "alpha.example"))


@pytest.mark.parametrize("local", ["root", "a b", "grüße", "a..b", "-rf", "a" * 64])
def test_anybody(local):
    """Where everybody has a mailbox, each has one of the own name."""
    expected = Taken(local, str(Mailbox(local, "machine.example")))

    assert expected == ANYBODY.decide(Mailbox(local, "machine.example"))


@pytest.mark.parametrize(
    "local",
    ["", ".", "..", "../ann", "a/b", ".ssh", "a\0b", "a\nb", "ü" * 65, "\ud800"],
)
def test_names_that_are_no_folder(local):
    """A name that could lead elsewhere in the file system has no mailbox."""
    assert NO_SUCH_USER == ANYBODY.decide(Mailbox(local, "machine.example"))


@pytest.mark.parametrize("user", ["..", "a/b", ""])
def test_users_are_not_trusted_either(user):
    """A directory that was tampered with does not lead out of the folder."""
    policy = AcceptPolicy.of(["alpha.example"], [user])

    assert NO_SUCH_USER == policy.decide(Mailbox(user, "alpha.example"))


@given(
    st.text() | st.sampled_from(["..", ".", "/", "a/../..", "postmaster"]),
    st.frozensets(st.text()),
    st.booleans(),
)
def test_a_mailbox_is_a_folder_below(local, users, any_user):
    """Whatever is taken is one component of a path, and reads back as an address."""
    policy = AcceptPolicy.of(["alpha.example"], users, any_user=any_user)
    decision = policy.decide(Mailbox(local, "alpha.example"))

    if isinstance(decision, Taken):
        assert (decision.user,) == PurePosixPath(decision.user).parts
        assert decision.user not in {".", ".."}
        assert len(decision.user.encode()) <= MAX_USER
        assert any_user or decision.user in policy.users | {"postmaster"}


@given(st.emails())
def test_addresses_in_one_spelling_stay(address):
    """What was spelled once is spelled the same again, and decided the same."""
    policy = AcceptPolicy.of(["alpha.example"], [], any_user=True)
    mailbox = Mailbox(address.rpartition("@")[0], "alpha.example")
    decision = policy.decide(mailbox)

    if isinstance(decision, Taken):
        again = parse_mailbox(decision.address, smtputf8=True)
        assert decision == policy.decide(again)
        assert decision.address == policy.spelled(again)
