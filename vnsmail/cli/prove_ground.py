"""What ``vnsmail prove`` is to judge: who is expected, where, and which witnesses there are."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vnsmail import settings
from vnsmail.capture.flows import SMTP_PORTS
from vnsmail.capture.proof import Sender
from vnsmail.capture.senders import of_host, of_machine
from vnsmail.cli.render import remark
from vnsmail.directory import declaration, open_to_read
from vnsmail.errors import BadInput, NotPrivileged
from vnsmail.lab import facts as lab
from vnsmail.lab import start, topology
from vnsmail.lab.facts import LabFacts
from vnsmail.model import Context, IPAddress, Uplink, VirtualHost
from vnsmail.net.observe import observe
from vnsmail.settings import Layout, Settings

ALONE = "off"
"""Instead of an event log: there is none to be asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the user asks, as it was typed."""

    file: Path | None = None
    hosts: Path | None = None
    mail: tuple[Path, ...] = ()
    machine: tuple[str, ...] = ()
    machine_name: str = ""
    other: tuple[str, ...] = ()
    events: str = ""
    ports: tuple[int, ...] = ()
    live: bool = False


@dataclass(frozen=True, slots=True)
class Ground:
    """What is known before the packets are looked at."""

    layout: Layout
    """Of the root whose hosts they are."""
    file: Path | None
    """The capture; None where one is yet to be made."""
    hosts: tuple[VirtualHost, ...]
    senders: tuple[Sender, ...]
    ports: frozenset[int]
    mail: tuple[Path, ...]
    """Folders with remotes' Maildirs; none where no remote is asked."""
    others: frozenset[IPAddress]
    events: Path | None
    """The event log; None where no socket is asked."""
    names: dict[IPAddress, str]
    """Names of addresses, for people."""
    lab: LabFacts | None
    """The lab that runs in this root."""
    links: tuple[str, ...]
    """The machine's links that have its addresses."""


def ground(layout: Layout, asked: Question) -> Ground:
    """Return the ground, with what a running lab knows filled in.

    Raises:
        BadInput: what was given cannot be.
        NotPrivileged: only root can tell the machine's addresses.
    """
    found = lab.read(layout)
    if found is None and asked.file is None and not layout.instance:
        layout_of_lab = settings.layout(start.default_root())
        of_lab = lab.read(layout_of_lab)
        if of_lab is not None and (not asked.live or start.running(layout_of_lab)):
            layout, found = layout_of_lab, of_lab
    if found is None and asked.file is None and not asked.live:
        remedy = (
            "give a pcapng file, or --seconds N, or start a lab with `vnsmail lab up`"
        )
        raise BadInput("capture", "", remedy)
    configured = settings.load(layout.settings_file)
    hosts = _hosts(layout, asked)
    name = asked.machine_name or configured.machine.name
    mail, others = asked.mail, _addresses("other", asked.other)
    machine = _addresses("machine", asked.machine)
    links: tuple[str, ...] = ()
    if found is not None and asked.hosts is None:
        name = found.machine_name
        same = asked.file is None
        mail = mail or (tuple(map(Path, found.mail)) if same else ())
        remotes = [a for remote in found.remotes for a in remote.addresses]
        others |= _addresses("lab", [*remotes, found.nameserver])
        machine = machine or _addresses("lab", found.machine_addresses)
        links = (topology.BRIDGE,)
    elif asked.live or (not machine and asked.hosts is None):
        links, there = _on_links(layout)
        machine = machine or there
    senders = tuple(map(of_host, hosts))
    if machine or asked.hosts is None:
        senders = (of_machine(name, machine, hosts), *senders)
    file = asked.file
    if file is None and found is not None and not asked.live:
        file = Path(found.capture)
    return Ground(
        layout=layout,
        file=file,
        hosts=hosts,
        senders=senders,
        ports=frozenset(asked.ports or (*SMTP_PORTS, configured.smtp.port)),
        mail=mail,
        others=others,
        events=_event_log(layout, configured, asked),
        names=_names(senders, found if asked.hosts is None else None),
        lab=found,
        links=links,
    )


def _hosts(layout: Layout, asked: Question) -> tuple[VirtualHost, ...]:
    """Return the hosts of a hosts file, or of the directory."""
    if asked.hosts is None:
        with open_to_read(layout.directory_db) as directory:
            return tuple(directory.hosts())
    try:
        text = asked.hosts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise BadInput("hosts", str(asked.hosts), f"cannot read it: {why}") from None
    try:
        declared = declaration.parse(text).hosts
    except declaration.Misfits as error:
        first = error.problems[0]
        where = f"line {first.line}: {first.key}: {first.text}"
        raise BadInput("hosts", str(asked.hosts), where) from None
    return tuple(
        VirtualHost(
            name=each.name,
            context=each.table.context,
            addresses=each.table.addresses,
            domains=each.domains,
            link=each.table.link or "",
            uplink=each.table.uplink
            or (Uplink.BRIDGE if each.table.context is Context.NAMESPACE else None),
            source_check=each.table.source_check,
            public_addresses=each.table.public_addresses,
            helo=each.table.helo,
        )
        for each in declared
    )


def _event_log(layout: Layout, configured: Settings, asked: Question) -> Path | None:
    """Return the event log to ask; one that was named must be there."""
    if asked.events == ALONE:
        return None
    if asked.events:
        if not Path(asked.events).is_file():
            raise BadInput("events", asked.events, "there is no such file")
        return Path(asked.events)
    if asked.hosts is not None:
        return None
    path = settings.event_file(layout, configured)
    if path is None or not path.exists():
        return None
    try:
        path.open("rb").close()
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        remark(f"sockets are not asked: {path}: {problem}")
        return None
    return path


def _names(senders: Iterable[Sender], found: LabFacts | None) -> dict[IPAddress, str]:
    names = {a: each.name for each in senders for a in each.addresses}
    if found is not None:
        for remote in found.remotes:
            names |= dict.fromkeys(_addresses("lab", remote.addresses), remote.name)
        names[ipaddress.ip_address(found.nameserver)] = topology.NAMESERVER
    return names


def _addresses(what: str, texts: Iterable[str]) -> frozenset[IPAddress]:
    try:
        return frozenset(ipaddress.ip_address(text) for text in texts)
    except ValueError as error:
        raise BadInput(what, str(error), "give an IP address, without prefix") from None


def _on_links(layout: Layout) -> tuple[tuple[str, ...], frozenset[IPAddress]]:
    """Return the machine's links, and their addresses without those of virtual hosts.

    Raises:
        NotPrivileged: only root sees which are whose.
    """
    try:
        links = observe(layout.instance).links
    except PermissionError:
        remedy = "run it as root, or give --machine ADDRESS"
        raise NotPrivileged("tell the machine's addresses", remedy) from None
    named = [link for link in links if link.addresses and not link.loopback]
    addresses = {a.address for link in named for a in link.addresses}
    return tuple(link.name for link in named if link.up), frozenset(addresses)
