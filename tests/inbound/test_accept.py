import ipaddress
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.inbound.accept import (
    MAX_TARGETS,
    MAX_USER,
    NO_SUCH_USER,
    RELAYING_DENIED,
    AcceptPolicy,
    Aliased,
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
        ("Ann+Shop@alpha.test", "ann", "ann+shop@alpha.test"),
        ("ann++@alpha.test", "ann", "ann++@alpha.test"),
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
        ("eve+x@alpha.example", NO_SUCH_USER),
        ("+ann@alpha.example", NO_SUCH_USER),
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


# Aliases -------------------------------------------------------------------------------

ALIASES = {
    "sales": ("ann", "eve@x.example"),
    "team": ("sales", "bob.b", "ann@alpha.test"),
    "bob.b": ("bob.b", "bob@x.example"),
    "round": ("about", "ann"),
    "about": ("round",),
    "empty": ("nobody", "empty+x"),
    "self": ("self",),
    "wrong": ("a b@x.example", "@"),
    "tag": ("ann+tag",),
}
WITH = AcceptPolicy.of(
    ["alpha.example", "alpha.test"], ["ann", "bob.b"], aliases=ALIASES
)
CATCHING = AcceptPolicy.of(
    ["alpha.example"], ["ann"], aliases={"*": ("ann", "all@x.example")}
)


def expand(policy, recipient):
    return policy.expand(parse_mailbox(recipient))


@pytest.mark.parametrize(
    ("recipient", "addresses", "users"),
    [
        ("Sales@alpha.test", ("ann@alpha.test", "eve@x.example"), ("ann",)),
        ("sales+x@alpha.test", ("ann@alpha.test", "eve@x.example"), ("ann",)),
        (
            "team@alpha.example",
            (
                *("ann@alpha.example", "bob.b@alpha.example"),
                *("eve@x.example", "bob@x.example"),
            ),
            ("ann", "bob.b"),
        ),
        (
            "bob.b@alpha.example",
            ("bob.b@alpha.example", "bob@x.example"),
            ("bob.b",),
        ),
        ("round@alpha.example", ("ann@alpha.example",), ("ann",)),
        ("tag@alpha.example", ("ann+tag@alpha.example",), ("ann",)),
    ],
)
def test_aliases(recipient, addresses, users):
    """They are taken apart to the last; each target once, those here first."""
    assert Aliased(addresses, users) == expand(WITH, recipient)
    assert addresses == WITH.meant(parse_mailbox(recipient))


@pytest.mark.parametrize("name", ["empty", "self", "wrong", "nobody", "empty+x"])
def test_aliases_of_nobody(name):
    """One that comes to nothing is nobody."""
    assert NO_SUCH_USER == expand(WITH, f"{name}@alpha.example")


def test_aliases_elsewhere():
    """Other domains have their own."""
    assert RELAYING_DENIED == expand(WITH, "sales@x.example")
    assert ("sales@x.example",) == WITH.meant(parse_mailbox("sales@x.example"))


@pytest.mark.parametrize("name", ["anybody", "any+body", "*"])
def test_catch_all(name):
    """It takes what nobody else does."""
    expected = Aliased(("ann@alpha.example", "all@x.example"), ("ann",))

    assert expected == expand(CATCHING, f"{name}@alpha.example")


def test_not_caught():
    """Users, their subaddresses and postmaster are somebody."""
    for name, user in (("ann", "ann"), ("ann+x", "ann"), ("postmaster", "postmaster")):
        taken = Taken(user, f"{name}@alpha.example")
        assert taken == expand(CATCHING, f"{name}@alpha.example")


def test_no_end_of_targets():
    """What one address becomes is limited, however aliases are nested."""
    many = tuple(f"u{n}@x.example" for n in range(MAX_TARGETS + 5))
    decision = expand(
        AcceptPolicy.of(["a.example"], [], aliases={"x": many}), "x@a.example"
    )
    assert isinstance(decision, Aliased)

    assert MAX_TARGETS == len(decision.addresses)


NAMES = st.sampled_from(
    ["a", "b", "c", "ann", "*", "a+x", "x@y.example", "b@a.example"]
)


@given(
    st.dictionaries(NAMES.filter(lambda n: "@" not in n), st.lists(NAMES).map(tuple)),
    st.sampled_from(["a", "b", "ann", "c+x", "z"]),
)
def test_aliases_of_any_shape(aliases, name):
    """However they point at each other, it ends, and what is here has a mailbox."""
    policy = AcceptPolicy.of(["a.example"], ["ann"], aliases=aliases)
    decision = policy.expand(Mailbox(name, "a.example"))

    if isinstance(decision, Aliased):
        assert set(decision.users) <= {"ann"}
        assert len(set(decision.addresses)) == len(decision.addresses)
        for address in decision.addresses:
            here = policy.decide(parse_mailbox(address))
            assert isinstance(here, Taken) or address == "x@y.example"
