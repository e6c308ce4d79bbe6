"""Mail hosts that behave as real ones do on bad days, for a test.

``python strange_remotes.py --folder DIR --at 10.77.0.201=greylist …``: one behaviour at
each address, port 25. What a host has accepted is a line of JSON in ``accepted`` in the
folder. It ends with its input. Standard library only.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

BEHAVIOURS: dict[str, type["Host"]] = {}


class Hangup(Exception):
    """The connection ends without a word."""


class Host:
    """A host that does as it should; each behaviour overrides a step."""

    extensions: tuple[str, ...] = ("PIPELINING", "SIZE 50000000")

    def __init_subclass__(cls):
        BEHAVIOURS[cls.__name__.lower()] = cls

    def __init__(self, folder):
        self.folder = folder
        self.seen: set[str] = set()

    def first(self, key):
        """Say whether something happens for the first time."""
        new = key not in self.seen
        self.seen.add(key)
        return new

    async def greet(self):
        return "220 strange.example"

    def hello(self, verb):
        if verb == "HELO":
            return "250 strange.example"
        lines = ["strange.example", *self.extensions]
        return "\r\n".join(f"250-{x}" for x in lines[:-1]) + f"\r\n250 {lines[-1]}"

    def mail(self):
        return "250 ok"

    def rcpt(self, to):
        return "250 ok"

    def hangs_up(self):
        """Say whether to hang up in the middle of a body."""
        return False

    def end(self, keep):
        keep()
        return "250 2.0.0 taken"

    async def serve(self, reader, writer):
        peer = writer.get_extra_info("peername")[0]
        try:
            await Session(self, reader, writer, peer).run()
        except (Hangup, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def accepted(self, peer, to, body):
        subject = body.partition(b"\r\nSubject: ")[2].partition(b"\r\n")[0].decode()
        who = type(self).__name__.lower()
        line = {"host": who, "peer": peer, "to": to, "subject": subject}
        with (self.folder / "accepted").open("a") as file:
            file.write(json.dumps(line) + "\n")


class Session:
    """One session with a host."""

    def __init__(self, host, reader, writer, peer):
        self.host, self.reader, self.writer, self.peer = host, reader, writer, peer
        self.to: list[str] = []
        self.chunks = b""

    async def say(self, text):
        self.writer.write(text.encode() + b"\r\n")
        await self.writer.drain()
        if text.startswith(("421", "554 5.3.2")):
            raise Hangup

    def keep(self, body):
        self.host.accepted(self.peer, list(self.to), body)

    async def run(self):
        await self.say(await self.host.greet())
        while line := (await self.reader.readline()).decode().strip():
            verb, _, rest = line.partition(" ")
            await self.command(verb.upper(), rest)

    async def command(self, verb, rest):
        host = self.host
        address = rest.partition("<")[2].partition(">")[0]
        if verb in {"EHLO", "HELO"}:
            await self.say(host.hello(verb))
        elif verb == "MAIL":
            self.to, self.chunks = [], b""
            await self.say(host.mail())
        elif verb == "RCPT":
            said = host.rcpt(address)
            if said.startswith("2"):
                self.to.append(address)
            await self.say(said)
        elif verb in {"DATA", "BDAT"}:
            await self.body(verb, rest)
        elif verb == "QUIT":
            await self.say("221 bye")
            raise Hangup
        else:
            await self.say("250 ok")

    async def body(self, verb, rest):
        if verb == "BDAT":
            octets, _, last = rest.partition(" ")
            self.chunks += await self.reader.readexactly(int(octets))
            if not last and self.to:
                await self.say("250 go on")
                return
            body = self.chunks
        elif self.to:
            await self.say("354 go on")
            body = await self.data()
        if not self.to:
            await self.say("503 5.5.1 nobody is to get it")
            return
        await self.say(self.host.end(lambda: self.keep(body)))

    async def data(self):
        lines = []
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line.removeprefix(b"."))
            if len(lines) == 4 and self.host.hangs_up():
                raise Hangup
        return b"".join(lines)


class Greylist(Host):
    """Asks everybody to come again once."""

    def rcpt(self, to):
        return "451 4.7.1 come again" if self.first(to) else "250 ok"


class ChunkList(Greylist):
    """The same, and takes chunks: the body is there before the refusal."""

    extensions: tuple[str, ...] = ("PIPELINING", "CHUNKING")


class MidData(Host):
    """Hangs up in the middle of the first body."""

    def hangs_up(self):
        return self.first("data")


class LostReply(Host):
    """Takes the first message, and is gone before it can say so."""

    def end(self, keep):
        keep()
        if self.first("reply"):
            raise Hangup
        return "250 2.0.0 taken"


class TwoOnly(Host):
    """Takes two messages, then wants a pause."""

    mails = 0

    def mail(self):
        self.mails += 1
        return "421 4.7.0 enough for now" if self.mails == 3 else "250 ok"


class TarPit(Host):
    """Greets when it is told to: when the file ``go`` is there."""

    async def greet(self):
        while not (self.folder / "go").exists():
            await asyncio.sleep(0.1)
        return "220-slow\r\n220 strange.example"


class Choosy(Host):
    """Takes mail for some."""

    def rcpt(self, to):
        return "550 5.1.1 no such user" if to.startswith("no") else "250 ok"


class TooLarge(Host):
    """Finds in the end that it was too much."""

    def end(self, keep):
        return "552 5.3.4 too large"


class Spam(Host):
    """Does not like what it read."""

    def end(self, keep):
        return "554 5.7.1 spam"


class OldTimer(Host):
    """Knows no EHLO."""

    def hello(self, verb):
        return "502 5.5.1 what?" if verb == "EHLO" else "250 strange.example"


class Closed(Host):
    """Wants no mail at all."""

    async def greet(self):
        return "554 5.3.2 no mail here"


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--at", action="append", default=[])
    arguments = parser.parse_args()
    for each in arguments.at:
        address, _, behaviour = each.partition("=")
        host = BEHAVIOURS[behaviour](arguments.folder)
        await asyncio.start_server(host.serve, address, 25)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
