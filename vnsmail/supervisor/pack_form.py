"""What a pack looks like: one host in a tar file. Pure.

    host.toml        its facts, as in the hosts file
    people.json      users with what they prove themselves with, aliases, senders
    dkim/…           its DKIM keys
    tls/…            its certificates and their keys
    relay/…          the password that it signs in at its relay with
    owner/…          queue.db, body/, mail/, counters.json
    manifest.json    the last: who, which form, and a digest of all that stands before

Rules of this file: plain files and folders only; a name is relative, without ``..``,
and below one of those above. What is anything else is refused, not put right.
"""

import hashlib
import re
from typing import Final

import msgspec

from vnsmail.directory.moves import PackedPeople
from vnsmail.errors import BadInput

FORM: Final = 1
SUFFIX = ".vnsmail-pack"

FACTS, PEOPLE, MANIFEST = "host.toml", "people.json", "manifest.json"
AREAS = ("owner", "tls", "dkim", "relay")
"""Folders of a pack, each of which becomes a folder of an installation."""

MAX_TEXT = 64 * 1024 * 1024
"""Bytes of host.toml, people.json and manifest.json."""
MAX_DEPTH = 16
MAX_PART = 255  # NAME_MAX of limits.h

_ID = re.compile(r"[0-9a-f]{32}")


class BadPack(BadInput):
    """A file that is no pack, or one that somebody damaged; nothing is changed."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__("pack", file, f"{problem}; nothing was changed")
        self.args = (file, problem)  # what it is made of again in another process


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a pack."""

    form: int
    pack: str
    """Its id: 32 hexadecimal digits; the same however often its host is packed."""
    host: str
    version: str
    """Of the program that made it."""
    packed_at: float
    """Seconds since the epoch."""
    files: int
    octets: int
    digest: str
    """SHA-256 over name, size and SHA-256 of each file, in order; hexadecimal."""


class Digest:
    """Adds up what stands in a pack; the same files in another order are another one."""

    def __init__(self) -> None:
        self.files = 0
        self.octets = 0
        self._sum = hashlib.sha256()

    def add(self, name: str, size: int, sha256: bytes) -> None:
        """Count a file in; a folder is one without octets whose name ends with /."""
        self.files += 1
        self.octets += size
        head = name.encode("utf-8", "surrogateescape") + b"\0%d\0" % size
        self._sum.update(head + sha256)

    @property
    def hexadecimal(self) -> str:
        return self._sum.hexdigest()


def judge_name(file: str, name: str, *, folder: bool) -> None:
    """Check the name of something in a pack.

    Raises:
        BadPack: it may not stand in one.
    """
    if not folder and name in {FACTS, PEOPLE, MANIFEST}:
        return
    parts = name.split("/")
    good = (
        parts[0] in AREAS
        and (folder or len(parts) > 1)
        and len(parts) <= MAX_DEPTH
        and all(_is_part(part) for part in parts)
    )
    if not good:
        raise BadPack(file, f"{name!r} is no name in a pack")


def _is_part(part: str) -> bool:
    octets = part.encode("utf-8", "surrogateescape")
    return (
        part not in {"", ".", ".."} and b"\0" not in octets and len(octets) <= MAX_PART
    )


def read_manifest(file: str, data: bytes, digest: Digest) -> Manifest:
    """Return the end of a pack, once it is known to be that of what stands before.

    Raises:
        BadPack: it is not.
    """
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadPack(file, f"its manifest cannot be read: {error}") from None
    if found.form != FORM:
        raise BadPack(file, f"it is of form {found.form}; this program reads {FORM}")
    if not _ID.fullmatch(found.pack):
        raise BadPack(file, "its manifest has no id")
    said = (found.files, found.octets, found.digest)
    if said != (digest.files, digest.octets, digest.hexadecimal):
        raise BadPack(file, "its files are not those of its manifest")
    return found


def read_people(file: str, data: bytes) -> PackedPeople:
    """Return the people of a pack.

    Raises:
        BadPack: they cannot be read.
    """
    try:
        return msgspec.json.decode(data, type=PackedPeople)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadPack(file, f"{PEOPLE} cannot be read: {error}") from None
