"""The process that is a lab: process 1 of the lab's process namespace.

``python -m vnsmail.lab.keeper --root DIR --ready-fd N``, started by start.py inside
fresh network, mount and process namespaces (and a user namespace, if an ordinary user
started it). Everything else of the lab is its child; when it ends, however it ends, the
kernel ends them all and takes back the network (pid_namespaces(7)).

It says what it does on the pipe, a JSON line a step: {"step": …}, then {"ready": true}
or {"error": …}.

Rules of this file: nothing here reaches the machine's own network; what it makes is
made by the code that makes virtual hosts.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute

from vnsmail import log as logging
from vnsmail.errors import StateUnusable, VnsmailError
from vnsmail.lab import topology
from vnsmail.lab.start import capture_file, mail_folder
from vnsmail.model import SourceAddress
from vnsmail.net import names
from vnsmail.net.apply import apply
from vnsmail.net.observe import observe
from vnsmail.net.plan import Desired, plan

READY_PATIENCE = 30.0
"""Seconds a process of the lab has to say that it is ready."""

STOP_PATIENCE = 20.0
"""Seconds the supervisor gets to end; it gives its own children fewer."""

_IFA_F_NODAD = 0x02
_MS_NOSUID, _MS_NODEV = 2, 4

log = logging.logger("lab")


class LabProcessFailed(VnsmailError):
    """A process of the lab ended before it was ready."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"cannot start the lab: its {self.name} ended at once; see lab.log"


class Keeper:
    """The lab's processes and its network."""

    def __init__(self, root: Path, say: Callable[[dict[str, object]], None]) -> None:
        self._root = root
        self._say = say
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Build the lab, say that it is ready, and keep it until SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        try:
            await self._build()
            self._say({"ready": True})
            await self._ending.wait()
        finally:
            await self._end()

    async def _build(self) -> None:
        self._say({"step": "network"})
        await asyncio.to_thread(build_network)
        # None of them needs another to start, and each takes a second of a processor.
        try:
            async with asyncio.TaskGroup() as group:
                for name, command, node in self._programs():
                    self._say({"step": name})
                    group.create_task(self._start(name, *command, node=node))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _programs(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Yield the name of each process, its module with options, and its node."""
        record = ("vnsmail.capture.record", "--link", topology.BRIDGE)
        yield "capture", (*record, "--file", str(capture_file(self._root))), ""
        yield "supervisor", ("vnsmail.cli.app", "--root", str(self._root), "up"), ""
        serve = ("vnsmail.lab.nameserver", "--root", str(self._root))
        addresses = _addresses(topology.NAMESERVER_ADDRESSES)
        yield "name server", (*serve, *addresses), topology.NAMESERVER
        for remote in topology.REMOTES:
            command = (
                *("vnsmail.lab.remote", "--name", remote.name),
                *("--domain", remote.domain, *_addresses(remote.addresses)),
                *("--resolver", str(topology.NAMESERVER_ADDRESSES[0].address)),
                *("--mail", str(mail_folder(self._root, remote))),
            )
            yield remote.name, command, remote.name

    async def _start(
        self, name: str, module: str, *options: str, node: str = ""
    ) -> None:
        """Start a module, in a node's namespace if one is given, and wait until ready."""
        ours, theirs = os.pipe()
        python = (sys.executable, "-P", "-m")
        command = (*python, module, *options, "--ready-fd", str(theirs))
        if node:
            namespace = names.namespace(topology.INSTANCE, node)
            command = (*python, "vnsmail.lab.inside", namespace, "--", *command)
        try:
            self._children[name] = await asyncio.create_subprocess_exec(
                *command, pass_fds=(theirs,), stdin=asyncio.subprocess.DEVNULL, cwd="/"
            )
        finally:
            os.close(theirs)
        if await _first_words(ours) != b"ready":
            raise LabProcessFailed(name)

    async def _end(self) -> None:
        """End the supervisor first, so that nothing that is being said is cut off."""
        supervisor = self._children.pop("supervisor", None)
        if supervisor is not None:
            await _ended(supervisor)
        await asyncio.gather(*map(_ended, self._children.values()))
        log.info("lab.ended", root=str(self._root))


async def _ended(child: asyncio.subprocess.Process) -> None:
    """End a process, by force if it takes too long."""
    if child.returncode is not None:
        return
    child.terminate()
    try:
        async with asyncio.timeout(STOP_PATIENCE):
            await child.wait()
    except TimeoutError:
        child.kill()


async def _first_words(fd: int) -> bytes:
    """Return what is written into a pipe until it is closed, within a time."""

    def read() -> bytes:
        with os.fdopen(fd, "rb") as pipe:
            return pipe.read()

    try:
        async with asyncio.timeout(READY_PATIENCE):
            return await asyncio.to_thread(read)
    except TimeoutError:
        return b""


def _addresses(addresses: tuple[SourceAddress, ...]) -> list[str]:
    return [word for a in addresses for word in ("--address", str(a.address))]


def build_network() -> None:
    """Make the bridge with the machine's addresses, and the lab's nodes on it.

    Raises:
        NetworkStepFailed: the kernel refused.
    """
    with IPRoute() as route:
        route.link("set", index=1, state="up")
        route.link("add", ifname=topology.BRIDGE, kind="bridge", br_stp_state=0)
        index = route.link_lookup(ifname=topology.BRIDGE)[0]
        route.link("set", index=index, state="up")
        for each in topology.MACHINE_ADDRESSES:
            # There is nobody here who could have the address too, and nothing should
            # wait for the kernel to ask (RFC 4862 section 5.4).
            flags = {"flags": _IFA_F_NODAD} if each.address.version == 6 else {}
            route.addr(
                "add",
                index=index,
                address=str(each.address),
                prefixlen=each.prefix_length,
                **flags,
            )
    desired = Desired(topology.nodes())
    actual = observe(topology.INSTANCE)
    apply(plan(desired, actual, topology.INSTANCE), topology.INSTANCE)


def private_run_netns() -> None:
    """Give this mount namespace a /run/netns of its own.

    Without root there may be no /run/netns to mount on; then all of /run becomes ours.

    Raises:
        StateUnusable: the kernel does not let us mount.
    """
    folder = Path("/run/netns")
    target = folder if folder.is_dir() or os.access("/run", os.W_OK) else Path("/run")
    target.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV
    if libc.mount(b"tmpfs", bytes(target), b"tmpfs", flags, b"mode=755") != 0:
        why = os.strerror(ctypes.get_errno()).lower()
        raise StateUnusable(
            str(target), f"cannot mount there: {why}", "run the lab as root"
        )
    folder.mkdir(exist_ok=True)


def main() -> None:
    """Be the lab."""
    parser = argparse.ArgumentParser(description="A vnsmail lab; not for the shell.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.configure(process="lab")
    with open(arguments.ready_fd, "w", encoding="utf-8") as pipe:

        def say(fact: dict[str, object]) -> None:
            if not pipe.closed:
                pipe.write(json.dumps(fact) + "\n")
                pipe.flush()
            if "step" not in fact:
                pipe.close()

        try:
            private_run_netns()
            asyncio.run(Keeper(arguments.root, say).run())
        except VnsmailError as error:
            say({"error": str(error)})
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
