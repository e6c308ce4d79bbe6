"""A proof as values for programs, and as words for people. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vnsmail.capture.proof import Connection, Judged, Proof, Verdict
from vnsmail.capture.witnesses import Testimony, Witness
from vnsmail.model import IPAddress


@dataclass(frozen=True, slots=True)
class Stopped:
    """What the kernel stopped of a host, since its rules were made."""

    dropped_packets: int
    borrowed_packets: int


@dataclass(frozen=True, slots=True)
class Report:
    """A proof with what it is of."""

    proof: Proof
    file: str
    """The capture, for people."""
    packets: int = 0
    drops: int | None = None
    cut_off: bool = False
    began: int = 0
    """Nanoseconds since the epoch; 0: no packet was captured."""
    ended: int = 0
    interfaces: tuple[str, ...] = ()
    names: Mapping[IPAddress, str] = field(default_factory=dict)
    """Names of addresses."""
    stopped: Mapping[str, Stopped] = field(default_factory=dict)

    @property
    def dissents(self) -> tuple[Testimony, ...]:
        """Return the messages whose witnesses do not agree."""
        return tuple(each for each in self.proof.messages if each.dissent)

    def absent(self, witness: Witness) -> int:
        """Return of how many messages with an id a witness that was asked said nothing."""
        if witness not in self.proof.asked:
            return 0
        return sum(witness in m.absent and bool(m.id) for m in self.proof.messages)

    def name(self, address: IPAddress) -> str:
        """Return what an address is called, or how it is written."""
        return self.names.get(address, str(address))


def described(report: Report) -> dict[str, object]:
    """Return the report as it is written as JSON (docs/reference/cli.md)."""
    proof = report.proof
    asked = Witness.REMOTE in proof.asked
    return {
        "verdict": proof.verdict,
        "file": report.file,
        "hosts": [
            _host(host, report.stopped.get(host.sender.name), asked=asked)
            for host in proof.hosts
        ],
        "problems": proof.problems,
        "drops": report.drops,
        "strangers": proof.strangers,
        "older": proof.older,
        "packets": report.packets,
        "began": moment(report.began),
        "ended": moment(report.ended),
        "interfaces": report.interfaces,
        "witnesses": sorted(proof.asked),
        "messages": [_message(each) for each in proof.messages],
        "connections": [_connection(each) for each in proof.connections],
    }


def _host(host: Judged, stopped: Stopped | None, *, asked: bool) -> dict[str, object]:
    return {
        "name": host.sender.name,
        "context": host.sender.context,
        "expected": [str(address) for address in host.sender.expected],
        "seen": [str(address) for address in host.seen],
        "packets": host.packets,
        "wrong": host.wrong,
        "helo": host.helo,
        "mail_from": host.mail_from,
        "attempts": host.attempts,
        "received": "\n".join(host.received) if asked else None,
        "verdict": host.verdict,
        "problems": host.problems,
        "source_check": host.sender.check,
        "dropped_packets": stopped.dropped_packets if stopped else None,
        "borrowed_packets": stopped.borrowed_packets if stopped else None,
    }


def _message(each: Testimony) -> dict[str, object]:
    said = {
        witness.value: [str(address) for address in each.said[witness]]
        for witness in each.said
    }
    return {
        "sender": each.sender,
        "id": each.id,
        "remote": each.remote,
        "time": moment(each.time),
        "packets": said.get("packets"),
        "socket": said.get("socket"),
        "received": said.get("remote"),
        "dissent": each.dissent,
        "absent": each.absent,
    }


def _connection(each: Connection) -> dict[str, object]:
    flow = each.flow
    return {
        "sender": each.sender,
        "client": str(flow.client),
        "client_port": flow.client_port,
        "server": str(flow.server),
        "server_port": flow.server_port,
        "began": moment(flow.began),
        "ended": moment(flow.ended),
        "packets": flow.packets,
        "helo": each.said.helo,
        "messages": len(each.said.transactions),
        "tls": each.said.encrypted,
        "kind": kind(each),
        "problems": each.problems,
    }


def kind(each: Connection) -> str:
    """Return what a connection is, in a word: ``wrong`` is what nobody wants to see."""
    if each.stranger:
        return "incoming"
    if each.older:
        return "older"
    if each.problems or not each.sender:
        return "wrong"
    return "mail" if each.said.has_mail else "attempt"


def moment(nanoseconds: int) -> str | None:
    """Return a time in UTC (RFC 3339), to the microsecond."""
    if not nanoseconds:
        return None
    at = datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def remarks(report: Report) -> list[str]:
    """Return what bears on how much the verdict says."""
    proof = report.proof
    found = [
        f"{host.sender.name}: {host.attempts} refused, unanswered or turned away "
        "before EHLO, so without mail"
        for host in proof.hosts
        if host.attempts
    ]
    found += [
        f"{host.sender.name}: not judged, as its source-check is off"
        for host in proof.hosts
        if host.verdict is Verdict.OFF
    ]
    found += [
        f"{host.sender.name}: behind NAT; proven from its own address up to the uplink"
        for host in proof.hosts
        if host.verdict is Verdict.PASS and host.sender.outside
    ]
    if Witness.REMOTE not in proof.asked:
        found.append("Received lines are not compared: no --mail was given")
    found += _of_witnesses(report)
    if proof.older:
        found.append(
            f"{proof.older} connections were open before the capture began, and are "
            "not judged"
        )
    if report.drops is None:
        found.append("the file does not say whether packets were dropped")
    if report.cut_off:
        found.append("the last packet of the file is not whole")
    for name, stopped in report.stopped.items():
        if stopped.dropped_packets:
            found.append(
                f"{name}: the kernel dropped {stopped.dropped_packets} packets to mail "
                "ports from an address that is not its own (since its rules were made)"
            )
        if stopped.borrowed_packets:
            found.append(
                f"{name}: the kernel dropped {stopped.borrowed_packets} packets of "
                "others from its addresses (since its rules were made)"
            )
    return found


def _of_witnesses(report: Report) -> list[str]:
    total = len(report.proof.messages)
    absent = [(w, report.absent(w)) for w in (Witness.SOCKET, Witness.REMOTE)]
    return [
        f"{count} of {total} messages: the {witness} is absent, "
        f"{_WHY[witness]}; the others agree"
        for witness, count in absent
        if count
    ]


_WHY = {
    Witness.SOCKET: "for no event of vnsmail tells of them",
    Witness.REMOTE: "for no Received line that was read is of them",
}
