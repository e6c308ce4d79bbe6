"""What a worker sees of the file system: no state but its own, and Python.

``plan`` is pure. Folders are covered with an empty file system; what is shown below
them is bound there again from where it was. So a file that the worker writes is the
real one, and what it was not shown has no path that leads to it.

Rules of this file: covers, and what is shown below them, may be nested in any order;
the order of work is outside in. Nothing here changes what another process sees, nor
keeps alive what another takes away: mounts are a copy that follows the original, and
a named network namespace ends when its file is unlinked, whoever has it mounted.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

import vnsmail
from vnsmail.errors import StateUnusable
from vnsmail.supervisor import kernel

_MAX_LINKS = 40
"""Symbolic links on the way to a file, as in the kernel (path_resolution(7))."""
_EMPTY = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
)
_CODE = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
_DATA = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True, slots=True)
class Cover:
    """Make a folder look empty."""

    path: Path


@dataclass(frozen=True, slots=True)
class Show:
    """Make a file or folder below a cover appear again."""

    path: Path
    attributes: int


@dataclass(frozen=True, slots=True)
class Link:
    """Make a symbolic link below a cover appear again."""

    path: Path
    target: str


@dataclass(slots=True)
class Wanted:
    """What is to be seen and what is not; paths without symbolic links in them."""

    covers: set[Path] = field(default_factory=set)
    shown: dict[Path, int] = field(default_factory=dict)
    """With the MOUNT_ATTR_* flags it gets."""
    links: dict[Path, str] = field(default_factory=dict)


def plan(wanted: Wanted) -> list[Cover | Show | Link]:
    """Return the steps to a view, in order.

    Raises:
        StateUnusable: a folder would have to be covered and shown.
    """
    for path in wanted.covers & wanted.shown.keys():
        raise StateUnusable(
            str(path), "it holds state and Python's own files", "give another --root"
        )
    steps: list[Cover | Show | Link] = [Cover(path) for path in wanted.covers]
    steps += [Show(p, a) for p, a in wanted.shown.items() if _covered(p, wanted)]
    steps += [Link(p, t) for p, t in wanted.links.items() if _covered(p, wanted)]
    return sorted(steps, key=lambda step: step.path.parts)


def _covered(path: Path, wanted: Wanted) -> bool:
    """Return whether the next thing above a path is a cover, not what is shown."""
    for parent in path.parents:
        if parent in wanted.covers:
            return True
        if parent in wanted.shown:
            return False
    return False


# What is wanted ---------------------------------------------------------------


def of_worker(revealed: Iterable[Path], uid: int, gid: int) -> Wanted:
    """Return what a worker is to see: the revealed folders, and nothing beside them.

    Python and this package stay visible if they lie below what is covered. A folder on
    the way that the account may not pass, such as a home of mode 0700, is covered too,
    so that what is shown below it can be reached and the rest cannot.

    Raises:
        StateUnusable: a folder to reveal is not there.
    """
    wanted = Wanted()
    for path in revealed:
        links, end = walk(path)
        if not end.is_dir() or end == end.parent:
            raise StateUnusable(str(path), "it is no folder to show", "see the log")
        wanted.links |= links
        wanted.shown[end] = _DATA
        wanted.covers.add(end.parent)
    for path in _python():
        links, end = walk(path)
        wanted.links |= links
        if end.exists():
            wanted.shown.setdefault(end, _CODE)
    for path in _search_path():
        links, end = walk(path)
        # A root in the very folder of the package: the package itself is shown, above.
        if end.exists() and end not in wanted.covers:
            wanted.links |= links
            wanted.shown.setdefault(end, _CODE)
    for path in [*wanted.shown, *wanted.links]:
        wanted.covers |= {p for p in path.parents if not _passable(p, uid, gid)}
    return wanted


def hidden_from(uid: int, gid: int) -> Path | None:
    """Return a folder on the way to Python that the account may not pass, if any."""
    for path in [*_python(), *_search_path()]:
        links, end = walk(path)
        for known in [*links, end]:
            for parent in known.parents:
                if not _passable(parent, uid, gid):
                    return parent
    return None


def walk(path: Path) -> tuple[dict[Path, str], Path]:
    """Return the symbolic links on the way to a file, and where the way ends.

    Raises:
        StateUnusable: the links go round in circles.
    """
    links: dict[Path, str] = {}
    at = Path("/")
    ahead = list(path.parts[1:])
    followed = 0
    while ahead:
        if (name := ahead.pop(0)) == "..":
            at = at.parent
            continue
        if not (at / name).is_symlink():
            at /= name
            continue
        target = os.readlink(at / name)
        followed += 1
        if followed > _MAX_LINKS:
            raise StateUnusable(str(path), "too many symbolic links", "mend it")
        links[at / name] = target
        if target.startswith("/"):
            at = Path("/")
        ahead = [*Path(target.lstrip("/")).parts, *ahead]
    return links, at


def _python() -> Iterator[Path]:
    """Give what Python needs to run this package."""
    for prefix in {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}:
        for name in ("bin", "lib", "lib64", "pyvenv.cfg"):
            yield Path(prefix, name)
    yield Path(sys.executable)
    yield Path(vnsmail.__file__).parent


def _search_path() -> Iterator[Path]:
    return (Path(entry) for entry in sys.path if entry.startswith("/"))


def _passable(folder: Path, uid: int, gid: int) -> bool:
    """Return whether an account without privilege may go through a folder."""
    status = folder.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


# Doing it ---------------------------------------------------------------------


MEMORY = Path("/dev/shm")  # noqa: S108  of the worker alone
"""Where a worker has a file system of its own, in memory: libraries that read keys from
files only get them there, and no disk ever has them (vnsmail/tls/layer.py)."""


def apply(steps: Iterable[Cover | Show | Link], uid: int, gid: int) -> None:
    """Take the steps, in a mount namespace of our own that is still a copy.

    Args:
        steps: what ``plan`` returned.
        uid: the worker's account, to which MEMORY is given.
        gid: its group.

    Raises:
        OSError: the kernel refused one.
    """
    steps = list(steps)
    os.umask(0o022)
    kernel.mount("", Path("/"), flags=kernel.MS_REC | kernel.MS_SLAVE)
    flags = os.O_PATH | os.O_CLOEXEC
    sources = {s.path: os.open(s.path, flags) for s in steps if isinstance(s, Show)}
    for step in steps:
        match step:
            case Cover(path):
                path.mkdir(mode=0o755, parents=True, exist_ok=True)
                kernel.mount("vnsmail", path, kind="tmpfs", data="mode=0755,size=1m")
            case Show(path, attributes):
                _show(sources[path], path, attributes)
            case Link(path, target):
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                if not path.is_symlink():
                    path.symlink_to(target)
            case _:
                assert_never(step)
    for step in steps:
        if isinstance(step, Cover):
            kernel.restrict_mount(step.path, _EMPTY)
    for fd in sources.values():
        os.close(fd)
    # Other processes of the account, and their memory, are nobody's business.
    kernel.mount("vnsmail", Path("/proc"), kind="tmpfs", data="mode=0755,size=1m")
    kernel.restrict_mount(Path("/proc"), _EMPTY)
    if MEMORY.is_dir():
        data = f"mode=0700,size=4m,uid={uid},gid={gid}"
        kernel.mount("vnsmail", MEMORY, kind="tmpfs", data=data)
        kernel.restrict_mount(MEMORY, _DATA)


def _show(source: int, path: Path, attributes: int) -> None:
    if stat.S_ISDIR(os.fstat(source).st_mode):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    else:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.touch(exist_ok=True)
    flags = kernel.MS_BIND | kernel.MS_REC
    kernel.mount(f"/proc/self/fd/{source}", path, flags=flags)
    kernel.restrict_mount(path, attributes, below=True)
