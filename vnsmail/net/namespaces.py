"""Network namespaces by name. PRIVILEGED. The one home of setns(2) and unshare(2).

A namespace has a name when its file /proc/thread-self/ns/net is bind-mounted on
/run/netns/NAME, which is what ip-netns(8) does, so that `ip netns` shows ours and we can
enter everybody's.

    file in /run/netns     mount on it    state
    none                   none           there is no such namespace
    empty file             none           half made or half removed: ``make`` completes
                                          it, ``remove`` removes it, no one can enter it
    namespace              yes            there

Rules of this file: setns(2) and unshare(2) move one *thread*, so only a thread that
nobody else uses goes anywhere, and none of another module ever finds itself elsewhere
(but for ``enter``, which says so); nothing forks, whose cost grows with the heap;
nothing is made by opening it.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

FOLDER = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
_NS_GET_NSTYPE = 0xB703  # ioctl_nsfs(2)
_NETNS_COOKIE = 71  # asm-generic/socket.h
_LARGEST_IDENTITY = 2**63 - 1
_OWN = Path("/proc/thread-self/ns/net")  # /proc/self is that of the main thread

_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")


def existing() -> tuple[str, ...]:
    """Return the names in /run/netns, those of half-made namespaces too."""
    try:
        return tuple(sorted(os.listdir(FOLDER)))
    except FileNotFoundError:
        return ()


def open_namespace(name: str) -> int:
    """Return a descriptor of the namespace of that name; the caller closes it.

    Raises:
        FileNotFoundError: there is none, or only a file without a namespace.
    """
    path = _path(name)
    fd = os.open(path, os.O_RDONLY)
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            return fd
    except OSError:  # an ordinary file knows no such request
        pass
    os.close(fd)
    raise FileNotFoundError(2, "no network namespace has this name", str(path))


def identity(of: socket.socket | None = None) -> int:
    """Return which network namespace the calling thread is in, or a socket of it.

    Names can be given anew, and so can inodes: the kernel takes the lowest that is
    free, so a namespace that is made right after another has gone has its number. A
    cookie (socket(7), SO_NETNS_COOKIE, Linux 5.14) is nobody else's until the machine
    starts anew. Without it the inode is what there is.
    """
    try:
        if of is not None:
            cookie = of.getsockopt(socket.SOL_SOCKET, _NETNS_COOKIE, 8)
        else:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                cookie = sock.getsockopt(socket.SOL_SOCKET, _NETNS_COOKIE, 8)
    except OSError:
        return os.stat(_OWN).st_ino
    return int.from_bytes(cookie, sys.byteorder) & _LARGEST_IDENTITY


def enter(name: str) -> None:
    """Move the calling thread, and no other, into a namespace, for good.

    For a process that is about to become another program; everybody else uses
    ``inside`` or a ``Visitor``.

    Raises:
        FileNotFoundError: there is no such namespace.
    """
    with _opened(name) as fd:
        _move(fd)


class Visitor:
    """A thread that goes into namespaces and comes back.

    It starts from the namespace of the thread that makes the visitor. One caller at a
    time is served; others wait.
    """

    def __init__(self) -> None:
        self._home = os.open(_OWN, os.O_RDONLY)
        self._thread = ThreadPoolExecutor(1, "namespaces")

    def run(self, name: str, function: Callable[[], Result]) -> Result:
        """Return what a function returns when called inside a namespace.

        The name is looked up at each call, so a namespace that was removed and made
        again is the new one.

        Raises:
            FileNotFoundError: there is no such namespace.
            Exception: whatever the function raises.
        """
        return self._thread.submit(self._visit, name, function).result()

    def _visit(self, name: str, function: Callable[[], Result]) -> Result:
        enter(name)
        try:
            return function()
        finally:
            _move(self._home)

    def run_each(
        self, names: Iterable[str], function: Callable[[str], Result]
    ) -> dict[str, Result | OSError]:
        """Return what a function returns in each namespace, called with its name.

        Where a namespace cannot be entered, the reason stands in its place. All are
        visited in one go, for passing a call to the thread costs more than a visit.
        """
        return self._thread.submit(self._visit_each, names, function).result()

    def _visit_each(
        self, names: Iterable[str], function: Callable[[str], Result]
    ) -> dict[str, Result | OSError]:
        found: dict[str, Result | OSError] = {}
        try:
            for name in names:
                try:
                    enter(name)
                except OSError as error:
                    found[name] = error
                else:
                    found[name] = function(name)
        finally:
            _move(self._home)
        return found

    def perform(self, function: Callable[["Place"], Result]) -> Result:
        """Return what a function returns that goes from namespace to namespace.

        Raises:
            Exception: whatever the function raises.
        """
        return self._thread.submit(self._travel, function).result()

    def _travel(self, function: Callable[["Place"], Result]) -> Result:
        try:
            return function(Place(self._home))
        finally:
            _move(self._home)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        os.close(self._home)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Place:
    """Where a thread is that a visitor lends for going about by itself."""

    def __init__(self, home: int) -> None:
        self._home = home
        self._prepared = False
        self.name = ""
        """Of the namespace the thread is in; empty for the one it came from."""

    def go(self, name: str) -> None:
        """Go into a namespace; an empty name is home.

        Raises:
            FileNotFoundError: there is no such namespace; the thread stays.
        """
        if name == self.name:
            return
        if name:
            enter(name)
        else:
            _move(self._home)
        self.name = name

    def make(self, name: str, prepare: Callable[[], None]) -> bool:
        """Make a namespace and go there; see the function of that name."""
        if not self._prepared:
            prepare_folder()
            self._prepared = True
        made = _make_here(name, prepare)
        if made:
            self.name = name
        return made


def go_about(functions: Sequence[Callable[[Place], Result]]) -> list[Result]:
    """Return what functions return that go about, each in a thread of its own.

    Raises:
        Exception: whatever one of them raises; all have ended.
    """
    home = os.open(_OWN, os.O_RDONLY)

    def go(function: Callable[[Place], Result]) -> Result:
        try:
            return function(Place(home))
        finally:
            # The kernel ends a thread a moment after Python does: not in there.
            _move(home)

    try:
        with ThreadPoolExecutor(len(functions)) as threads:
            running = [threads.submit(go, function) for function in functions]
    finally:
        os.close(home)
    return [each.result() for each in running]


def inside(name: str, function: Callable[[], Result]) -> Result:
    """Return what a function returns when called once inside a namespace.

    Raises:
        FileNotFoundError: there is no such namespace.
        Exception: whatever the function raises.
    """
    with Visitor() as visitor:
        return visitor.run(name, function)


def make(name: str, prepare: Callable[[], None] | None = None) -> bool:
    """Make a namespace with a name; one that exists stays as it is.

    Returns whether it was made now.

    Args:
        name: what `ip netns` shows.
        prepare: called inside the new namespace before it has a name, so that nobody
            finds it unprepared, not even after a crash.

    Raises:
        OSError: the kernel refused; nothing is left.
    """
    prepare_folder()
    (made,) = go_about([lambda _: _make_here(name, prepare)])
    return made


def _make_here(name: str, prepare: Callable[[], None] | None) -> bool:
    """Make a namespace; if it was made now, the calling thread is in it."""
    path = _path(name)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except FileExistsError:
        if _is_there(name):
            return False
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        if prepare is not None:
            prepare()
        _mount(_OWN, path, _MS_BIND)
    except BaseException:
        remove(name)
        raise
    return True


def remove(name: str) -> None:
    """Take the name from a namespace; it ends when nobody uses it. Idempotent.

    Raises:
        OSError: the kernel refused.
    """
    path = _path(name)
    # One mount covers another if two made the name at the same moment.
    while _is_there(name):
        _check(_libc.umount2(bytes(path), _MNT_DETACH))
    path.unlink(missing_ok=True)


def prepare_folder() -> None:
    """Make /run/netns what ip-netns(8) makes it, so that either may come first.

    It is a mount of its own and shared, so that processes with mount namespaces of
    their own see what is made later. Where /run/netns is there but is not ours to
    write, as in a user namespace, it becomes a tmpfs that only we see.

    Raises:
        OSError: it cannot be made or written.
    """
    FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not os.access(FOLDER, os.W_OK):
        _mount(Path("tmpfs"), FOLDER, 0, b"tmpfs")
    lock = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # iproute2 takes this lock too: without it, two that come at once both mount.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _mount(Path(), FOLDER, _MS_SHARED | _MS_REC)
        except OSError:  # it is no mount of its own yet
            _mount(FOLDER, FOLDER, _MS_BIND | _MS_REC)
            _mount(Path(), FOLDER, _MS_SHARED | _MS_REC)
    finally:
        os.close(lock)


def _path(name: str) -> Path:
    if not name or "/" in name or name in {".", ".."}:
        raise FileNotFoundError(2, "no namespace can have this name", name)
    return FOLDER / name


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    fd = open_namespace(name)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_there(name: str) -> bool:
    try:
        os.close(open_namespace(name))
    except FileNotFoundError:
        return False
    return True


def _move(fd: int) -> None:
    _check(_libc.setns(fd, _CLONE_NEWNET))


def _mount(source: Path, target: Path, flags: int, kind: bytes = b"none") -> None:
    _check(_libc.mount(bytes(source), bytes(target), kind, flags, None), str(target))


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
