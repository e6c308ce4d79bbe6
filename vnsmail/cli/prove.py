"""``vnsmail prove``: the verdict on captured packets."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vnsmail.capture import evidence, sockets
from vnsmail.capture.mailboxes import read_received
from vnsmail.capture.proof import Case, Judged, Proof, Verdict
from vnsmail.capture.report import Report, Stopped, described, remarks
from vnsmail.capture.verdict import judge_case
from vnsmail.cli import client, prove_live
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.prove_ground import Ground, Question, ground
from vnsmail.cli.render import as_json, line, progress, remark, table
from vnsmail.errors import BadInput, DaemonNotRunning, NotPrivileged, StateUnusable
from vnsmail.lab import start as lab
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
class _Seen:
    """What the packets are, and when they were captured."""

    file: Path
    found: evidence.Evidence
    older: frozenset[tuple[object, ...]] = frozenset()
    window: tuple[int, int] = (0, 0)
    """Nanoseconds since the epoch."""


def prove(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="A pcapng or pcap file; without it a running lab's."),
    ] = None,
    pcap: Annotated[
        Path | None, typer.Option("--pcap", help="The same as FILE.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", min=0.1, help="Record packets of all contexts for so long."
        ),
    ] = None,
    messages: Annotated[
        int | None,
        typer.Option(
            "--messages", min=1, help="Record until so many messages were sent."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for --messages, at most.")
    ] = 300.0,
    hosts: Annotated[
        Path | None,
        typer.Option(
            help="Hosts file to take the virtual hosts from; else the root's."
        ),
    ] = None,
    mail: Annotated[
        list[Path] | None,
        typer.Option(
            help="Maildir of a remote, or a folder with Maildirs, to read Received "
            "lines from; give none, one or more."
        ),
    ] = None,
    events: Annotated[
        str,
        typer.Option(
            help="Event log to ask the sockets, or `off`; else the root's if there is one."
        ),
    ] = "",
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="An address the machine's own mail may leave from; else the lab's, "
            "or those on the machine's links now."
        ),
    ] = None,
    machine_name: Annotated[
        str,
        typer.Option(help="What the machine calls itself; else as in vnsmail.toml."),
    ] = "",
    other: Annotated[
        list[str] | None,
        typer.Option(help="An address known to be somebody else's, such as a remote."),
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=65535, help="A port that counts as SMTP; else 25 and smtp.port."
        ),
    ] = None,
    every: Annotated[
        bool | None,
        typer.Option(
            "--all/--seen",
            help="Every sender must have sent mail, or some must. A recording looks at "
            "those it has seen, a file at all, if you do not say.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the packets, with names and comments for Wireshark, to this file."
        ),
    ] = None,
    tls_keys: Annotated[
        bool,
        typer.Option(
            "--tls-keys",
            help="Put the keys of TLS sessions into --save's file. Only in a lab that "
            "was started with --tls-keys.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the proof as an HTML page to this file.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Judge from packets whether all mail left from the address of its sender.

    Every virtual host of the directory and the machine must have sent mail, each packet
    of it from the sender's own address, every connection request answered there, and
    what their sockets and the remotes say must be the same. Exits with 0 only then.
    """
    live = seconds is not None or messages is not None
    _check(file, pcap, live=live, save=save, tls_keys=tls_keys)
    asked = Question(
        file=file or pcap,
        hosts=hosts,
        mail=tuple(mail or ()),
        machine=tuple(machine or ()),
        machine_name=machine_name,
        other=tuple(other or ()),
        events=events,
        ports=tuple(port or ()),
        live=live,
    )
    known = ground(layout_of(context), asked)
    if tls_keys:
        _key_log(known)  # so that nothing is recorded that could not be written
    wanted = prove_live.Wanted(seconds, messages, timeout)
    with _packets(known, wanted if live else None) as seen:
        proof = _judge(known, seen, every=not live if every is None else every)
        kept = save or (known.file if not live else None)
        report = _report(known, seen, proof, kept)
        if save is not None:
            key_log = _key_log(known) if tls_keys else b""
            _save(known, seen, proof, save, key_log)
    if html is not None:
        _write(html, report)
    if json:
        as_json(described(report))
    else:
        _show(report, kept)
    if proof.verdict is not Verdict.PASS:
        raise typer.Exit(1)


def _check(
    file: Path | None,
    pcap: Path | None,
    *,
    live: bool,
    save: Path | None,
    tls_keys: bool,
) -> None:
    if file is not None and pcap is not None:
        raise BadInput("capture", str(pcap), "FILE is given already; give one of them")
    if live and (file or pcap):
        raise BadInput(
            "capture", str(file or pcap), "give it, or --seconds or --messages"
        )
    if tls_keys and save is None:
        raise BadInput("--tls-keys", "", "say with --save where the packets are to go")


def _key_log(known: Ground) -> bytes:
    """Return the keys of a lab's TLS sessions.

    Raises:
        BadInput: this is no lab, or it keeps no keys.
    """
    if known.lab is None or lab.running(known.layout) is None:
        remedy = "keys are kept in a lab only: `vnsmail lab up --tls-keys`"
        raise BadInput("--tls-keys", "", remedy)
    folder = known.layout.tls_keys
    if not folder.is_dir():
        remedy = "the lab keeps none; start it with `vnsmail lab up --tls-keys`"
        raise BadInput("--tls-keys", "", remedy)
    return b"".join(each.read_bytes() for each in sorted(folder.glob("*.keys")))


@contextlib.contextmanager
def _packets(known: Ground, live: prove_live.Wanted | None) -> Iterator[_Seen]:
    """Give the packets of the file, or record some."""
    if live is None:
        file = known.file or Path()
        found = _read(file, known)
        yield _Seen(file, found, window=(found.began, found.ended))
        return
    with tempfile.TemporaryDirectory(prefix="vnsmail-prove-") as folder:
        file = Path(folder, "capture.pcapng")
        with progress("recording") as tell:

            def told(passed: float, seen: int) -> None:
                if live.messages is not None:
                    tell("messages", min(seen, live.messages), live.messages)
                else:
                    tell(f"{seen} messages", int(passed), int(live.seconds or 0))

            made = prove_live.record(known, file, live, told)
        yield _Seen(
            file, made.evidence, frozenset(made.older), (made.began, made.ended)
        )


def _read(file: Path, known: Ground) -> evidence.Evidence:
    """Return what a capture shows; a long one with a bar that says how far it is."""
    try:
        size = file.stat().st_size
    except OSError:
        size = 0
    if size < SHOW_PROGRESS_FROM:
        return evidence.read(file, known.ports)
    with progress("prove") as tell:
        return evidence.read(
            file, known.ports, lambda done: tell("reading", done, size)
        )


def _judge(known: Ground, seen: _Seen, *, every: bool) -> Proof:
    lines = [each for folder in known.mail for each in read_received(folder)]
    began, ended = seen.window
    said = None
    if known.events is not None:
        said = sockets.read(known.events, began / 1e9, ended / 1e9)
    case = Case(
        senders=known.senders,
        received=lines if known.mail else None,
        sockets=said,
        others=known.others,
        older=frozenset(seen.older),  # type: ignore[arg-type]  # ends, as recorded
        damage=seen.found.damage,
        window=seen.window,
        every=every,
    )
    return judge_case(case, seen.found.flows)


def _report(known: Ground, seen: _Seen, proof: Proof, kept: Path | None) -> Report:
    found = seen.found
    return Report(
        proof=proof,
        file=str(kept) if kept else "recorded, and not kept (--save FILE keeps it)",
        packets=found.packets,
        drops=found.drops,
        cut_off=found.cut_off,
        began=found.began,
        ended=found.ended,
        interfaces=found.interfaces,
        names=known.names,
        stopped=_stopped(known),
    )


def _stopped(known: Ground) -> dict[str, Stopped]:
    """Return what the kernel has stopped of each host, as far as that can be asked.

    Counted since a host's rules were made, not since the capture began: it tells that
    something tried, and is no part of the verdict, for what was stopped did not leave.
    """
    found: dict[str, Stopped] = {}
    with contextlib.suppress(DaemonNotRunning, NotPrivileged):
        for sender in known.senders:
            if sender.context == "machine":
                continue
            with contextlib.suppress(client.Refused):
                request = control.GetGuard(sender.name)
                answer = client.ask(known.layout, request, control.Guarded)
                if not answer.problem:
                    found[sender.name] = Stopped(
                        answer.dropped_packets, answer.borrowed_packets
                    )
    return found


def _save(
    known: Ground, seen: _Seen, proof: Proof, target: Path, key_log: bytes
) -> None:
    from vnsmail.capture import annotate  # noqa: PLC0415  few commands need it

    annotate.write(seen.file, target, proof, known.names, key_log)


def _write(path: Path, report: Report) -> None:
    from vnsmail.capture import page  # noqa: PLC0415  few commands need it

    try:
        path.write_text(page.page(report), encoding="utf-8")
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise StateUnusable(str(path), problem, "name another file") from None


def _show(report: Report, kept: Path | None) -> None:
    proof = report.proof
    rows = [_row(host) for host in proof.hosts]
    table("proof", COLUMNS, rows, "nobody to judge", aside="received")
    for host in proof.hosts:
        for problem in host.problems:
            if problem not in proof.problems:
                line(f"{host.sender.name}: {problem}")
    for problem in proof.problems:
        line(problem)
    for text in remarks(report):
        remark(text)
    if kept is not None:
        remark(f"{proof.verdict}; the packets are in {kept}")
    else:
        remark(f"{proof.verdict}; {report.packets} packets, not kept")


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
