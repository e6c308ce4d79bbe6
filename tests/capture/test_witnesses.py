"""Three witnesses of a message: who dissents, who is absent, whom the capture missed."""

import ipaddress

import pytest

from tests.capture.build import ALPHA4, BETA4, NOBODY4, NORTH4, flows, mail
from vnsmail.capture import fields, received
from vnsmail.capture.fields import Origin
from vnsmail.capture.proof import Case, Sender, Verdict
from vnsmail.capture.verdict import judge_case
from vnsmail.capture.witnesses import SocketSaid, Witness

ID = "1k1bbxr13pm4za7b9rpk"
PUBLIC = "203.0.113.7"


def ip(text):
    return ipaddress.ip_address(text)


ALPHA = Sender(
    "alpha.example",
    "namespace",
    (ip(ALPHA4),),
    frozenset({ip(ALPHA4)}),
    frozenset({"alpha.example"}),
)
BETA = Sender("beta.example", "alias", (ip(BETA4),), frozenset({ip(BETA4)}))


def socket(source=ALPHA4, time=5, port=40000, message=ID):
    return SocketSaid(
        "alpha.example",
        message,
        time,
        ip(source),
        port,
        "mx1.north.example",
        ip(NORTH4),
        25,
    )


def line(address=ALPHA4, message=ID):
    text = (
        f"from alpha.example (alpha.example [{address}]) by mx1.north.example id 9; x"
    )
    return received.parse(text, "", Origin("alpha.example", message))


def proof(connections, sockets, lines, senders=(ALPHA,), **facts):
    case = Case(
        senders, lines, sockets, others=frozenset({ip(NORTH4)}), window=(0, 99), **facts
    )
    return judge_case(case, flows(*connections))


def test_all_agree():
    found = proof([mail()], [socket()], [line()])

    assert Verdict.PASS is found.verdict
    (message,) = found.messages
    assert (ID, "mx1.north.example", (), ()) == (
        message.id,
        message.remote,
        message.dissent,
        message.absent,
    )


@pytest.mark.parametrize(
    ("seen", "said", "wrote", "who"),
    [
        (ALPHA4, ALPHA4, NOBODY4, (Witness.REMOTE,)),
        (ALPHA4, NOBODY4, ALPHA4, (Witness.SOCKET,)),
        (NOBODY4, ALPHA4, ALPHA4, (Witness.PACKETS,)),
        (NOBODY4, ALPHA4, BETA4, (Witness.PACKETS, Witness.REMOTE)),
        (NOBODY4, ALPHA4, None, (Witness.PACKETS,)),
        (ALPHA4, None, BETA4, (Witness.REMOTE,)),
    ],
)
def test_who_dissents(seen, said, wrote, who):
    """Two outvote the third; of two, the one that says what is allowed is believed."""
    connection = mail(seen, "alpha.example", body_id=ID)
    found = proof(
        [connection],
        [socket(said)] if said else [],
        [line(wrote)] if wrote else [],
    )

    assert Verdict.FAIL is found.verdict
    assert who == found.messages[0].dissent
    told = f"{' and '.join(who)} dissents"
    assert any(told in problem for problem in found.hosts[0].problems)


def test_who_is_absent_is_said_and_made_up_for_by_nobody():
    found = proof([mail(body_id=ID)], [], None)

    assert Verdict.PASS is found.verdict
    assert (Witness.SOCKET, Witness.REMOTE) == found.messages[0].absent
    assert {Witness.PACKETS, Witness.SOCKET} == found.asked


def test_a_socket_that_sent_where_nobody_saw_it():
    """Mail that left by a way that was not captured is no pass."""
    found = proof([mail()], [socket(), socket(port=40001, message="other")], None)

    assert Verdict.FAIL is found.verdict
    (problem,) = found.problems
    assert "message other: its socket says it was sent from 10.77.0.11" in problem
    assert "no packet of that was captured" in problem


def test_what_was_sent_at_another_time_is_none_of_this_capture():
    late = socket(port=40001, time=100, message="other")

    assert Verdict.PASS is proof([mail()], [socket(), late], None).verdict


def test_behind_nat_the_remote_may_see_the_public_address():
    from dataclasses import replace

    from vnsmail.model import SourceCheck

    nat = replace(ALPHA, check=SourceCheck.NAT, public=frozenset({ip(PUBLIC)}))
    found = proof([mail()], [socket()], [line(PUBLIC)], (nat,))

    assert Verdict.PASS is found.verdict
    assert () == found.messages[0].dissent


def test_several_recipients_are_one_message():
    assert 1 == len(proof([mail()], [socket(), socket()], None).messages)


def test_connections_that_were_there_before_are_not_judged():
    """If the kernel knew them then, and one end is ours; nobody's are judged."""
    connection, strange = mail(), mail(NOBODY4, "evil.example")
    for each in (connection, strange):
        each.frames = each.frames[3:]
    ends = (ip(ALPHA4), 40000, ip(NORTH4), 25)
    older = frozenset({ends, (ip(NOBODY4), *ends[1:])})
    known = proof([connection, mail(client_port=40001)], None, None, older=older)
    unknown = proof([strange, mail(client_port=40001)], None, None, older=older)

    assert (1, Verdict.PASS) == (known.older, known.verdict)
    assert (0, Verdict.FAIL) == (unknown.older, unknown.verdict)


def test_some_senders_are_enough_if_so_asked():
    assert Verdict.FAIL is proof([mail()], None, None, (ALPHA, BETA)).verdict
    assert (
        Verdict.PASS is proof([mail()], None, None, (ALPHA, BETA), every=False).verdict
    )
    assert Verdict.FAIL is proof([], None, None, (ALPHA, BETA), every=False).verdict


def test_a_comment_is_no_clause():
    """What a client calls itself cannot make up an id."""
    text = "from x (by evil id 1) by alpha.example with ESMTP (id 2) id real; date"

    assert Origin("alpha.example", "real") == fields.origin(text)
    assert fields.origin("from x by alpha.example; date") is None
