"""Each connection as it begins: does it come from the address of whom it says it is? Pure.

What ``vnsmail audit`` looks for, in little memory and whatever the load: of a connection
it keeps what the client said up to the end of its EHLO, and of all together LIMIT
connections. The kernel hands over no more than that needs (bpf.py).

    SYN from an address of nobody here, to no address here    wrong at once
    EHLO with a sender's name, from another's address         wrong
    EHLO with nobody's name, from a sender's address          wrong, as for the proof
    to an address here                                        mail coming in: not judged
    without a SYN, from a sender's address                    it began earlier: not judged

Rules of this file: those of verdict.py, but that a connection is judged when it begins
and then forgotten; packets are repeated, out of order or missing.
"""

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vnsmail.capture.fields import printable
from vnsmail.capture.packets import ACK, FIN, RST, SYN, Packet
from vnsmail.capture.proof import Sender
from vnsmail.model import IPAddress, IPNetwork, SourceCheck

LIMIT = 8192
"""Connections that are followed up to their EHLO: some 2 MiB. Those that stay silent
longest are given up first, and counted."""

HELLO = 1024
"""Octets in which a client has said EHLO. RFC 5321 section 4.5.3.1.4 has 512."""

_HELLO = re.compile(
    rb"^(?:EHLO|HELO)[ \t]+([^\r\n]*?)[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE
)
_Key = tuple[IPAddress, int, IPAddress, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """A connection that is wrong."""

    time: int
    """Nanoseconds since the epoch."""
    host: str
    """Name of the sender it says it is of; else of who has the address; else empty."""
    source: IPAddress
    source_port: int
    remote: IPAddress
    remote_port: int
    helo: str
    reason: str


@dataclass(slots=True)
class Counts:
    """What was looked at."""

    packets: int = 0
    connections: int = 0
    """That were seen to begin."""
    right: int = 0
    """Of those: whose EHLO and address belong together."""
    wrong: int = 0
    given_up: int = 0


@dataclass(slots=True)
class _Open:
    next: int
    """Sequence number of what is to come."""
    said: bytearray = field(default_factory=bytearray)


class Auditor:
    """Judges connections as they begin.

    Args:
        senders: who sends from where.
        ports: those that count as SMTP.
        ignore: networks whose connections are somebody else's, passing by.
    """

    def __init__(
        self,
        senders: Iterable[Sender],
        ports: Collection[int],
        ignore: Collection[IPNetwork] = (),
    ) -> None:
        self.counts = Counts()
        self._ports = frozenset(ports)
        self._ignore = tuple(ignore)
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        self._wrong: OrderedDict[_Key, None] = OrderedDict()
        self.know(senders)

    def know(self, senders: Iterable[Sender]) -> None:
        """Take other senders from now on."""
        senders = tuple(senders)
        self._by_name = {sender.says: sender for sender in senders}
        self._holders = {a: s for s in senders for a in s.addresses}

    def add(self, packet: Packet, time: int) -> Finding | None:
        """Take a packet; return what is wrong, once for each connection.

        Args:
            packet: any.
            time: when it was captured, nanoseconds since the epoch.
        """
        if packet.destination_port not in self._ports or packet.is_fragment:
            return None
        self.counts.packets += 1
        ends = (packet.source, packet.source_port)
        key: _Key = (*ends, packet.destination, packet.destination_port)
        if packet.has(SYN) and not packet.has(ACK):
            return self._begin(key, packet, time)
        found = self._open.get(key)
        if found is None:
            return self._unknown(key, time)
        reason, name = "", ""
        if packet.payload and packet.sequence == found.next:
            found.next = (packet.sequence + packet.length) % 2**32
            found.said += packet.payload[:HELLO]
            reason, name, ended = self._heard(key, found)
            if ended:
                del self._open[key]
        if packet.flags & (FIN | RST):
            self._open.pop(key, None)
        return self._finding(key, time, name, reason) if reason else None

    def _begin(self, key: _Key, packet: Packet, time: int) -> Finding | None:
        first = (packet.sequence + 1) % 2**32
        known = self._open.get(key)
        if known is not None and known.next == first:
            return None  # said again, or seen at another place
        if self._is_foreign(key):
            return self._unknown(key, time)
        if key[0] not in self._holders:
            return None
        self.counts.connections += 1
        self._open[key] = _Open(first)
        self._open.move_to_end(key)
        if len(self._open) > LIMIT:
            self._open.popitem(last=False)
            self.counts.given_up += 1
        return None

    def _is_foreign(self, key: _Key) -> bool:
        """Say whether neither end is anybody's here, and it is not known to be others'."""
        if key[0] in self._holders or key[2] in self._holders:
            return False
        return not any(key[0] in network for network in self._ignore)

    def _unknown(self, key: _Key, time: int) -> Finding | None:
        if not self._is_foreign(key):
            return None
        return self._finding(key, time, "", "it is an address of nobody here")

    def _heard(self, key: _Key, found: _Open) -> tuple[str, str, bool]:
        """Return what is wrong with an EHLO, its name, and whether all is known."""
        match = _HELLO.search(bytes(found.said))
        if match is None:
            return "", "", len(found.said) >= HELLO
        name = printable(match.group(1).decode("utf-8", "replace")).lower().rstrip(".")
        holder, sender = self._holders[key[0]], self._by_name.get(name)
        reason = ""
        if sender is None:
            reason = f"it is {holder}'s address, and {name} is a name of nobody here"
            sender = holder
        elif holder is not sender:
            reason = f"it is {holder}'s address, and says it is {name}"
        elif key[0] not in sender.expected:
            reason = "it is an address of its own that it does not send from"
        if sender.check is SourceCheck.OFF:
            return "", name, True
        self.counts.right += not reason
        return reason, name, True

    def _finding(self, key: _Key, time: int, name: str, reason: str) -> Finding | None:
        if key in self._wrong:
            return None
        self._wrong[key] = None
        if len(self._wrong) > LIMIT:
            self._wrong.popitem(last=False)
        self.counts.wrong += 1
        holder = self._holders.get(key[0])
        blamed = self._by_name.get(name) or holder
        return Finding(time, blamed.name if blamed else "", *key, name, reason)
