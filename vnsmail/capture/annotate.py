"""A capture with what is known of it written in, for people who look at it in Wireshark.

Names of addresses; what each connection is, at its SYN; which message, at its MAIL; and,
when asked, the keys of TLS sessions. The packets are as they were captured, in order of
time, and each once: one that passed several places is shown at the first, or Wireshark
would take the others for retransmissions.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from vnsmail import __version__
from vnsmail.capture import pcap, pcapng
from vnsmail.capture.evidence import open_reader, place
from vnsmail.capture.flows import RECENT
from vnsmail.capture.packets import parse
from vnsmail.capture.pcapng import CapturedPacket
from vnsmail.capture.proof import Connection, Proof
from vnsmail.errors import BadInput, StateUnusable
from vnsmail.model import IPAddress

MAX_SORTED = 512 * 1024 * 1024
"""Octets of a capture that is put in order of time. A larger one stays as it is."""

TOGETHER = 1000
"""Packets written at a time."""


def comments(proof: Proof) -> dict[int, str]:
    """Return what to say of packets, by their number in the capture."""
    ids: dict[int, list[str]] = {}
    for message in proof.messages:
        if message.flow is not None and message.id:
            ids.setdefault(id(message.flow), []).append(message.id)
    found: dict[int, str] = {}
    for each in proof.connections:
        for number, text in _of(each, ids.get(id(each.flow), [])):
            found[number] = f"{found[number]}; {text}" if number in found else text
    return found


def _of(connection: Connection, ids: list[str]) -> list[tuple[int, str]]:
    flow, said = connection.flow, connection.said
    who = connection.sender or "nobody here"
    if connection.stranger:
        who = "a stranger"
    problem = "".join(f" — {text}" for text in connection.problems)
    found = [(flow.first, f"vnsmail: connection of {who}{problem}")]
    if flow.sent is None:
        return found
    untold = [each for each in ids if each not in _known(connection)]
    for each in said.transactions:
        name = each.origin.id if each.origin else (untold.pop(0) if untold else "")
        message = f"message {name}" if name else "a message"
        text = f"vnsmail: {message} of {who}, MAIL FROM <{each.sender}>"
        found.append((flow.sent.packet_of(each.at), text))
    if said.tls_at is not None:
        behind = f": {', '.join(untold)}" if untold else ""
        number = flow.sent.packet_of(said.tls_at)
        found.append((number, f"vnsmail: messages of {who} behind TLS{behind}"))
    return found


def _known(connection: Connection) -> set[str]:
    return {each.origin.id for each in connection.said.transactions if each.origin}


def write(
    source: Path,
    target: Path,
    proof: Proof,
    names: Mapping[IPAddress, str],
    key_log: bytes = b"",
) -> None:
    """Write a capture anew, with what is known.

    Args:
        source: what was captured, as pcapng or pcap.
        target: made anew, mode 0600 where there are keys.
        proof: the verdict on it.
        names: of addresses.
        key_log: keys of TLS sessions, as lines of SSLKEYLOGFILE; empty: none.

    Raises:
        BadInput: the target cannot be written.
        StateUnusable: no room for all of it; nothing is left.
    """
    half = target.with_name(f"{target.name}.new")
    try:
        with source.open("rb") as file, half.open("xb") as out:
            if key_log:
                half.chmod(0o600)
            reader = open_reader(source, file)
            packets = list(enumerate(reader, 1))
            if source.stat().st_size <= MAX_SORTED:
                packets.sort(key=lambda pair: pair[1].time)
            out.write(_head(reader, packets, names, key_log))
            shown = _each_once(packets, comments(proof))
            for start in range(0, len(shown), TOGETHER):
                blocks = shown[start : start + TOGETHER]
                out.write(b"".join(_block(packet, said) for packet, said in blocks))
            out.write(_statistics(reader, packets))
        half.rename(target)
    except FileExistsError:
        raise BadInput("file", str(half), "it is in the way; remove it") from None
    except OSError as error:
        half.unlink(missing_ok=True)
        problem = (error.strerror or str(error)).lower()
        raise StateUnusable(str(target), problem, "name another file") from None


_Numbered = list[tuple[int, CapturedPacket]]


def _each_once(
    packets: _Numbered, remarks: Mapping[int, str]
) -> list[tuple[CapturedPacket, str]]:
    """Return the packets with what is to be said of them; of copies, the first."""
    shown: list[tuple[CapturedPacket, str]] = []
    first: OrderedDict[int, tuple[object, int]] = OrderedDict()
    for number, captured in packets:
        remark = remarks.get(number, "")
        packet = parse(captured.data, captured.link_type)
        if packet is not None and not packet.is_fragment:
            where = place(captured)
            seen = first.setdefault(packet.fingerprint, (where, len(shown)))
            if seen[0] != where:
                if remark:
                    shown[seen[1]] = (shown[seen[1]][0], remark)
                continue
            if len(first) > RECENT:
                first.popitem(last=False)
        shown.append((captured, remark))
    return shown


def _head(
    reader: pcapng.PcapngReader | pcap.PcapReader,
    packets: _Numbered,
    names: Mapping[IPAddress, str],
    key_log: bytes,
) -> bytes:
    kinds = {packet.interface: packet.link_type for _, packet in packets}
    interfaces = getattr(reader, "interfaces", None) or ["capture"]
    descriptions = getattr(reader, "descriptions", None) or [""]
    blocks = [pcapng.section_header(f"vnsmail {__version__}")]
    blocks += [
        pcapng.interface_description(
            name or f"interface {at}", kinds.get(at, 1), 0, text
        )
        for at, (name, text) in enumerate(zip(interfaces, descriptions, strict=True))
    ]
    if key_log:
        blocks.append(pcapng.decryption_secrets(key_log))
    known = dict(getattr(reader, "names", {})) | dict(names)
    if known:
        blocks.append(pcapng.name_resolution(known))
    return b"".join(blocks)


def _block(packet: CapturedPacket, remark: str) -> bytes:
    said = "; ".join(filter(None, (packet.comment, remark)))
    parts = pcapng.packet_parts(
        packet.interface,
        packet.time,
        packet.length,
        packet.data,
        packet.direction,
        said,
    )
    return b"".join(parts)


def _statistics(
    reader: pcapng.PcapngReader | pcap.PcapReader, packets: _Numbered
) -> bytes:
    """Return what the capture says of packets that it lost, if it does."""
    lost = getattr(reader, "lost", {})
    time = packets[-1][1].time if packets else 0
    counts: dict[int, int] = {}
    for _, packet in packets:
        counts[packet.interface] = counts.get(packet.interface, 0) + 1
    return b"".join(
        pcapng.interface_statistics(time, counts.get(at, 0) + drops, drops, at)
        for at, drops in lost.items()
    )
