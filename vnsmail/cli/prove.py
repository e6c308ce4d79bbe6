"""``vnsmail prove``: the verdict on captured packets."""

import contextlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vnsmail import settings
from vnsmail.capture import evidence
from vnsmail.capture.flows import SMTP_PORTS
from vnsmail.capture.mailboxes import read_received
from vnsmail.capture.verdict import Judged, Proof, Sender, Verdict, judge
from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, line, progress, remark, table
from vnsmail.directory import open_to_read
from vnsmail.errors import BadInput, DaemonNotRunning, NotPrivileged
from vnsmail.lab import facts as lab
from vnsmail.lab.start import default_root
from vnsmail.model import Family, IPAddress, VirtualHost
from vnsmail.net.observe import observe
from vnsmail.settings import Layout, Settings
from vnsmail.supervisor import control

SHOW_PROGRESS_FROM = 4 * 1024 * 1024
"""Octets of a capture; less is read within a second or so."""

COLUMNS = (
    "sender",
    "context",
    "expected",
    "seen",
    "packets",
    "wrong",
    "HELO",
    "received",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class _Case:
    """What is to be proven, and from what."""

    file: Path
    senders: tuple[Sender, ...]
    ports: frozenset[int]
    mail: tuple[Path, ...]
    """Folders with remotes' Maildirs; none where no remote is asked."""
    others: frozenset[IPAddress]
    layout: Layout
    """Of the root whose hosts they are."""


def prove(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="A pcapng or pcap file; without it a running lab's."),
    ] = None,
    mail: Annotated[
        list[Path] | None,
        typer.Option(
            help="Maildir of a remote, or a folder with Maildirs, to read Received "
            "lines from; give none, one or more."
        ),
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="An address the machine's own mail may leave from; else the lab's, "
            "or those on the machine's links now."
        ),
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(help="An address known to be somebody else's, such as a remote."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Judge from packets whether all mail left from the address of its sender.

    Every virtual host of the directory and the machine must have sent mail, each packet
    of it from the sender's own address, every connection request answered there, and
    the remotes' Received lines must say the same. Exits with 0 only then.
    """
    case = _case(
        layout_of(context),
        file,
        tuple(mail or ()),
        _addresses("machine", machine or ()),
        _addresses("other", other or ()),
    )
    found = _read(case)
    lines = [line for folder in case.mail for line in read_received(folder)]
    proof = judge(
        case.senders,
        found.flows,
        lines if case.mail else None,
        others=case.others,
        damage=found.damage,
    )
    stopped = _stopped(case)
    if json:
        as_json(_described(case, found, proof, stopped))
    else:
        _show(case, found, proof, stopped)
    if proof.verdict is not Verdict.PASS:
        raise typer.Exit(1)


def _case(
    layout: Layout,
    file: Path | None,
    mail: tuple[Path, ...],
    machine: frozenset[IPAddress],
    others: frozenset[IPAddress],
) -> _Case:
    """Return the case as asked for, with what a running lab knows filled in."""
    found = lab.read(layout)
    if found is None and file is None and not layout.instance:
        layout = settings.layout(default_root())
        found = lab.read(layout)
    if found is None and file is None:
        raise BadInput(
            "capture", "", "give a pcapng file, or start a lab with `vnsmail lab up`"
        )
    configured = settings.load(layout.settings_file)
    with open_to_read(layout.directory_db) as directory:
        hosts = directory.hosts()
    name = configured.machine.name
    if found is not None:
        name = found.machine_name
        mail = mail or (tuple(map(Path, found.mail)) if file is None else ())
        remotes = [a for remote in found.remotes for a in remote.addresses]
        others |= _addresses("lab", [*remotes, found.nameserver])
        machine = machine or _addresses("lab", found.machine_addresses)
    machine = machine or _on_links(layout)
    return _Case(
        file=file or Path(found.capture if found else ""),
        senders=(_machine(name, machine, hosts), *map(_host, hosts)),
        ports=_ports(configured),
        mail=mail,
        others=others,
        layout=layout,
    )


def _ports(configured: Settings) -> frozenset[int]:
    return frozenset((*SMTP_PORTS, configured.smtp.port))


def _addresses(what: str, texts: Iterable[str]) -> frozenset[IPAddress]:
    try:
        return frozenset(ipaddress.ip_address(text) for text in texts)
    except ValueError as error:
        raise BadInput(what, str(error), "give an IP address, without prefix") from None


def _on_links(layout: Layout) -> frozenset[IPAddress]:
    """Return the addresses on the machine's links, without those of virtual hosts.

    Raises:
        NotPrivileged: only root sees which are whose.
    """
    try:
        links = observe(layout.instance).links
    except PermissionError:
        remedy = "run it as root, or give --machine ADDRESS"
        raise NotPrivileged("tell the machine's addresses", remedy) from None
    return frozenset(
        a.address for link in links if not link.loopback for a in link.addresses
    )


def _host(host: VirtualHost) -> Sender:
    sources = [host.source(family) for family in Family]
    return Sender(
        name=host.name,
        context=host.context.value,
        expected=tuple(source.address for source in sources if source),
        addresses=frozenset(a.address for a in host.addresses),
        domains=frozenset(host.domains),
        helo=host.says,
        check=host.source_check,
        public=frozenset(host.public_addresses),
    )


def _machine(
    name: str, addresses: frozenset[IPAddress], hosts: tuple[VirtualHost, ...]
) -> Sender:
    if name.lower() in {host.name for host in hosts}:
        remedy = "a virtual host has it; packets could not tell the two apart"
        raise BadInput("machine name", name, remedy)
    own = addresses - {a.address for host in hosts for a in host.addresses}
    expected = sorted(own, key=lambda address: (address.version, address))
    return Sender(
        name=name.lower(),
        context="machine",
        expected=tuple(expected),
        addresses=own,
        domains=frozenset({name.lower()}),
    )


def _read(case: _Case) -> evidence.Evidence:
    """Return what the capture shows; a long one with a bar that says how far it is."""
    try:
        size = case.file.stat().st_size
    except OSError:
        size = 0
    if size < SHOW_PROGRESS_FROM:
        return evidence.read(case.file, case.ports)
    with progress("prove") as tell:
        return evidence.read(
            case.file, case.ports, lambda done: tell("reading", done, size)
        )


def _stopped(case: _Case) -> dict[str, control.Guarded]:
    """Return what the kernel has stopped of each host, as far as that can be asked.

    Counted since a host's rules were made, not since the capture began: it tells that
    something tried, and is no part of the verdict, for what was stopped did not leave.
    """
    found: dict[str, control.Guarded] = {}
    with contextlib.suppress(DaemonNotRunning, NotPrivileged):
        for sender in case.senders:
            if sender.context == "machine":
                continue
            with contextlib.suppress(client.Refused):
                request = control.GetGuard(sender.name)
                answer = client.ask(case.layout, request, control.Guarded)
                if not answer.problem:
                    found[sender.name] = answer
    return found


def _described(
    case: _Case,
    found: evidence.Evidence,
    proof: Proof,
    stopped: dict[str, control.Guarded],
) -> object:
    return {
        "verdict": proof.verdict,
        "file": str(case.file),
        "hosts": [
            _described_host(host, stopped.get(host.sender.name), asked=bool(case.mail))
            for host in proof.hosts
        ],
        "problems": proof.problems,
        "drops": found.drops,
        "strangers": proof.strangers,
    }


def _described_host(
    host: Judged, stopped: control.Guarded | None, *, asked: bool
) -> object:
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


def _show(
    case: _Case,
    found: evidence.Evidence,
    proof: Proof,
    stopped: dict[str, control.Guarded],
) -> None:
    rows = [_row(host) for host in proof.hosts]
    table("proof", COLUMNS, rows, "nobody to judge", aside="received")
    for host in proof.hosts:
        for problem in host.problems:
            if problem not in proof.problems:
                line(f"{host.sender.name}: {problem}")
    for problem in proof.problems:
        line(problem)
    for text in (*_remarks(case, found, proof), *_guard_remarks(stopped)):
        remark(text)
    remark(f"{proof.verdict}; the packets are in {case.file}")


def _row(host: Judged) -> tuple[object, ...]:
    return (
        host.sender.name,
        host.sender.context,
        [str(address) for address in host.sender.expected],
        [str(address) for address in host.seen],
        host.packets,
        host.wrong,
        list(host.helo),
        [_client(text) for text in host.received],
        host.verdict,
    )


def _client(received: str) -> str:
    """Return the part of a Received field that says who came."""
    return received.removeprefix("from ").partition(" by ")[0]


def _guard_remarks(stopped: dict[str, control.Guarded]) -> list[str]:
    """Return what the kernel stopped: something tried, and did not get out."""
    remarks = []
    for name, found in stopped.items():
        if found.dropped_packets:
            remarks.append(
                f"{name}: the kernel dropped {found.dropped_packets} packets to mail "
                "ports from an address that is not its own (since its rules were made)"
            )
        if found.borrowed_packets:
            remarks.append(
                f"{name}: the kernel dropped {found.borrowed_packets} packets of others "
                "from its addresses (since its rules were made)"
            )
    return remarks


def _remarks(case: _Case, found: evidence.Evidence, proof: Proof) -> list[str]:
    """Return what bears on how much the verdict says."""
    remarks = [
        f"{host.sender.name}: {host.attempts} refused, unanswered or turned away "
        "before EHLO, so without mail"
        for host in proof.hosts
        if host.attempts
    ]
    remarks += [
        f"{host.sender.name}: not judged, as its source-check is off"
        for host in proof.hosts
        if host.verdict is Verdict.OFF
    ]
    remarks += [
        f"{host.sender.name}: behind NAT; proven from its own address up to the uplink"
        for host in proof.hosts
        if host.verdict is Verdict.PASS and host.sender.outside
    ]
    if not case.mail:
        remarks.append("Received lines are not compared: no --mail was given")
    if found.drops is None:
        remarks.append("the file does not say whether packets were dropped")
    if found.cut_off:
        remarks.append("the last packet of the file is not whole")
    return remarks
