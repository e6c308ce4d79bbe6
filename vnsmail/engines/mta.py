"""Mail servers that others wrote, as engines of a virtual host. Pure.

What each needs to run in a host's context: files, folders, commands, and how its list of
queued mail is read. Where it runs and as whom is decided in supervisor/engine_keeper.py.

Rules of this file: the configuration is whole, and made of facts of the host alone; no
server listens on any address; what it does not deliver to others it gives back to the
host's own port 25.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vnsmail.model import Engine, IPAddress

ACCOUNT = "engine"
"""What the account that a server runs as is called where nothing else is wanted."""
RUN = "/run/engine"
"""Folder, in the server's view, for what lasts as long as it runs."""


@dataclass(frozen=True, slots=True)
class MtaFacts:
    """A virtual host, as its engine must know it."""

    owner: str
    says: str
    """The name given in EHLO."""
    domains: tuple[str, ...]
    """Domains whose mail is the host's own; it goes back to the host."""
    ipv4: IPAddress | None
    """The address mail of that family leaves from."""
    ipv6: IPAddress | None
    binds: bool
    """Whether a source has to be chosen: in an alias context."""
    port: int
    """Where the host takes mail from other servers."""
    max_size: int
    """Octets of the largest message."""

    @property
    def home(self) -> IPAddress:
        """An address at which the host itself is reached."""
        home = self.ipv4 or self.ipv6
        assert home is not None  # noqa: S101  every host has an address
        return home


@dataclass(frozen=True, slots=True)
class Queued:
    """A message in an engine's queue."""

    id: str
    sender: str
    recipients: tuple[tuple[str, str], ...]
    """Address, and why it waits."""
    size: int
    """Octets."""
    received_at: float
    """Seconds since the epoch."""
    held: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A command that makes a file before the server is started."""

    command: tuple[str, ...]
    reads: str
    writes: str


@dataclass(frozen=True, slots=True)
class Mta:
    """How one server is run. Paths and commands are those of its Debian package."""

    engine: Engine
    package: str
    programs: tuple[str, ...]
    """All must be there."""
    account: str
    """What it calls the account that it runs as."""
    group: str
    """A second group that it wants; empty: none."""
    capabilities: tuple[str, ...]
    """What its first process keeps of root; none: it is not root."""
    spool: str
    """Where it sees its queue."""
    queued: tuple[str, ...]
    """Patterns of files in its spool that are messages."""
    folders: tuple[tuple[str, int, bool], ...]
    """Folders to make: path, mode, and whether they are of ``group``."""
    files: Callable[[MtaFacts], Mapping[str, str]]
    """Text by path."""
    steps: tuple[Step, ...]
    run: tuple[str, ...]
    """Stays in the foreground."""
    submit: tuple[str, ...]
    """Speaks SMTP on its standard input and output."""
    listing: tuple[str, ...]
    flush: tuple[str, ...]
    """Try all that waits now."""
    read: Callable[[str, float], tuple[Queued, ...]]
    """Understands what ``listing`` prints, at a time."""


def missing(mta: Mta, there: Callable[[str], bool]) -> str:
    """Return a remedy if the server's programs are not there; empty if they are."""
    lacking = next((path for path in mta.programs if not there(path)), None)
    if lacking is None:
        return ""
    return f"{lacking} is not there; install it with `apt-get install {mta.package}`"


def route_back(facts: MtaFacts) -> str:
    """Return the host's own address as an address literal."""
    version = "IPv6:" if facts.home.version == 6 else ""
    return f"[{version}{facts.home}]"
