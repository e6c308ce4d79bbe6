"""The process of the audit: ``python -m vnsmail.capture.watcher --channel-fd N``.

Started by the supervisor, in an empty network namespace, without any capability and
with the system call filter of workers. It is handed packet sockets whose filters are
locked, and so hears how SMTP connections begin on those links, and nothing else.

Rules of this file: whatever is on the wire, it goes on; what it keeps is bounded.
"""

import argparse
import asyncio
import ipaddress
import socket
from collections import deque
from collections.abc import Iterable

from vnsmail import log as logging
from vnsmail.capture import audit_protocol as protocol
from vnsmail.capture.audit import Auditor, Finding
from vnsmail.capture.packets import ETHERNET, parse
from vnsmail.capture.proof import Sender
from vnsmail.capture.ring import Tap
from vnsmail.channel import Channel, ChannelClosed, close_all

KEPT = 200
"""Findings kept until they are asked for. All are counted."""

log = logging.logger("audit")


class Watcher:
    """Looks at rings, and answers the supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._taps: list[Tap] = []
        self._auditor = Auditor((), ())
        self._senders: tuple[Sender, ...] = ()
        self._found: deque[Finding] = deque(maxlen=KEPT)
        self._gone: set[str] = set()
        self._dropped = 0

    async def run(self) -> None:
        """Answer until the supervisor goes."""
        try:
            while True:
                payload, fds = await self._channel.receive()
                answer = self._handle(protocol.decode_request(payload), fds)
                await self._channel.send(protocol.encode(answer))
        except ChannelClosed:
            pass
        finally:
            self._let_go()

    def _handle(self, request: protocol.Request, fds: list[int]) -> protocol.Answer:
        match request:
            case protocol.Watch():
                self._watch(request, fds)
            case protocol.Know():
                close_all(fds)
                self._senders = tuple(map(_sender, request.senders))
                self._auditor.know(self._senders)
            case protocol.Report():
                close_all(fds)
                return self._reported(request.id)
        return protocol.Done(request.id)

    def _watch(self, request: protocol.Watch, fds: list[int]) -> None:
        self._let_go()
        counts = self._auditor.counts
        ignore = [ipaddress.ip_network(each) for each in request.ignore]
        self._auditor = Auditor(self._senders, request.ports, ignore)
        self._auditor.counts = counts
        loop = asyncio.get_running_loop()
        for link, fd in zip(request.links, fds, strict=True):
            tap = Tap(socket.socket(fileno=fd), link, request.size)
            self._taps.append(tap)
            loop.add_reader(tap.fileno(), self._take, tap)

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        for tap in self._taps:
            loop.remove_reader(tap.fileno())
            self._dropped += tap.count().dropped
            tap.close()
        self._taps.clear()

    def _take(self, tap: Tap) -> None:
        before = tap.taken
        for block in tap.blocks():
            for packet in block:
                parsed = parse(bytes(packet.data), ETHERNET)
                if parsed is None:
                    continue
                finding = self._auditor.add(parsed, packet.time)
                if finding is not None:
                    self._found.append(finding)
        if tap.taken == before and tap.is_gone():
            asyncio.get_running_loop().remove_reader(tap.fileno())
            self._gone.add(tap.link)

    def _reported(self, number: int) -> protocol.Reported:
        dropped = self._dropped + sum(tap.count().dropped for tap in self._taps)
        counts = self._auditor.counts
        found = tuple(map(_told, self._found))
        gone, self._gone = tuple(sorted(self._gone)), set()
        self._found.clear()
        return protocol.Reported(
            id=number,
            packets=counts.packets,
            connections=counts.connections,
            right=counts.right,
            wrong=counts.wrong,
            given_up=counts.given_up,
            dropped=dropped,
            found=found,
            gone=gone,
        )


def _sender(facts: protocol.SenderFacts) -> Sender:
    return Sender(
        name=facts.name,
        context=facts.context,
        helo=facts.helo,
        expected=tuple(_addresses(facts.expected)),
        addresses=frozenset(_addresses(facts.addresses)),
        check=facts.check,
    )


def _addresses(
    texts: Iterable[str],
) -> Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return (ipaddress.ip_address(text) for text in texts)


def _told(finding: Finding) -> protocol.Found:
    return protocol.Found(
        time=finding.time / 1e9,
        host=finding.host,
        source=str(finding.source),
        source_port=finding.source_port,
        remote=str(finding.remote),
        remote_port=finding.remote_port,
        helo=finding.helo,
        reason=finding.reason,
    )


async def _main(channel_fd: int) -> None:
    channel = Channel(socket.socket(fileno=channel_fd), large=True)
    try:
        await Watcher(channel).run()
    finally:
        channel.close()
    log.info("audit.ended")


def main() -> None:
    """Watch on the channel it inherited."""
    parser = argparse.ArgumentParser(description="The audit; not for shells.")
    parser.add_argument("--channel-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.configure(process="audit")
    asyncio.run(_main(arguments.channel_fd))


if __name__ == "__main__":
    main()
