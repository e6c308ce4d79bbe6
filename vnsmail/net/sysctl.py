"""Settings of the kernel's network, of the namespace the calling thread is in.

Rules of this file: a setting that a kernel does not have, for it was built without
IPv6 say, is no error.
"""

import contextlib
import os

_FOLDER = "/proc/sys/net/"


def write(name: str, value: str) -> None:
    """Set a setting, such as ``ipv4/conf/all/forwarding``."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(_FOLDER + name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def read(name: str) -> str:
    """Return a setting; empty if the kernel does not have it."""
    try:
        with open(_FOLDER + name, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def links() -> list[str]:
    """Return the links that have settings of IPv6."""
    with contextlib.suppress(FileNotFoundError):
        found = set(os.listdir(f"{_FOLDER}ipv6/conf"))
        return sorted(found - {"all", "default"})
    return []
