"""What a running lab tells those who look at it from outside: ``lab.json`` of its root.

Pure values and one file. The file is written once everything runs and removed by the
lab that wrote it, so that a lab is up exactly when the file is there and the process it
names lives.
"""

from pathlib import Path

import msgspec

from vnsmail.errors import StateUnusable
from vnsmail.settings import Layout

FILE = "lab.json"


class RemoteFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mail host of the lab's internet that knows nothing of the senders."""

    name: str
    domain: str
    addresses: tuple[str, ...]
    mail: str
    """Folder with a Maildir for each user that got mail."""


class LabFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A running lab."""

    pid: int
    """The process that holds the lab's namespaces; when it ends, all of it goes."""
    capture: str
    """The pcapng file that records what crosses the lab's bridge."""
    machine_name: str
    machine_addresses: tuple[str, ...]
    nameserver: str
    remotes: tuple[RemoteFacts, ...]

    @property
    def mail(self) -> tuple[str, ...]:
        """Folders with the remotes' Maildirs."""
        return tuple(remote.mail for remote in self.remotes)


def read(layout: Layout) -> LabFacts | None:
    """Return what the lab of a root wrote; None where there is no lab.

    Raises:
        StateUnusable: the file cannot be read or is not what a lab writes.
    """
    path = file_of(layout)
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabFacts)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        remedy = "end the lab with `vnsmail lab down`"
        raise StateUnusable(str(path), str(error), remedy) from None


def file_of(layout: Layout) -> Path:
    """Return where the lab of a root writes its facts."""
    return layout.run / FILE
