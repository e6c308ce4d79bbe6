"""A capture with names, comments and keys: what tshark is given is what is read here."""

import ipaddress

from tests.capture.build import ALPHA4, NOBODY4, NORTH4, capture, mail
from tests.capture.test_witnesses import ALPHA, ID
from vnsmail.capture import annotate, evidence
from vnsmail.capture.pcapng import PcapngReader
from vnsmail.capture.proof import Case
from vnsmail.capture.verdict import judge_case

NAMES = {
    ipaddress.ip_address(ALPHA4): "alpha.example",
    ipaddress.ip_address(NORTH4): "mx1.north.example",
}


def annotated(tmp_path, *connections, key_log=b"", drops=0):
    source, target = tmp_path / "raw.pcapng", tmp_path / "told.pcapng"
    source.write_bytes(capture(*connections, drops=drops))
    found = evidence.read(source)
    proof = judge_case(Case((ALPHA,)), found.flows)
    annotate.write(source, target, proof, NAMES, key_log)
    with target.open("rb") as file:
        reader = PcapngReader(file)
        packets = list(reader)
    return packets, reader, target


def test_names_and_comments(tmp_path):
    """The SYN says whose connection it is, and MAIL which message; no packet changes."""
    packets, reader, target = annotated(tmp_path, mail(body_id=ID), drops=7)
    said = [(at, packet.comment) for at, packet in enumerate(packets) if packet.comment]

    assert NAMES == reader.names
    assert 7 == reader.drops
    assert [
        (0, "vnsmail: connection of alpha.example"),
        (
            6,
            f"vnsmail: message {ID} of alpha.example, MAIL FROM <ann@alpha.example>",
        ),
    ] == said
    assert mail(body_id=ID).frames == [packet.data for packet in packets]
    before, after = (evidence.read(f).flows for f in (tmp_path / "raw.pcapng", target))
    assert repr(before) == repr(after)


def test_what_is_wrong_stands_at_its_syn(tmp_path):
    packets, _, _ = annotated(tmp_path, mail(NOBODY4, "evil.example"))

    assert packets[0].comment.startswith(
        "vnsmail: connection of nobody here — came from"
    )


def test_keys_come_before_packets_and_are_for_their_owner_alone(tmp_path):
    keys = b"CLIENT_RANDOM 00 11\n"
    packets, reader, target = annotated(tmp_path, mail(), key_log=keys)

    assert keys == reader.key_log
    assert 0o600 == target.stat().st_mode & 0o777
    assert packets


def test_a_packet_that_passed_two_places_is_shown_once(tmp_path):
    """At the first of them; what is to be said of it goes with it."""
    from vnsmail.capture import pcapng
    from vnsmail.capture.packets import ETHERNET
    from vnsmail.capture.pcapng import CapturedPacket

    blocks = [pcapng.section_header("tests")]
    blocks += [pcapng.interface_description(name, ETHERNET) for name in ("a", "b")]
    # The later place comes first in the file, as of another ring.
    for interface, lag in ((1, 10), (0, 0)):
        for at, frame in enumerate(mail().frames):
            packet = CapturedPacket(
                frame, len(frame), at * 100 + lag, ETHERNET, interface
            )
            blocks.append(pcapng.enhanced_packet(packet))
    source, target = tmp_path / "raw", tmp_path / "told"
    source.write_bytes(b"".join(blocks))
    proof = judge_case(Case((ALPHA,)), evidence.read(source).flows)
    annotate.write(source, target, proof, NAMES)
    with target.open("rb") as file:
        packets = list(PcapngReader(file))

    assert mail().frames == [packet.data for packet in packets]
    assert {0} == {packet.interface for packet in packets}
    assert packets[0].comment == "vnsmail: connection of alpha.example"
