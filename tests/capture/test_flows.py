import dataclasses
import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.build import (
    ALPHA4,
    FROM_CLIENT,
    NORTH4,
    Connection,
    flows,
    mail,
    parsed,
)
from vnsmail.capture.flows import KEEP, RECENT, Assembler, Stream
from vnsmail.capture.packets import ACK, RST, SYN, Packet

CLIENT, SERVER = ipaddress.ip_address(ALPHA4), ipaddress.ip_address(NORTH4)


def packet(sequence=0, payload=b"", **facts):
    facts = {"source_port": 40000, "destination_port": 25, "flags": ACK} | facts
    return Packet(
        CLIENT,
        facts.pop("source_port"),
        SERVER,
        facts.pop("destination_port"),
        sequence=sequence % 2**32,
        payload=payload,
        length=facts.pop("length", len(payload)),
        fingerprint=facts.pop("fingerprint", hash((sequence, payload))),
        **facts,
    )


def pieces(data, draw):
    """Cut data into segments that overlap, repeat and come in any order."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=8))
    ends = sorted({0, *cuts, len(data)})
    found = list(itertools.pairwise(ends))
    more = st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))
    found += [tuple(sorted(pair)) for pair in draw(st.lists(more, max_size=5))]
    return draw(st.permutations(found))


@given(
    st.data(),
    st.one_of(
        st.binary(max_size=300),
        st.integers(KEEP - 20, KEEP + 20).map(
            lambda n: bytes(i % 251 for i in range(n))
        ),
    ),
    st.integers(0, 2**32 - 1),
)
def test_any_order_gives_the_same_stream(source, data, first):
    """Reordered, repeated and overlapping segments give what was sent."""
    stream = Stream(first)
    for start, end in pieces(data, source.draw):
        stream.add((first + start) % 2**32, data[start:end], end - start)

    assert data[:KEEP] == stream.head
    assert len(data) == stream.length
    assert not stream.has_hole


@given(st.integers(1, KEEP - 20), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_a_hole_ends_the_stream(at, size, first):
    """What comes behind missing octets is not put in their place."""
    stream = Stream(first)
    stream.add(first, b"a" * at, at)
    stream.add((first + at + size) % 2**32, b"b" * 10, 10)

    assert b"a" * at == stream.head
    assert stream.has_hole


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=50), st.integers(0, 90))
    )
)
def test_no_segments_take_more_memory_than_kept(segments):
    """Whatever numbers are sent, what is held stays small."""
    stream = Stream(5)
    for sequence, payload, more in segments:
        stream.add(sequence, payload, len(payload) + more)

    assert len(stream.head) <= KEEP
    assert len(stream._early) in {0, KEEP}


def test_short_captures_leave_a_hole():
    """Octets that were not recorded are missing, not skipped."""
    stream = Stream(0)
    stream.add(0, b"EHLO al", 20)
    stream.add(20, b"MAIL", 4)

    assert b"EHLO al" == stream.head
    assert stream.has_hole


def test_a_probe_repeats_the_octet_before_the_first():
    """Keep-alive probes (RFC 9293 section 3.8.4) add nothing to what was said."""
    stream = Stream(0)
    stream.add(2**32 - 1, b"x", 1)
    stream.add(0, b"EHLO", 4)

    assert b"EHLO" == stream.head
    assert 4 == stream.length


def test_a_connection_from_end_to_end():
    (flow,) = flows(mail())

    assert (CLIENT, 40000, SERVER, 25) == (
        flow.client,
        flow.client_port,
        flow.server,
        flow.server_port,
    )
    assert FROM_CLIENT == flow.packets
    assert flow.accepted
    assert not flow.refused
    assert flow.said.startswith(b"EHLO alpha.example\r\n")
    assert flow.said.endswith(b"QUIT\r\n")
    assert flow.answered.startswith(b"220 ")


@given(st.data())
def test_order_and_repetition_of_packets(source):
    """Behind the handshake, the order in which packets are captured changes nothing."""
    syn, syn_ack, *rest = mail().frames
    many = source.draw(st.lists(st.sampled_from(rest), max_size=5))
    assembler = Assembler()
    for frame in [syn, syn_ack, *source.draw(st.permutations([*rest, *many]))]:
        assembler.add(parsed(frame))
    (expected,), (flow,) = flows(mail()), assembler.flows

    assert (expected.said, expected.answered) == (flow.said, flow.answered)
    assert flow.accepted
    assert expected.packets + expected.answers + len(many) == (
        flow.packets + flow.answers
    )


def test_a_port_used_again_is_another_connection():
    found = flows(mail(), mail(name="beta.example", at_client=90000))

    assert [FROM_CLIENT, FROM_CLIENT] == [flow.packets for flow in found]
    assert [b"EHLO alpha", b"EHLO beta."] == [flow.said[:10] for flow in found]


def test_a_port_used_again_with_the_same_number():
    """Once data was sent, a SYN is a new one, whatever its number."""
    found = flows(mail(), mail(name="beta.example"))

    assert [b"EHLO alpha", b"EHLO beta."] == [flow.said[:10] for flow in found]


def test_a_repeated_syn_is_the_same_connection():
    connection = Connection()
    connection.from_client(SYN)
    connection.at_client -= 1
    (flow,) = flows(connection.open())

    assert 3 == flow.packets
    assert flow.accepted


def test_a_syn_ack_for_another_syn_does_not_count():
    connection = Connection()
    connection.from_client(SYN)
    connection.at_client += 5
    connection.from_server(SYN | ACK)
    (flow,) = flows(connection)

    assert not flow.accepted


def test_sequence_numbers_start_over():
    (flow,) = flows(mail(at_client=2**32 - 5, at_server=2**32 - 1))

    assert flow.accepted
    assert flow.said.endswith(b"QUIT\r\n")
    assert flow.answered.endswith(b"221 bye\r\n")


def test_refused():
    connection = Connection()
    connection.from_client(SYN)
    (flow,) = flows(connection.reset())

    assert flow.refused
    assert not flow.accepted
    assert 1 == flow.packets


def test_a_connection_that_began_before_the_capture():
    connection = mail()
    connection.frames = connection.frames[3:]
    (flow,) = flows(connection)

    assert flow.initial is None
    assert not flow.accepted
    assert flow.said.startswith(b"EHLO alpha")


def test_other_ports_are_left_out():
    assert [] == flows(mail(server_port=80))


def test_ports_asked_for():
    assembler = Assembler(ports=(2525,))
    for frame in mail(server_port=2525).frames:
        assembler.add(parsed(frame))

    assert 1 == len(assembler.flows)


@pytest.mark.parametrize("begin", [0, 3])
def test_between_two_smtp_ports(begin):
    """Port 25 to port 25: who sent the SYN, or else the first packet, is the client."""
    connection = mail(client_port=25)
    del connection.frames[:begin]
    if begin:
        del connection.frames[0]
    (flow,) = flows(connection)

    assert CLIENT == flow.client
    assert flow.said.startswith(b"EHLO")


def test_a_syn_ack_alone_is_an_answer():
    connection = Connection(client_port=25)
    connection.from_server(SYN | ACK)
    (flow,) = flows(connection)

    assert CLIENT == flow.client
    assert 0 == flow.packets


def test_seen_at_two_places():
    """A packet seen on two links, or both ways on one, counts once."""
    assembler = Assembler()
    for frame in mail().frames:
        for place in ("lan0", "veth0"):
            assembler.add(parsed(frame), place=place)
    (flow,) = assembler.flows

    assert FROM_CLIENT == flow.packets
    assert len(mail().frames) == assembler.repeated


def test_sent_twice_counts_twice():
    """A retransmission is a packet of its own, as it would be for the guard."""
    assembler = Assembler()
    assembler.add(packet(flags=SYN), place="lan0")
    assembler.add(packet(flags=SYN), place="lan0")

    assert 2 == assembler.flows[0].packets
    assert 0 == assembler.repeated


def test_memory_of_places_is_bounded():
    assembler = Assembler()
    for number in range(RECENT + 10):
        assembler.add(packet(number, fingerprint=number))

    assert RECENT == len(assembler._recent)


def test_fragments_are_counted():
    assembler = Assembler()
    assembler.add(packet(flags=SYN))
    fragment = dataclasses.replace(packet(), is_fragment=True)
    assembler.add(fragment)
    back = dataclasses.replace(
        fragment,
        source=SERVER,
        source_port=25,
        destination=CLIENT,
        destination_port=40000,
    )
    assembler.add(back)
    (flow,) = assembler.flows

    assert (2, 1, 2) == (flow.packets, flow.answers, flow.fragments)


def test_a_stray_reset_belongs_to_its_connection():
    """What comes behind the end is still a packet of that connection."""
    connection = mail()
    connection.from_client(RST)
    (flow,) = flows(connection)

    assert FROM_CLIENT + 1 == flow.packets
