"""Three witnesses of each message: the packets, the socket, the remote. Pure.

    packets   the source of the connection that carried it, as captured
    socket    the address that getsockname(2) gave the sender (event ``delivered``)
    remote    the address that the receiving server wrote into its Received field

A socket's event and a connection belong together by both ends and the time; what a
remote wrote and a message by the trace field below, which has the sender's queue id.

Rules of this file: two that agree outvote the third; of two, the one that says what the
sender may send from is believed. Whoever could not be asked is absent, and counted, and
never made up for. One address seen by two witnesses may be two only behind NAT, where
the sender's settings say so.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vnsmail.capture.dialogue import Dialogue
from vnsmail.capture.fields import Origin
from vnsmail.capture.flows import Flow
from vnsmail.capture.received import Received
from vnsmail.model import IPAddress

SLACK = 10 * 10**9
"""Nanoseconds by which an event may be told after the last packet of its connection, or
the clocks of the two differ."""


class Witness(StrEnum):
    """Who says where a message came from."""

    PACKETS = "packets"
    SOCKET = "socket"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class SocketSaid:
    """What an event ``delivered`` says of the socket that carried a message."""

    owner: str
    """The virtual host's name, or ``machine``."""
    id: str
    """Queue id."""
    time: int
    """Nanoseconds since the epoch."""
    source: IPAddress
    source_port: int
    remote: str
    remote_address: IPAddress
    remote_port: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What is allowed of a sender."""

    name: str
    expected: frozenset[IPAddress]
    outside: frozenset[IPAddress] = frozenset()
    """What remotes may see instead (NAT)."""


@dataclass(frozen=True, slots=True)
class Testimony:
    """One message on one connection, and where each witness says it came from."""

    sender: str
    """Name of the sender."""
    id: str
    """Queue id; empty where nobody says it."""
    remote: str
    """Name or address of the server."""
    time: int
    """When: nanoseconds since the epoch."""
    said: Mapping[Witness, tuple[IPAddress, ...]]
    """Of those that said anything."""
    dissent: tuple[Witness, ...] = ()
    """Who says otherwise than the others, or than is allowed."""
    flow: Flow | None = field(default=None, compare=False, repr=False)

    @property
    def absent(self) -> tuple[Witness, ...]:
        """Return who did not say anything."""
        return tuple(w for w in Witness if w not in self.said)

    def sentence(self) -> str:
        """Return what is wrong, for a person."""
        told = ", ".join(
            f"the {witness} {_SAYS[witness]} {' and '.join(map(str, self.said[witness]))}"
            for witness in self.said
        )
        who = " and ".join(self.dissent)
        return (
            f"message {self.id or 'without an id'} to {self.remote}: "
            f"{who} dissents: {told}"
        )


_SAYS = {Witness.PACKETS: "come from", Witness.SOCKET: "has", Witness.REMOTE: "saw"}


@dataclass(frozen=True, slots=True)
class Heard:
    """A connection that is a sender's by what it says."""

    flow: Flow
    said: Dialogue
    sender: str


@dataclass(frozen=True, slots=True)
class Hearing:
    """What is known, and to whom it may belong."""

    connections: Sequence[Heard]
    standing: Mapping[str, Standing]
    """By name of the sender."""
    owners: Mapping[str, str]
    """Name of the sender by owner, as events have it."""
    received: Sequence[Received] = ()
    window: tuple[int, int] = (0, 0)
    """First and last moment of the capture: messages outside are none of it."""
    local: frozenset[IPAddress] = frozenset()
    """Addresses in the machine's own network: what goes from one of them to another
    leaves by no link."""


def compare(
    hearing: Hearing, sockets: Iterable[SocketSaid]
) -> tuple[list[Testimony], list[str]]:
    """Return what the witnesses say of each message.

    Returns:
        The messages in order of time, and sentences about what sockets say they sent
        while the capture ran and no packet shows.
    """
    court = _Stand(hearing)
    for event in _each_once(sockets):
        court.hear(event)
    court.hear_the_rest()
    return sorted(court.found, key=lambda each: each.time), court.unseen


class _Stand:
    """Where the witnesses speak."""

    def __init__(self, hearing: Hearing) -> None:
        self.found: list[Testimony] = []
        self.unseen: list[str] = []
        self._hearing = hearing
        self._index: dict[tuple[object, ...], list[Heard]] = {}
        for each in hearing.connections:
            flow = each.flow
            key = (flow.client_port, flow.server, flow.server_port)
            self._index.setdefault(key, []).append(each)
        self._lines: dict[str, list[Received]] = {}
        for line in hearing.received:
            if line.origin is not None:
                self._lines.setdefault(line.origin.id, []).append(line)
        self._told: dict[int, set[str]] = {}
        """Ids that sockets told, by connection."""

    def hear(self, event: SocketSaid) -> None:
        """Take what a socket says of a message."""
        heard = _connection(event, self._index)
        sender = self._hearing.owners.get(event.owner, event.owner)
        if heard is not None:
            self._told.setdefault(id(heard.flow), set()).add(event.id)
            self._add(heard, Origin(sender, event.id), event)
            return
        if {event.source, event.remote_address} <= self._hearing.local:
            return
        first, last = self._hearing.window
        if first <= event.time <= last:
            self.unseen.append(
                f"{sender}: message {event.id}: its socket says it was sent from "
                f"{event.source} port {event.source_port} to {event.remote_address}, "
                "and no packet of that was captured"
            )

    def hear_the_rest(self) -> None:
        """Take the messages that packets show and no socket told of."""
        for heard in self._hearing.connections:
            for each in _without_event(heard, self._told.get(id(heard.flow), set())):
                self._add(heard, each, None)

    def _add(self, heard: Heard, origin: Origin, event: SocketSaid | None) -> None:
        lines = self._lines.get(origin.id, [])
        self.found.append(_testimony(self._hearing, heard, origin, event, lines))


def _each_once(sockets: Iterable[SocketSaid]) -> Iterable[SocketSaid]:
    """Give one event of those for several recipients of one transaction."""
    seen: set[tuple[object, ...]] = set()
    for each in sockets:
        key = (each.owner, each.id, each.source, each.source_port, each.remote_address)
        if key not in seen:
            seen.add(key)
            yield each


def _connection(
    event: SocketSaid, index: Mapping[tuple[object, ...], list[Heard]]
) -> Heard | None:
    """Return the connection that an event is of.

    One from another address, with the same ports, remote and time, is the same: then
    the two say different things of it.
    """
    key = (event.source_port, event.remote_address, event.remote_port)
    there = [
        each
        for each in index.get(key, ())
        if each.flow.began - SLACK <= event.time <= each.flow.ended + SLACK
    ]
    exact = [each for each in there if each.flow.client == event.source]
    return next(iter(exact or there), None)


def _without_event(heard: Heard, told: Collection[str]) -> list[Origin]:
    """Return the messages of a connection that no socket told of."""
    found = []
    for each in heard.said.transactions:
        known = each.origin.id if each.origin else ""
        if each.taken and (known not in told if known else not told):
            found.append(Origin(heard.sender, known))
    if heard.said.encrypted and not told:
        found.append(Origin(heard.sender, ""))
    return found


def _testimony(
    hearing: Hearing,
    heard: Heard,
    origin: Origin,
    event: SocketSaid | None,
    lines: Sequence[Received],
) -> Testimony:
    said: dict[Witness, tuple[IPAddress, ...]] = {Witness.PACKETS: (heard.flow.client,)}
    if event is not None:
        said[Witness.SOCKET] = (event.source,)
    remote = event.remote if event and event.remote else str(heard.flow.server)
    seen = _seen_by_remote(lines, event, heard.flow.client)
    if seen:
        said[Witness.REMOTE] = seen
    standing = hearing.standing.get(heard.sender, Standing(heard.sender, frozenset()))
    return Testimony(
        sender=heard.sender,
        id=origin.id,
        remote=remote,
        time=event.time if event else heard.flow.began,
        said=said,
        dissent=_dissent(said, standing),
        flow=heard.flow,
    )


def _seen_by_remote(
    lines: Sequence[Received], event: SocketSaid | None, source: IPAddress
) -> tuple[IPAddress, ...]:
    """Return the address that this message's remote wrote down.

    A message may have gone to several; where nothing tells which wrote what, one that
    wrote the source is taken for this one.
    """
    named = [line for line in lines if event and line.remote == event.remote]
    addresses = {a for line in named or lines for a in line.addresses}
    if source in addresses:
        return (source,)
    return tuple(sorted(addresses, key=lambda a: (a.version, int(a))))


def _dissent(
    said: Mapping[Witness, tuple[IPAddress, ...]], standing: Standing
) -> tuple[Witness, ...]:
    """Return who dissents; nobody, if all say one address that is allowed."""
    votes: dict[Witness, frozenset[IPAddress]] = {
        witness: frozenset(addresses) for witness, addresses in said.items()
    }
    remote = votes.get(Witness.REMOTE)
    own = votes[Witness.PACKETS]
    if remote and remote <= standing.outside and own <= standing.expected:
        votes[Witness.REMOTE] = own  # NAT stands between, as it should
    if len(set(votes.values())) == 1:
        return ()
    for witness, vote in votes.items():
        others = [each for other, each in votes.items() if other is not witness]
        if len(others) == 2 and others[0] == others[1] != vote:
            return (witness,)
    wrong = [w for w, vote in votes.items() if not vote <= standing.expected]
    return tuple(wrong or votes)
