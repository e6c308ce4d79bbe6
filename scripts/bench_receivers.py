"""The receivers that scripts/bench receive measures, each started as a program of its own.

    vnsmail     its real workers, as many as there are processors, with the event log; what
                stands for supervisor and broker is here, and its CPU is counted
    postfix     Debian's package, unpacked
    aiosmtpd    with a handler that syncs a file a message, and its folder

Each listens on every address of HOSTS, has no limit on clients, and keeps what it took.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vnsmail.channel import Channel

PORTS = {"vnsmail": 2501, "postfix": 2502, "aiosmtpd": 2503}
HOSTS = 20
NAME_SERVER = "127.0.0.1"
OWNER = 64001
"""uid and gid of Postfix, in the namespace's own /etc/passwd."""


def address(host: int) -> str:
    """Return where a virtual host listens."""
    return f"127.0.1.{host + 1}"


def domain(host: int) -> str:
    """Return the domain of a virtual host."""
    return f"h{host}.example"


def serve(name: str, folder: Path, policy: str) -> None:
    """Be vnsmail, or aiosmtpd, until SIGTERM."""
    if name == "vnsmail":
        asyncio.run(_House(folder, policy).run())
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        _aiosmtpd(folder / "maildrop")


# vnsmail ------------------------------------------------------------------------------


class _House:
    """Stands for supervisor and broker: starts workers, and gives them what they ask for."""

    def __init__(self, folder: Path, policy: str) -> None:
        self._folder = folder
        self._policy = policy
        self._channels: list[Channel] = []
        self._doing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        from vnsmail.events.file import EventFile  # noqa: PLC0415
        from vnsmail.settings import (  # noqa: PLC0415
            Settings,
            SmtpSettings,
            to_json,
        )

        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await asyncio.get_running_loop().create_datagram_endpoint(
            _NothingThere, local_addr=(NAME_SERVER, 53)
        )
        log = EventFile(self._folder / "events.log")
        smtp = SmtpSettings(
            port=PORTS["vnsmail"], max_sessions=4000, max_sessions_per_address=4000
        )
        settings = Settings(smtp=smtp)
        count = settings.worker.count
        for number in range(count):
            hosts = range(number, HOSTS, count)
            await self._worker(number, to_json(settings), hosts, log.pipe())
        await ended.wait()
        log.close()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _worker(
        self, number: int, settings: str, hosts: range, events: int
    ) -> None:
        """Start a worker, and let it serve some hosts and send nothing."""
        from vnsmail.channel import Channel, pair  # noqa: PLC0415
        from vnsmail.engines import protocol  # noqa: PLC0415

        ours, theirs = pair()
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vnsmail.engines.native"),
            *("--channel-fd", str(theirs.fileno())),
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        channel = Channel(ours, large=True)
        self._channels.append(channel)
        broker, workers_end = pair()
        self._beside(self._broker(Channel(broker)))
        asked: list[tuple[protocol.Request, tuple[int, ...]]] = [
            (protocol.Configure(1, f"worker-{number}", settings, (NAME_SERVER,)), ()),
            (protocol.UseEvents(2), (events,)),
            (protocol.UseBroker(3), (workers_end.fileno(),)),
        ]
        for host in hosts:
            facts = protocol.OwnerFacts(
                owner=domain(host),
                name=domain(host),
                folder=str(self._folder / domain(host)),
                addresses=(address(host),),
                domains=(domain(host),),
                users=("user",),
                authentication=self._policy,
            )
            asked.append((protocol.Assign(len(asked) + 1, facts), ()))
            hold = protocol.HoldPlace(len(asked) + 1, domain(host), "*", "a benchmark")
            asked.append((hold, ()))
        for request, fds in asked:
            await channel.send(protocol.encode(request), fds)
            answer = protocol.decode_answer((await channel.receive())[0])
            if isinstance(answer, protocol.Failed):
                raise RuntimeError(answer.text)  # noqa: TRY004  an answer, no type

    async def _broker(self, channel: "Channel") -> None:
        from vnsmail.broker import protocol  # noqa: PLC0415
        from vnsmail.channel import ChannelClosed  # noqa: PLC0415

        with contextlib.suppress(ChannelClosed):
            while True:
                payload, _ = await channel.receive()
                answers: list[protocol.WorkerAnswer] = []
                opened: list[socket.socket] = []
                for request in protocol.decode_requests(payload):
                    if isinstance(request, protocol.OpenListener):
                        opened.append(listening(request.address, request.port))
                        answers.append(protocol.Opened(request.id, request.address))
                    elif isinstance(request, protocol.OpenResolver):
                        opened.append(socket.socket(type=socket.SOCK_DGRAM))
                        opened[-1].connect((NAME_SERVER, 53))
                        answers.append(protocol.Opened(request.id, None))
                    else:
                        nobody = protocol.Unavailable(request.id, 99, "held", None)
                        answers.append(nobody)
                fds = tuple(sock.fileno() for sock in opened)
                await channel.send(protocol.encode_batch(answers), fds)
                for sock in opened:
                    sock.close()


class _NothingThere(asyncio.DatagramProtocol):
    """A name server that knows no name (RFC 1035 section 4.1.1: NXDOMAIN)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(0, 12) + 5
        head = data[:2] + struct.pack("!5H", 0x8183, 1, 0, 0, 0)
        self._transport.sendto(head + data[12:end], addr)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(1024)
    return sock


# aiosmtpd -----------------------------------------------------------------------------


def _aiosmtpd(folder: Path) -> None:
    """Aiosmtpd with a handler that makes each message durable: a synced file a message."""
    from aiosmtpd.smtp import SMTP, Envelope, Session  # noqa: PLC0415

    for name in ("tmp", "new"):
        (folder / name).mkdir(parents=True)
    new = os.open(folder / "new", os.O_RDONLY)

    class Keep:
        async def handle_DATA(  # noqa: N802  aiosmtpd's name
            self, _server: SMTP, _session: Session, envelope: Envelope
        ) -> str:
            content = envelope.content or b""
            data = content if isinstance(content, bytes) else content.encode()
            await asyncio.to_thread(self.keep, data)
            return "250 2.0.0 kept"

        def keep(self, data: bytes) -> None:
            name = os.urandom(16).hex()
            fd = os.open(folder / "tmp" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            (folder / "tmp" / name).rename(folder / "new" / name)
            os.fsync(new)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(
            lambda: SMTP(Keep(), hostname=domain(0), enable_SMTPUTF8=True),
            sock=listening("0.0.0.0", PORTS["aiosmtpd"]),  # noqa: S104  own namespace
            backlog=1024,
        )
        await asyncio.Event().wait()

    asyncio.run(run())


# Postfix ------------------------------------------------------------------------------

MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
daemon_directory = {postfix}/usr/lib/postfix/sbin
command_directory = {postfix}/usr/sbin
mail_owner = postfix
setgid_group = postdrop
import_environment = MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
inet_interfaces = all
inet_protocols = ipv4
myhostname = h0.example
mydestination = {domains}
local_recipient_maps =
alias_maps =
smtpd_recipient_restrictions = reject_unauth_destination, static:HOLD
smtpd_peername_lookup = no
default_process_limit = 400
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
in_flow_delay = 0
"""

MASTER_CF = """\
{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
anvil unix - - n - 1 anvil
qmgr unix n - n 300 1 qmgr
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""

SPOOL = (
    "active bounce corrupt defer deferred flush hold incoming maildrop pid private"
    " public saved trace"
)


def start_postfix(package: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start Postfix's master with a configuration of our own; messages are held."""
    conf = folder / "conf"
    conf.mkdir()
    domains = " ".join(map(domain, range(HOSTS)))
    facts = {"folder": folder, "postfix": package, "domains": domains}
    (conf / "main.cf").write_text(MAIN_CF.format(**facts))
    (conf / "master.cf").write_text(MASTER_CF.format(port=PORTS["postfix"]))
    for name in ("spool", "data"):
        (folder / name).mkdir()
    os.chown(folder / "data", OWNER, OWNER)
    for name in SPOOL.split():
        (folder / "spool" / name).mkdir(mode=0o700)
        if name != "pid":
            os.chown(folder / "spool" / name, OWNER, OWNER)
    with (folder / "postfix.out").open("wb") as log:
        return subprocess.Popen(  # noqa: S603  the unpacked program
            [package / "usr/lib/postfix/sbin/master", "-d", "-c", conf],
            env={**os.environ, "MAIL_CONFIG": str(conf)},
            stdout=log,
            stderr=log,
        )
