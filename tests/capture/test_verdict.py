"""Every way of being right or wrong, made of packets."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.build import (
    ALPHA4,
    ALPHA6,
    BETA4,
    FROM_CLIENT,
    MACHINE4,
    NOBODY4,
    NORTH4,
    NORTH6,
    Connection,
    flows,
    mail,
)
from vnsmail.capture.packets import ACK, SYN
from vnsmail.capture.received import parse
from vnsmail.capture.verdict import Sender, Verdict, judge
from vnsmail.model import SourceCheck


def addresses(*texts):
    return tuple(ipaddress.ip_address(text) for text in texts)


ALPHA = Sender(
    "alpha.example",
    "namespace",
    addresses(ALPHA4, ALPHA6),
    frozenset(addresses(ALPHA4, ALPHA6, "10.77.0.21")),
    frozenset({"alpha.example", "alpha.test"}),
)
BETA = Sender(
    "beta.example",
    "alias",
    addresses(BETA4),
    frozenset(addresses(BETA4)),
    frozenset({"beta.example"}),
)
MACHINE = Sender(
    "machine.example",
    "machine",
    addresses(MACHINE4),
    frozenset(addresses(MACHINE4)),
    frozenset({"machine.example"}),
)
SENDERS = (MACHINE, ALPHA, BETA)
OTHERS = frozenset(addresses(NORTH4, NORTH6))

MACHINE_MAIL = mail(MACHINE4, "machine.example")
BETA_MAIL = mail(BETA4, "beta.example")
RIGHT = (mail(), BETA_MAIL, MACHINE_MAIL)


def prove(*connections, received=None, others=OTHERS, damage=()):
    lines = None if received is None else [parse(text, "north") for text in received]
    return judge(SENDERS, flows(*connections), lines, others=others, damage=damage)


def of(proof, sender=ALPHA):
    (found,) = [host for host in proof.hosts if host.sender is sender]
    return found


def line(name, address):
    literal = f"IPv6:{address}" if ":" in address else address
    return f"from {name} ({name} [{literal}]) by mx1.north.example with ESMTP id 1; now"


def test_all_is_right():
    """Each sender from its own address, every SYN answered: pass."""
    proof = prove(*RIGHT)

    assert Verdict.PASS == proof.verdict
    assert () == proof.problems
    assert 3 == len(proof.hosts)
    for host in proof.hosts:
        assert Verdict.PASS == host.verdict
        assert () == host.problems
        assert FROM_CLIENT == host.packets
        assert 0 == host.wrong
        assert host.sender.expected[:1] == host.seen
        assert (host.sender.name,) == host.helo == host.mail_from


def test_both_families():
    proof = prove(*RIGHT, mail(ALPHA6, server=NORTH6))

    assert Verdict.PASS == proof.verdict
    assert addresses(ALPHA4, ALPHA6) == of(proof).seen
    assert 2 * FROM_CLIENT == of(proof).packets


@pytest.mark.parametrize(
    ("source", "name", "sender", "words"),
    [
        (NOBODY4, "alpha.example", ALPHA, "an address of nobody here"),
        (BETA4, "alpha.example", ALPHA, "the address of beta.example"),
        (MACHINE4, "alpha.example", ALPHA, "the address of the machine"),
        (ALPHA4, "machine.example", MACHINE, "the address of alpha.example"),
        (
            "10.77.0.21",
            "alpha.example",
            ALPHA,
            "an address of its own that it does not",
        ),
    ],
)
def test_wrong_source(source, name, sender, words):
    """Every packet from client to server counts as wrong, and words say whose it is."""
    proof = prove(*RIGHT, mail(source, name, client_port=50000))
    host = of(proof, sender)

    assert Verdict.FAIL == proof.verdict == host.verdict
    assert FROM_CLIENT == host.wrong
    assert 2 * FROM_CLIENT == host.packets
    assert ipaddress.ip_address(source) in host.seen
    (problem,) = host.problems
    assert problem.startswith(
        f"1 connection ({FROM_CLIENT} packets) came from {source}"
    )
    assert words in problem
    assert str(sender.expected[0]) in problem


def test_whoever_lent_its_address_fails_too():
    proof = prove(*RIGHT, mail(BETA4, "alpha.example", client_port=50000))

    words = "of alpha.example came from its address"
    expected = f"1 connection ({FROM_CLIENT} packets) {words} {BETA4}"
    assert (expected,) == of(proof, BETA).problems
    assert Verdict.FAIL == of(proof, BETA).verdict
    assert Verdict.PASS == of(proof, MACHINE).verdict


def test_many_wrong_connections_are_one_sentence():
    wrong = [mail(NOBODY4, client_port=port) for port in range(50000, 50020)]
    host = of(prove(*RIGHT, *wrong))

    assert 20 * FROM_CLIENT == host.wrong
    assert host.problems[0].startswith(f"20 connections ({20 * FROM_CLIENT} packets) ")
    assert 1 == len(host.problems)


def test_name_of_nobody_from_a_sender_s_address():
    proof = prove(*RIGHT, mail(ALPHA4, "other.example", client_port=50000))

    assert Verdict.FAIL == of(proof).verdict
    assert "said other.example" in of(proof).problems[0]
    assert "MAIL FROM <ann@other.example>" in of(proof).problems[0]


def test_two_names():
    """One connection that speaks for two senders is right for neither."""
    connection = Connection().open().answers("220 mx\n")
    connection.says("EHLO alpha.example\n").answers("250 ok\n")
    connection.says("EHLO beta.example\n").answers("250 ok\n")
    proof = prove(*RIGHT, connection)

    assert "said more than one name" in of(proof).problems[0]
    assert Verdict.FAIL == of(proof, BETA).verdict


def test_mail_of_another_sender():
    """Right address and name, but it carries another sender's mail."""
    proof = prove(*RIGHT, mail(sender="ann@beta.example", client_port=50000))
    (problem,) = of(proof).problems

    assert "carried mail from beta.example, which is beta.example's" in problem


@pytest.mark.parametrize("sender", ["", "ann@alpha.test", "ann@elsewhere.example"])
def test_mail_of_nobody_else_here(sender):
    """Bounces, further domains and forwarded mail are no offence."""
    proof = prove(*RIGHT, mail(sender=sender, client_port=50000))

    assert Verdict.PASS == proof.verdict


def test_another_name_than_its_own():
    """A host that is to say another name is known by that one, and by no other."""
    alpha = replace(ALPHA, helo="mx.alpha.test")
    senders = (MACHINE, alpha, BETA)

    def prove_it(name):
        connections = flows(mail(name=name), BETA_MAIL, MACHINE_MAIL)
        lines = [parse(line(name, ALPHA4), "north")]
        return of(judge(senders, connections, lines, others=OTHERS), alpha)

    assert Verdict.PASS == prove_it("mx.alpha.test").verdict
    assert Verdict.FAIL == prove_it("alpha.example").verdict


PUBLIC = "203.0.113.7"
BEHIND = replace(
    ALPHA, check=SourceCheck.NAT, public=frozenset(addresses(PUBLIC, MACHINE4))
)


def behind_nat(*connections, sender=BEHIND, received=None):
    lines = None if received is None else [parse(text, "north") for text in received]
    found = flows(*connections, BETA_MAIL, MACHINE_MAIL)
    proof = judge((MACHINE, sender, BETA), found, lines, others=OTHERS)
    return proof, of(proof, sender)


@pytest.mark.parametrize("seen", [PUBLIC, MACHINE4, ALPHA4])
def test_nat(seen):
    """Its own address up to the uplink is proof, whatever of it the remote saw."""
    said = [
        line("alpha.example", seen),
        line("beta.example", BETA4),
        line("machine.example", MACHINE4),
    ]
    proof, host = behind_nat(mail(), received=said)

    assert (Verdict.PASS, Verdict.PASS) == (proof.verdict, host.verdict)


def test_nat_seen_on_both_sides():
    """What came out of the router is no other mail, and wrong it is not."""
    proof, host = behind_nat(
        mail(), mail(ALPHA6, server=NORTH6), mail(PUBLIC), mail(MACHINE4)
    )
    assert (Verdict.PASS, 0) == (proof.verdict, host.wrong)

    more = behind_nat(mail(), mail(PUBLIC), mail(MACHINE4))
    assert Verdict.FAIL == more[1].verdict


def test_nat_seen_behind_it_only():
    """What nobody saw before the router may have been bound to anything: no pass."""
    proof, host = behind_nat(mail(PUBLIC), received=[line("alpha.example", PUBLIC)])

    assert (Verdict.FAIL, Verdict.FAIL) == (proof.verdict, host.verdict)
    assert f"came from its public address {PUBLIC}: nothing shows" in host.problems[0]


@pytest.mark.parametrize("source", [BETA4, NOBODY4])
def test_nat_from_elsewhere(source):
    """An address that is neither its own nor its public one is wrong as ever."""
    _, host = behind_nat(mail(), mail(source))
    _, told = behind_nat(mail(), received=[line("alpha.example", source)])

    assert (Verdict.FAIL, Verdict.FAIL) == (host.verdict, told.verdict)
    assert FROM_CLIENT == host.wrong


def test_a_public_address_is_nothing_to_a_strict_host():
    """Only who is said to be behind NAT may be seen there."""
    strict = replace(BEHIND, check=SourceCheck.STRICT)

    assert Verdict.FAIL == behind_nat(mail(), mail(PUBLIC), sender=strict)[1].verdict


def test_nobody_s_connection_from_a_public_address():
    """It is told whose the address is, and the proof fails."""
    proof, _ = behind_nat(mail(), mail(PUBLIC, "who.example"))

    assert Verdict.FAIL == proof.verdict
    assert f"the public address of {ALPHA.name}" in proof.problems[0]


def test_source_check_off():
    """Nothing is judged of it; what it does to others is, and off alone is no pass."""
    off = replace(ALPHA, check=SourceCheck.OFF)
    proof, host = behind_nat(mail(NOBODY4), sender=off)
    stolen, _ = behind_nat(mail(BETA4), sender=off)
    alone = judge((off,), flows(mail()), None)

    assert (Verdict.PASS, Verdict.OFF, ()) == (
        proof.verdict,
        host.verdict,
        host.problems,
    )
    assert Verdict.FAIL == of(stolen, BETA).verdict
    assert (Verdict.FAIL, Verdict.FAIL) == (stolen.verdict, alone.verdict)


def test_cut_before_ehlo():
    """An accepted connection that names nobody proves nothing: fail."""
    proof = prove(*RIGHT, Connection(client_port=50000).open().answers("220 mx\n"))
    (problem,) = of(proof).problems

    assert Verdict.FAIL == of(proof).verdict
    assert "had no EHLO: nothing shows who made them" in problem


def test_cut_in_the_middle_of_the_name():
    connection = Connection(client_port=50000).open().answers("220 mx\n")
    proof = prove(*RIGHT, connection.says("EHLO alpha.exa"))

    assert Verdict.FAIL == of(proof).verdict


def refused():
    connection = Connection(client_port=50000)
    connection.from_client(SYN)
    return connection.reset()


def unanswered():
    connection = Connection(client_port=50000)
    connection.from_client(SYN)
    return connection


def turned_away():
    connection = Connection(client_port=50000).open().answers("421 too busy\n")
    return connection.says("QUIT\n").close()


@pytest.mark.parametrize("make", [refused, unanswered, turned_away])
def test_attempts_carry_no_mail(make):
    """A server that is down or busy makes no proof fail; the attempt is noted."""
    proof = prove(*RIGHT, make())

    assert Verdict.PASS == proof.verdict
    assert 1 == of(proof).attempts
    assert FROM_CLIENT == of(proof).packets


def test_attempt_from_an_address_of_nobody():
    """Nothing excuses it: a wrong source is often never answered."""
    connection = Connection(NOBODY4)
    connection.from_client(SYN)
    proof = prove(*RIGHT, connection)

    assert Verdict.FAIL == proof.verdict
    words = "an address of nobody here, and had no EHLO"
    assert (f"1 connection (1 packet) came from {NOBODY4}, {words}",) == proof.problems
    assert all(host.verdict is Verdict.PASS for host in proof.hosts)


def test_attempts_alone_are_no_mail():
    proof = prove(BETA_MAIL, MACHINE_MAIL, refused())

    assert Verdict.NO_MAIL == of(proof).verdict
    assert Verdict.FAIL == proof.verdict


def test_unattributed():
    proof = prove(*RIGHT, mail(NOBODY4, "other.example"))

    assert Verdict.FAIL == proof.verdict
    assert "said other.example" in proof.problems[0]
    assert f"came from {NOBODY4}" in proof.problems[0]


@pytest.mark.parametrize(
    "connection",
    [
        mail(NORTH4, "mx1.north.example", server=ALPHA4),
        mail(NORTH4, "alpha.example", server=NOBODY4),
        mail(NOBODY4, "other.example", server=ALPHA4),
        Connection(NOBODY4, ALPHA4).open(),
        Connection(NORTH4, NOBODY4).open(),
    ],
)
def test_strangers_are_not_judged(connection):
    """Mail coming in, and what is known to be somebody else's."""
    proof = prove(*RIGHT, connection)

    assert Verdict.PASS == proof.verdict
    assert 1 == proof.strangers


def test_stranger_with_a_sender_s_name_and_an_unknown_address():
    """It may be a stranger's lie or our leak; nobody can tell, so it fails."""
    proof = prove(*RIGHT, mail(NOBODY4, "alpha.example", server=BETA4))

    assert FROM_CLIENT == of(proof).wrong
    assert Verdict.FAIL == proof.verdict


def test_a_sender_s_address_is_never_somebody_else_s():
    """An address given as known to be another's does not hide a sender's mail."""
    proof = prove(
        *RIGHT, mail(ALPHA4, "beta.example"), others=frozenset(addresses(ALPHA4))
    )

    assert Verdict.FAIL == proof.verdict
    assert FROM_CLIENT == of(proof, BETA).wrong


def test_began_before_the_capture():
    connection = mail(client_port=50000)
    del connection.frames[:3]
    proof = prove(*RIGHT, connection)

    assert "no SYN was seen" in of(proof).problems[0]


def test_began_before_the_capture_and_names_nobody():
    connection = mail(client_port=50000)
    del connection.frames[:5]
    proof = prove(*RIGHT, connection)

    assert "began before the capture did" in of(proof).problems[0]
    assert Verdict.FAIL == of(proof).verdict


def test_syn_that_was_not_answered_there():
    connection = mail(client_port=50000)
    del connection.frames[1]
    proof = prove(*RIGHT, connection)

    assert "had no SYN-ACK" in of(proof).problems[0]


def test_fragments():
    found = flows(*RIGHT)
    found[0].fragments = 1
    proof = judge(SENDERS, found, others=OTHERS)

    assert "in pieces" in of(proof).problems[0]


def test_no_mail():
    """Silence is no pass, neither the sender's nor the whole's."""
    proof = prove(BETA_MAIL, MACHINE_MAIL)

    assert Verdict.NO_MAIL == of(proof).verdict
    assert Verdict.FAIL == proof.verdict
    assert () == of(proof).problems == proof.problems


def test_a_greeting_is_no_mail():
    connection = Connection().open().answers("220 mx\n").says("EHLO alpha.example\n")
    proof = prove(BETA_MAIL, MACHINE_MAIL, connection.answers("250 ok\n").close())

    assert Verdict.NO_MAIL == of(proof).verdict
    assert ("alpha.example",) == of(proof).helo


def test_encrypted_mail():
    """Behind STARTTLS the name is proven, and mail is taken for granted."""
    connection = Connection().open().answers("220 mx\n").says("EHLO alpha.example\n")
    connection.answers("250 ok\n").says("STARTTLS\n").answers("220 go\n")
    connection.from_client(ACK, b"\x16\x03\x01")
    proof = prove(BETA_MAIL, MACHINE_MAIL, connection)

    assert Verdict.PASS == proof.verdict


def test_nobody_is_no_pass():
    assert Verdict.FAIL == judge((), ()).verdict


def test_lost_packets():
    """What was not recorded may have been wrong: nobody passes."""
    proof = prove(*RIGHT, damage=("the capture lost packets: 3 were dropped",))

    assert Verdict.FAIL == proof.verdict
    assert proof.problems == ("the capture lost packets: 3 were dropped",)
    for host in proof.hosts:
        assert Verdict.FAIL == host.verdict
        assert proof.problems == host.problems


LINES = (
    line("alpha.example", ALPHA4),
    line("beta.example", BETA4),
    line("machine.example", MACHINE4),
)


def test_remotes_agree():
    proof = prove(*RIGHT, received=LINES)

    assert Verdict.PASS == proof.verdict
    assert (LINES[0],) == of(proof).received


def test_a_line_for_each_address():
    lines = [*LINES, LINES[0], line("alpha.example", ALPHA6)]
    proof = prove(*RIGHT, mail(ALPHA6, server=NORTH6), received=lines)

    assert Verdict.PASS == proof.verdict
    assert (LINES[0], lines[-1]) == of(proof).received


def test_no_remote_names_it():
    proof = prove(*RIGHT, received=LINES[1:])

    assert ("no remote's Received line names alpha.example",) == of(proof).problems
    assert Verdict.FAIL == proof.verdict


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (line("alpha.example", NOBODY4), f"alpha.example at {NOBODY4}"),
        (line("alpha.example", BETA4), f"alpha.example at {BETA4}"),
        (line("alpha.example", "10.77.0.21"), "alpha.example at 10.77.0.21"),
        (line("other.example", ALPHA4), f"other.example at {ALPHA4}"),
        (line("beta.example", ALPHA4), f"beta.example at {ALPHA4}"),
        ("from alpha.example by mx1.north.example; now", "alpha.example at no address"),
    ],
)
def test_a_remote_contradicts(wrong, words):
    """One wrong line outweighs all right ones."""
    proof = prove(*RIGHT, received=[*LINES, wrong])
    host = of(proof)

    assert Verdict.FAIL == host.verdict
    assert (f"mx1.north.example wrote down {words}",) == host.problems
    assert (wrong,) == host.received


def test_lines_of_strangers():
    lines = [*LINES, line("other.example", NOBODY4), "by mx1.north.example; a bounce"]

    assert Verdict.PASS == prove(*RIGHT, received=lines).verdict


def test_without_mail_no_line_is_missed():
    assert (
        Verdict.NO_MAIL
        == of(prove(BETA_MAIL, MACHINE_MAIL, received=LINES[1:])).verdict
    )


NAMES = ["alpha.example", "beta.example", "machine.example", "other.example", ""]
SOURCES = [ALPHA4, BETA4, MACHINE4, NOBODY4, NORTH4]
OWNED = {"alpha.example": ALPHA4, "beta.example": BETA4, "machine.example": MACHINE4}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(SOURCES), st.sampled_from(NAMES), st.sampled_from(SOURCES)
        ),
        max_size=6,
    )
)
def test_pass_means_that_nothing_was_wrong(connections):
    """Whatever else is captured: a pass has no name at an address not its own."""
    made = [
        mail(source, name, server=server, client_port=50000 + number)
        for number, (source, name, server) in enumerate(connections)
    ]
    proof = prove(*RIGHT, *made)
    wrong = {
        name
        for source, name, _ in connections
        if name in OWNED and OWNED[name] != source and source != NORTH4
    }

    assert wrong == {host.sender.name for host in proof.hosts if host.wrong}
    if proof.verdict is Verdict.PASS:
        assert not wrong
        assert all(
            OWNED.get(name) == source or source == NORTH4 or server in OWNED.values()
            for source, name, server in connections
        )
