"""The file system that a host's engine sees, and what it may do. PRIVILEGED.

    /usr, /bin, /lib …    the machine's, read-only
    /etc                  made for it: its configuration, accounts, the host's names
    /dev, /proc, /run     its own; /dev/log leads to whoever keeps it
    its spool             the host's folder for this engine, the one thing it can change

Rules of this file: what is not listed is not there; it is built in mount and process
namespaces that are the engine's own; after ``drop`` nothing can be gained again.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from vnsmail.supervisor import kernel, privileges

_NEW = Path("/run")
"""Covered in our own mount namespace; any folder that is always there would do."""
_SHOWN = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_OF_ETC = (
    "ssl",
    "ca-certificates",
    "ld.so.cache",
    "localtime",
    "services",
    "protocols",
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_CODE = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
_DATA = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


def build(
    files: Mapping[str, str],
    spool: tuple[Path, str],
    writable: Iterable[str],
    uid: int,
    gid: int,
) -> None:
    """Make what is to be seen, and make it the root of this process.

    Args:
        files: texts below /etc, by path.
        spool: a folder, and where it is to be seen.
        writable: further folders that the account may write in, in memory.
        uid: whose these are.
        gid: their group.

    Raises:
        OSError: the kernel refused.
    """
    os.umask(0o022)
    kernel.mount("", Path("/"), flags=kernel.MS_REC | kernel.MS_SLAVE)
    sources = _sources(spool[0])
    kernel.mount("vnsmail", _NEW, kind="tmpfs", data="mode=0755,size=16m")
    for name in _SHOWN:
        path = Path("/", name)
        if path.is_symlink():
            (_NEW / name).symlink_to(os.readlink(path))
        elif path in sources:
            _bind(sources[path], _NEW / name, _CODE)
    for name in (*(f"etc/{each}" for each in _OF_ETC), *(f"dev/{d}" for d in _DEVICES)):
        if (path := Path("/", name)) in sources:
            attributes = _CODE if name.startswith("etc/") else 0
            _bind(sources[path], _NEW / name, attributes)
    for where, text in files.items():
        target = _NEW / where.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for where in ("/tmp", *writable):  # noqa: S108  its own
        folder = _NEW / where.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, uid, gid)
    _bind(sources[spool[0]], _NEW / spool[1].lstrip("/"), _DATA)
    (_NEW / "proc").mkdir()
    kernel.mount("proc", _NEW / "proc", kind="proc")
    for fd in sources.values():
        os.close(fd)
    os.chdir(_NEW)
    kernel.mount(str(_NEW), Path("/"), flags=kernel.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _sources(spool: Path) -> dict[Path, int]:
    """Open what is to be shown, before anything covers it."""
    wanted = [Path("/", name) for name in _SHOWN]
    wanted += [Path("/etc", name) for name in _OF_ETC]
    wanted += [Path("/dev", name) for name in _DEVICES]
    flags = os.O_PATH | os.O_CLOEXEC
    found = {path: os.open(path, flags) for path in wanted if path.exists()}
    found[spool] = os.open(spool, flags | os.O_NOFOLLOW)
    return found


def _bind(source: int, target: Path, attributes: int) -> None:
    if os.path.isdir(f"/proc/self/fd/{source}"):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    flags = kernel.MS_BIND | kernel.MS_REC
    kernel.mount(f"/proc/self/fd/{source}", target, flags=flags)
    if attributes:
        kernel.restrict_mount(target, attributes, below=True)


def drop(keep: Iterable[str], uid: int, gid: int, last: int) -> None:
    """Give up privileges for good.

    Args:
        keep: capabilities that the first process keeps, as root; none: it becomes the
            account, and keeps nothing.
        uid: the account.
        gid: its group.
        last: the highest capability that the kernel knows.

    Raises:
        OSError: the kernel refused.
    """
    kept = sum(1 << privileges.capability(name) for name in keep)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(last + 1):
        if not kept >> number & 1:
            kernel.prctl(kernel.PR_CAPBSET_DROP, number)
    if not kept and (os.getuid() != uid or os.getgid() != gid):
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    kernel.set_capabilities(permitted=kept, effective=kept, inheritable=0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
