"""Starting and ending a lab from outside.

The lab gets fresh namespaces from unshare(1): network, mount, process, and for an
ordinary user a user namespace in which that user is root. The machine's links, routes
and firewall are not in them, so nothing here can touch them.

Rules of this file: one lab a root; only a process that is this root's lab is ended.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from vnsmail.errors import NotFound, NotPrivileged, StateUnusable, Taken
from vnsmail.lab import topology
from vnsmail.lab.facts import LabFacts, RemoteFacts, file_of, read
from vnsmail.lab.topology import Remote
from vnsmail.settings import Layout

END_PATIENCE = 30.0
"""Seconds a lab has to end before it is killed."""

SETTINGS = """\
# Written by `vnsmail lab up`.
[machine]
name = "{machine}"

[worker]
count = 1
user = "{worker}"

[queue]
first_retry = 2

[dns]
servers = ["{nameserver}"]
timeout = 5
"""

_PR_SET_PDEATHSIG = 1  # prctl(2)

NOBODY = "65534"
"""The account that owns nothing; in a lab the workers run as it."""

Tell = Callable[[str], None]
"""Takes the name of each step as it begins."""


def default_root() -> Path:
    """Return where the lab of this user lies if no --root is given."""
    if os.geteuid() == 0:
        # Workers run under another account, which must be able to reach its folder.
        return Path("/var/lib/vnsmail-lab")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "vnsmail-lab"


def capture_file(root: Path) -> Path:
    """Return where a lab records its packets."""
    return root / "capture.pcapng"


def mail_folder(root: Path, remote: Remote) -> Path:
    """Return where a remote of the lab keeps what it got."""
    return root / "remotes" / remote.name


def running(layout: Layout) -> LabFacts | None:
    """Return the facts of this root's lab if it runs."""
    facts = read(layout)
    return facts if facts is not None and _is_lab(facts.pid, layout) else None


def start(
    layout: Layout, tell: Tell, *, tied: bool = False, tls_keys: bool = False
) -> LabFacts:
    """Start a lab without virtual hosts; returns once all its processes are ready.

    Args:
        layout: where it lies; anything an earlier lab left there is removed.
        tell: told each step as it begins.
        tied: it ends when this process does, however this process ends.
        tls_keys: keys of TLS sessions are kept, for whoever reads the capture.

    Raises:
        Taken: it runs already.
        NotPrivileged: the kernel gives this user no namespaces.
        StateUnusable: the folder cannot be used, or the lab ended at once.
    """
    if running(layout) is not None:
        remedy = "it runs already; see `vnsmail lab status`, or `vnsmail lab down`"
        raise Taken("lab", str(layout.state), remedy)
    _check_namespaces()
    _fresh_folder(layout)
    if tls_keys:
        _keep_keys(layout)
    ours, theirs = os.pipe()
    with open(layout.run / "lab.log", "ab") as log_file:
        process = subprocess.Popen(  # noqa: S603  unshare(1) and our own module
            [*_unshare(), *_keeper(layout, theirs)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(theirs,),
            start_new_session=True,
            preexec_fn=_die_with_parent if tied else None,  # noqa: PLW1509  one thread
            cwd="/",
        )
    os.close(theirs)
    with open(ours, encoding="utf-8") as pipe:
        for line in pipe:
            said = json.loads(line)
            if "ready" in said:
                return _written(layout, _child(process.pid))
            if "error" in said:
                break
            tell(said["step"])
        else:
            said = {"error": "it ended before it was ready"}
    process.wait()
    raise StateUnusable(
        str(layout.state), said["error"], f"see {layout.run / 'lab.log'}"
    )


def stop(layout: Layout) -> None:
    """End this root's lab; its capture and its mail stay where they are.

    Raises:
        NotFound: no lab runs here.
        StateUnusable: it does not end.
    """
    facts = running(layout)
    file = file_of(layout)
    if facts is None:
        file.unlink(missing_ok=True)
        raise NotFound("lab", str(layout.state), "none runs here; `vnsmail lab up`")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(facts.pid, number)
        deadline = time.monotonic() + END_PATIENCE
        while _is_lab(facts.pid, layout) and time.monotonic() < deadline:
            time.sleep(0.05)
    if _is_lab(facts.pid, layout):
        problem = f"process {facts.pid} does not end"
        raise StateUnusable(str(layout.state), problem, f"see {layout.run / 'lab.log'}")
    file.unlink(missing_ok=True)


def enter_command(facts: LabFacts, node: str) -> list[str]:
    """Return a command that runs what is put behind it in a running lab.

    Args:
        facts: the lab.
        node: name of a node or virtual host in a namespace; empty for the machine.
    """
    command = ["nsenter", "--target", str(facts.pid), "--net", "--mount", "--pid"]
    if os.geteuid() != 0:
        command += ["--user", "--preserve-credentials"]
    command.append("--")
    if node:
        command += [sys.executable, "-P", "-m", "vnsmail.lab.inside", node, "--"]
    return command


def count_mail(remote: RemoteFacts) -> int:
    """Return how many messages a remote has got."""
    return sum(1 for _ in Path(remote.mail).glob("*/new/*"))


def _die_with_parent() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _unshare() -> list[str]:
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    return [*command, "--mount-proc", "--"]


def _keeper(layout: Layout, ready_fd: int) -> list[str]:
    python = [sys.executable, "-P", "-m", "vnsmail.lab.keeper"]
    return [*python, "--root", str(layout.state), "--ready-fd", str(ready_fd)]


def _check_namespaces() -> None:
    """Find out whether the kernel gives us what a lab needs.

    Raises:
        NotPrivileged: it does not; or unshare(1) is missing.
    """
    try:
        done = subprocess.run(  # noqa: S603  unshare(1) and true(1)
            [*_unshare(), "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise NotPrivileged(
            "start a lab", "unshare(1) is missing; install util-linux"
        ) from None
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        remedy = f"run it as root, or allow user namespaces ({why})"
        raise NotPrivileged("start a lab", remedy)


def _fresh_folder(layout: Layout) -> None:
    """Make an empty root; only what a lab left behind is removed.

    Raises:
        StateUnusable: something else is there, or it cannot be made.
    """
    root = layout.state
    mark = root / "vnsmail.toml"
    wanted = SETTINGS.format(
        machine=topology.MACHINE_NAME,
        worker=NOBODY,
        nameserver=topology.NAMESERVER_ADDRESSES[0].address,
    )
    try:
        if root.exists() and any(root.iterdir()):
            first = mark.read_text(errors="replace") if mark.exists() else ""
            if first.splitlines()[:1] != wanted.splitlines()[:1]:
                raise StateUnusable(
                    str(root), "it is not empty and no lab's", "give another --root"
                )
            shutil.rmtree(root)
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        mark.write_text(wanted)
        layout.run.mkdir()
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise StateUnusable(str(root), problem, "give another --root") from None


def _keep_keys(layout: Layout) -> None:
    """Have workers write the keys of TLS sessions, each a file of its own."""
    folder = layout.tls_keys
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, int(NOBODY), int(NOBODY))
    with layout.settings_file.open("a") as file:
        file.write(f'\n[lab]\ntls_keys = "{folder}"\n')


def _written(layout: Layout, pid: int) -> LabFacts:
    facts = LabFacts(
        pid=pid,
        capture=str(capture_file(layout.state)),
        machine_name=topology.MACHINE_NAME,
        machine_addresses=tuple(str(a.address) for a in topology.MACHINE_ADDRESSES),
        nameserver=str(topology.NAMESERVER_ADDRESSES[0].address),
        remotes=tuple(
            RemoteFacts(
                name=remote.name,
                domain=remote.domain,
                addresses=tuple(str(a.address) for a in remote.addresses),
                mail=str(mail_folder(layout.state, remote)),
            )
            for remote in topology.REMOTES
        ),
    )
    file = file_of(layout)
    half = file.with_suffix(".new")
    half.write_bytes(msgspec.json.encode(facts))
    half.rename(file)
    return facts


def _child(parent: int) -> int:
    """Return the process that unshare(1) forked: the lab as seen from here."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return int(text.split()[0])


def _is_lab(pid: int, layout: Layout) -> bool:
    """Say whether that process is this root's lab; a pid can be somebody else's later."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"vnsmail.lab.keeper" in words and os.fsencode(layout.state) in words
