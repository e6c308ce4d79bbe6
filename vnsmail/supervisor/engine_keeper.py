"""Keeps the engine of one virtual host: a mail server that others wrote. PRIVILEGED.

``python -P -m vnsmail.supervisor.engine_keeper --root DIR --host NAME --channel-fd N``,
started by the supervisor (supervisor/engines.py). It enters the host's context, as
``vnsmail exec`` does, forks into process and mount namespaces of the engine's own, and
gives up all that the server does not need before it starts it:

    this process          waits for the other, in the host's network
      └ first process     of the engine's namespaces: starts the server, hands sessions
                          to it, keeps /dev/log, lists its queue
          └ the server

A session: whoever connects to the socket in the run folder (the broker, for the worker
that owns the host) talks SMTP with a process of the server (``sendmail -bs``), which
says 250 when the message is in the server's queue.

Rules of this file: a server that cannot be held to the host's addresses is not started;
it ends with the supervisor's channel; what a server says is logged, never obeyed.
"""

import argparse
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vnsmail import log as logging
from vnsmail import settings as vnsmail_settings
from vnsmail.channel import ChannelClosed, ChannelMisused, receive_now, send_now
from vnsmail.directory import open_to_read
from vnsmail.engines.mta import RUN, Mta, missing
from vnsmail.engines.mtas import facts_of, mta_of
from vnsmail.errors import BadInput, StateUnusable, VnsmailError
from vnsmail.model import Context, Owner, VirtualHost, host_name
from vnsmail.net import cgroups, connect_hook
from vnsmail.net.guard_rules import socket_mark
from vnsmail.net.hook_programs import hooks
from vnsmail.supervisor import (
    engine_box,
    engine_protocol,
    host_files,
    kernel,
    privileges,
    run_as,
)
from vnsmail.supervisor.engines import folder_of, socket_of
from vnsmail.supervisor.folders import worker_account

MAX_SESSIONS = 100
"""Sessions with the server at a time; one more waits."""
STOP_GRACE = 5.0
"""Seconds that the server gets to end."""
LIST_WITHIN = 30.0
GROUP = 64002
"""Number of the group that Postfix wants for itself; nobody is in it."""
NOBODY = 64003
_LINE = 2000
"""Octets of a line of the server's log that are kept."""

log = logging.logger("engine")


class Keeper:
    """The first process of the engine's namespaces."""

    def __init__(
        self, owner: str, mta: Mta, channel: socket.socket, listener: socket.socket
    ) -> None:
        self._owner = owner
        self._mta = mta
        self._channel = channel
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._spawning = threading.Lock()
        self._answering = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()
        self._server: subprocess.Popen[bytes] | None = None
        self._ending = False

    def run(self) -> int:
        """Keep the server until the channel closes; returns an exit status."""
        log_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        log_socket.bind("/dev/log")
        # All in here are the server, whichever accounts it has.
        Path("/dev/log").chmod(0o666)
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs, log_socket, self._channel, self._listener):
            sock.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._watch(ours, lambda: self._reap(ours))
        self._watch(log_socket, lambda: self._said(log_socket.recv(65536)))
        self._watch(self._channel, self._asked)
        for step in self._mta.steps:
            self._prepare(step.command, Path(step.reads), Path(step.writes))
        self._server = self._spawn(self._mta.run, output=True)
        self._watch(self._listener, self._accept)
        log.info("engine.started", owner=self._owner, engine=self._mta.engine.value)
        while not self._ending:
            for key, _ in self._selector.select():
                key.data()
        return self._end()

    def _watch(self, sock: socket.socket, work: Callable[[], object]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, work)

    # Processes ---------------------------------------------------------------------

    def _spawn(
        self,
        command: tuple[str, ...],
        *,
        talks: int | None = None,
        output: bool = False,
    ) -> subprocess.Popen[bytes]:
        into = subprocess.PIPE if output and talks is None else subprocess.DEVNULL
        with self._spawning:
            child = subprocess.Popen(  # noqa: S603  a program of the engine
                command,
                stdin=subprocess.DEVNULL if talks is None else talks,
                stdout=into if talks is None else talks,
                stderr=subprocess.STDOUT if into == subprocess.PIPE else into,
                cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC", "LANG": "C"},
                start_new_session=True,
            )
            self._children[child.pid] = child
        if child.stdout is not None and command == self._mta.run:
            os.set_blocking(child.stdout.fileno(), False)
            self._selector.register(
                child.stdout, selectors.EVENT_READ, lambda: self._printed(child)
            )
        return child

    def _prepare(self, command: tuple[str, ...], source: Path, target: Path) -> None:
        """Make a file of another by a command.

        Raises:
            StateUnusable: it failed.
        """
        done = subprocess.run(  # noqa: S603  a program of the engine
            command, input=source.read_bytes(), capture_output=True, check=False
        )
        if done.returncode != 0:
            why = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise StateUnusable(str(target), f"{command[0]}: {why}", "see the log")
        target.write_bytes(done.stdout)

    def _reap(self, woken: socket.socket) -> None:
        """Take notice of what has ended: ours, and what others left behind."""
        woken.recv(4096)
        with self._spawning:
            while True:
                try:
                    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
                    found = os.waitid(os.P_ALL, 0, flags)
                except ChildProcessError:
                    break
                if found is None:
                    break
                pid = found.si_pid
                if pid in self._children:
                    self._children.pop(pid).poll()
                    self._sessions.discard(pid)
                else:
                    os.waitpid(pid, os.WNOHANG)
        server = self._server
        if server is not None and server.poll() is not None and not self._ending:
            status = server.returncode
            log.warning("engine.ended", owner=self._owner, status=status)
            self._ending = True
        if len(self._sessions) < MAX_SESSIONS and not self._ending:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.get_key(self._listener)
                return
            self._watch(self._listener, self._accept)

    # What is said ------------------------------------------------------------------

    def _said(self, line: bytes) -> None:
        text = line[:_LINE].partition(b">")[2] or line[:_LINE]
        words = text.decode(errors="replace").strip()
        log.info("engine.said", owner=self._owner, text=words)

    def _printed(self, child: "subprocess.Popen[bytes]") -> None:
        assert child.stdout is not None  # noqa: S101  it is what is watched
        data = os.read(child.stdout.fileno(), 65536)
        if not data:
            self._selector.unregister(child.stdout)
        for line in data.splitlines():
            self._said(line)

    def _accept(self) -> None:
        """Have the server talk with who has connected."""
        try:
            talk, _ = self._listener.accept()
        except OSError:
            return
        with talk:
            talk.setblocking(True)
            try:
                child = self._spawn(self._mta.submit, talks=talk.fileno())
            except OSError as error:
                log.warning("engine.no_session", owner=self._owner, reason=str(error))
                return
        self._sessions.add(child.pid)
        if len(self._sessions) >= MAX_SESSIONS:
            self._selector.unregister(self._listener)

    def _asked(self) -> None:
        try:
            payload, _ = receive_now(self._channel)
        except BlockingIOError:
            return
        except (ChannelClosed, ChannelMisused, OSError):
            self._ending = True
            return
        question = engine_protocol.decode_question(payload)
        if isinstance(question, engine_protocol.Begin):
            self._answer(engine_protocol.Done(question.id))
            return
        # A long queue takes its time; mail goes on meanwhile.
        threading.Thread(target=self._look, args=(question,), daemon=True).start()

    def _look(self, question: engine_protocol.ListMail | engine_protocol.Flush) -> None:
        listing = isinstance(question, engine_protocol.ListMail)
        command = self._mta.listing if listing else self._mta.flush
        try:
            child = self._spawn(command, output=True)
            try:
                out = child.communicate(timeout=LIST_WITHIN if listing else None)[0]
            finally:
                child.kill()
            found = self._mta.read(out.decode(errors="replace"), time.time())
        except Exception as error:  # noqa: BLE001  who asked is to hear of it, whatever it was
            self._answer(engine_protocol.Failed(question.id, str(error)))
            return
        if not listing:
            self._answer(engine_protocol.Done(question.id))
            return
        mail = tuple(
            engine_protocol.Mail(
                each.id,
                each.sender,
                each.recipients,
                each.size,
                each.received_at,
                each.held,
            )
            for each in found
        )
        self._answer(engine_protocol.Listed(question.id, mail))

    def _answer(self, answer: engine_protocol.Answer) -> None:
        with self._answering, contextlib.suppress(ChannelClosed, OSError):
            self._channel.setblocking(True)
            send_now(self._channel, engine_protocol.encode(answer))
            self._channel.setblocking(False)

    def _end(self) -> int:
        """End the server, and let sessions that are under way be cut: nothing is lost."""
        server = self._server
        assert server is not None  # noqa: S101  it was started
        status = server.poll()
        if status is not None:
            return 1
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_GRACE)
        return 0


# Getting there ------------------------------------------------------------------------


def _files(
    mta: Mta,
    host: VirtualHost,
    uid: int,
    gid: int,
    servers: list[str],
    settings: vnsmail_settings.Settings,
) -> dict[str, str]:
    """Return all of /etc that is made."""
    facts = facts_of(host, settings.smtp.port, settings.smtp.max_message_size)
    root = "root:x:0:0:root:/:/usr/sbin/nologin\n" if mta.capabilities else ""
    if mta.group:  # Postfix wants somebody else to deliver here as, which it never does
        root += f"nobody:x:{NOBODY}:{NOBODY}::/:/usr/sbin/nologin\n"
    group = f"{mta.group}:x:{GROUP}:\n" if mta.group else ""
    zero = "root:x:0:\n" if mta.capabilities else ""
    made = {
        "/etc/passwd": f"{mta.account}:x:{uid}:{gid}::/:/usr/sbin/nologin\n{root}",
        "/etc/group": f"{mta.account}:x:{gid}:\n{zero}{group}",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n"
        "services: files\n",
        "/etc/mailname": f"{host.name}\n",
        **mta.files(facts),
    }
    own = run_as.own_files(host, servers)
    return {**made, **{str(path): text for path, text in own.items()}}


def _folders(mta: Mta, uid: int, gid: int) -> None:
    """Make what the server wants in its spool; already in its view."""
    for path, mode, grouped in mta.folders:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if not path.endswith("/pid"):
            os.chown(folder, uid, GROUP if grouped else gid)
        folder.chmod(mode)


def _listening(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(128)
    return sock


def _join(host: VirtualHost, instance: str) -> int:
    """Fork into the host's context; returns 0 in the child, which is in it for good.

    Raises:
        VnsmailError: it cannot be held to the host's addresses; nothing was forked.
        OSError: the kernel refused.
    """
    apart = kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC
    if host.context is Context.NAMESPACE:
        run_as.enter(host, instance)
        kernel.unshare(apart | kernel.CLONE_NEWPID)
        return os.fork()
    run_as.check_addresses(host)
    with cgroups.made(instance, host.name) as cgroup:
        addresses = [each.address for each in host.addresses]
        mark = socket_mark(instance, host.name)
        connect_hook.attach(host.name, cgroup.fd, hooks(addresses, mark))
        kernel.unshare(apart | kernel.CLONE_NEWPID)
        wait, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            if not os.read(wait, 1):  # it could not be put there
                os._exit(1)
            os.close(wait)
            return 0
        os.close(wait)
        try:
            cgroup.add(child)
            os.write(go, b"!")
        finally:
            os.close(go)
    return child


def _keep(options: argparse.Namespace) -> int:
    layout = vnsmail_settings.layout(options.root)
    settings = vnsmail_settings.load(layout.settings_file)
    account = worker_account(settings, layout.settings_file)
    with open_to_read(layout.directory_db) as directory:
        host = directory.host(host_name(options.host))
    mta = mta_of(host.engine)
    if mta is None:
        raise BadInput("engine", host.engine.value, "it is not one that is kept")
    if remedy := missing(mta, os.path.exists):
        raise BadInput("engine", host.engine.value, remedy)
    uid = account.uid if account else os.getuid()
    gid = account.gid if account else os.getgid()
    servers = [str(each) for each in host.resolvers or settings.dns.servers]
    files = _files(mta, host, uid, gid, servers, settings)
    spool = folder_of(layout, Owner(host.name), host.engine)
    # Nobody but root makes or changes what lies above it.
    spool.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool.mkdir(mode=0o700, exist_ok=True)
    if mta.capabilities:
        spool.chmod(0o755)
    else:
        os.chown(spool, uid, gid, follow_symlinks=False)
    last = privileges.last()
    channel = socket.socket(fileno=options.channel_fd)
    listener = _listening(socket_of(layout, host.name))
    child = _join(host, layout.instance)
    if child:
        channel.close()
        listener.close()
        engine_box.drop((), os.getuid(), os.getgid(), last)
        return _wait(child)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    socket.sethostname(host_files.node_name(host.name))
    # The folder of /dev is root's; there is one socket in it that we make.
    writable = [RUN, "/dev"]
    engine_box.build(files, (spool, mta.spool), writable, uid, gid)
    _folders(mta, uid, gid)
    engine_box.drop(mta.capabilities, uid, gid, last)
    return Keeper(host.name, mta, channel, listener).run()


def _wait(child: int) -> int:
    """Wait for the first process of the engine's namespaces; returns its exit status."""
    # It hears from its channel that it is to end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _confess(channel_fd: int, text: str) -> None:
    """Tell the supervisor, who waits for the server, why there is none."""
    with contextlib.suppress(OSError, VnsmailError):
        channel = socket.socket(fileno=os.dup(channel_fd))
        channel.settimeout(5)
        payload, _ = receive_now(channel)
        question = engine_protocol.decode_question(payload)
        failed = engine_protocol.Failed(question.id, text)
        send_now(channel, engine_protocol.encode(failed))


def main() -> None:
    """Keep an engine."""
    parser = argparse.ArgumentParser(description="Keeps an engine; not for the shell.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args()
    logging.configure(process="engine")
    status = 1
    try:
        status = _keep(options)
    except (OSError, VnsmailError) as error:
        log.warning("engine.failed", owner=options.host, reason=str(error))
        _confess(options.channel_fd, str(error))
    except Exception:  # what a process that others wait for must not keep to itself
        log.exception("engine.fault", owner=options.host)
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
