"""What a proof is made of: who is judged, by what, and what came out. Pure values.

The judging is verdict.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vnsmail.capture.dialogue import Dialogue
from vnsmail.capture.flows import Flow
from vnsmail.capture.received import Received
from vnsmail.capture.witnesses import SocketSaid, Testimony, Witness
from vnsmail.model import IPAddress, SourceCheck


class Verdict(StrEnum):
    """What is proven of one sender, or of all."""

    PASS = "pass"  # noqa: S105  a verdict
    FAIL = "fail"
    NO_MAIL = "no mail"
    OFF = "off"
    """Nothing is judged, as the sender's source-check says."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Somebody whose mail is expected, and where it must come from."""

    name: str
    """Shown, and expected in EHLO unless ``helo`` is."""
    context: str
    """``namespace``, ``alias`` or ``machine``."""
    expected: tuple[IPAddress, ...]
    """Addresses that its mail may leave from."""
    addresses: frozenset[IPAddress]
    """All its addresses: nobody else's mail may leave from these."""
    domains: frozenset[str] = frozenset()
    """Mail domains: nobody else's connections may carry mail from these."""
    helo: str = ""
    """Expected in EHLO; empty is its name."""
    check: SourceCheck = SourceCheck.STRICT
    public: frozenset[IPAddress] = frozenset()
    """What others see of it behind NAT. Packets from there show nothing of what a socket
    was bound to: they are neither wrong nor proof."""

    @property
    def outside(self) -> frozenset[IPAddress]:
        """Return what remotes may see in place of its own addresses."""
        return self.public if self.check is SourceCheck.NAT else frozenset()

    @property
    def says(self) -> str:
        """Return the name expected in EHLO."""
        return self.helo or self.name

    def __str__(self) -> str:
        return "the machine" if self.context == "machine" else self.name


@dataclass(frozen=True, slots=True)
class Judged:
    """One sender's part of the proof."""

    sender: Sender
    seen: tuple[IPAddress, ...]
    """Sources of its connection requests (SYN)."""
    packets: int
    """From client to server, in connections that are its by what they say."""
    wrong: int
    """Those of them whose source is not expected."""
    helo: tuple[str, ...]
    """Names given in its connections."""
    mail_from: tuple[str, ...]
    """Domains in MAIL FROM of its connections."""
    attempts: int
    """Connections from its addresses that were refused, unanswered or turned away."""
    received: tuple[str, ...]
    """What remotes wrote of it: the wrong ones, else one for each address."""
    problems: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection of the capture, and what was made of it."""

    flow: Flow
    said: Dialogue
    sender: str
    """Name of the sender it belongs to by what it says, or by its address where it says
    nothing; empty: nobody's."""
    problems: tuple[str, ...] = ()
    stranger: bool = False
    """It was not judged: no sender began it."""
    older: bool = False
    """It was not judged: it was open before the capture began."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict on a capture."""

    hosts: tuple[Judged, ...]
    problems: tuple[str, ...]
    """What is wrong and no one sender's."""
    strangers: int
    """Connections that were not judged, as no sender began them."""
    connections: tuple[Connection, ...] = ()
    """All of the capture, in the order in which they began."""
    messages: tuple[Testimony, ...] = ()
    """Messages, with what each witness says."""
    asked: frozenset[Witness] = frozenset({Witness.PACKETS})
    """Witnesses that could be asked."""
    every: bool = True
    """Every sender must have sent mail; else some must."""

    @property
    def older(self) -> int:
        """Return how many connections were open before, and were not judged."""
        return sum(each.older for each in self.connections)

    @property
    def verdict(self) -> Verdict:
        """Pass if all of it is proven: every sender that is judged, nothing left over."""
        judged = [host for host in self.hosts if host.verdict is not Verdict.OFF]
        if not self.every:
            judged = [host for host in judged if host.verdict is not Verdict.NO_MAIL]
        proven = all(host.verdict is Verdict.PASS for host in judged)
        if judged and proven and not self.problems:
            return Verdict.PASS
        return Verdict.FAIL


End = tuple[IPAddress, int, IPAddress, int]
"""Both ends of a connection: the client's, the server's."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be judged, apart from the packets."""

    senders: Sequence[Sender]
    """Who is expected to have sent mail; no two share a name or address."""
    received: Sequence[Received] | None = None
    """What remotes wrote; None where nobody could be asked."""
    sockets: Sequence[SocketSaid] | None = None
    """What sockets said; None where nobody could be asked."""
    others: frozenset[IPAddress] = frozenset()
    """Addresses known to belong to somebody else, such as the remotes."""
    older: frozenset[End] = frozenset()
    """Connections that the kernel had before the capture began."""
    damage: Sequence[str] = ()
    """What makes the capture incomplete, in sentences. With any, nobody passes."""
    window: tuple[int, int] = (0, 0)
    """First and last moment of the capture, nanoseconds since the epoch."""
    every: bool = True
    """Every sender must have sent mail; else some must."""
