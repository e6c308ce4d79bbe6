"""Every error a caller may want to tell apart, in one tree.

    VnsmailError
        BadInput                what the user asked for cannot be
            Taken               the name or address belongs to something already
            NotFound            nothing has that name
            NotAllowed          it is somebody else's to do
        SettingsError           a settings file: file, key, value, problem
        NotPrivileged           this needs root or a user namespace
        DaemonNotRunning        no supervisor answers for this root
        DaemonRunning           a supervisor already serves this root
        StateUnusable           a state folder or file cannot be used
        NetworkStepFailed       the kernel refused one step of a network plan
        GuardUnavailable        the kernel does not guard source addresses
        SourceUnavailable       the address to send from cannot be used now
        BrokerRefused           the broker said no: not owned, not allowed, malformed
        BrokerGone              the broker does not answer
        QueueUnavailable        a queue file cannot be read or written
        AlreadyQueued           a queue has taken this very message before
        ResolveError            a DNS question has no usable answer
        NotServed               no worker serves this owner now
            Suspended           it neither sends nor receives
        LimitReached            the owner has used up what it may use
        CannotRunAs             a program cannot be run as a virtual host
        CommandNotRun           a command cannot be started

Rules of this file. An error keeps its facts as attributes and builds the sentence in
``__str__``: what failed, of what, what to do, on one line. Positional arguments go
unchanged to ``super().__init__``, so that errors cross processes by pickle.
``retry_helps`` says whether the same attempt can work later. ``exit_code`` is what the
command line ends with (docs/reference/cli.md).
"""

import os
from errno import ENOENT
from typing import ClassVar


class VnsmailError(Exception):
    """Anything this project raises on purpose."""

    retry_helps: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class BadInput(VnsmailError):
    """What was asked for cannot be: what, which value, what to do instead."""

    exit_code = 2

    def __init__(self, what: str, value: str, remedy: str) -> None:
        super().__init__(what, value, remedy)
        self.what, self.value, self.remedy = what, value, remedy

    def __str__(self) -> str:
        return f"{self.what} {self.value!r}: {self.remedy}"


class Taken(BadInput):
    """A name or an address that something else has already.

    ``what`` is the kind of thing, ``value`` which one, ``remedy`` names the holder.
    """


class NotFound(BadInput):
    """Nothing of this kind has this name."""


class NotAllowed(BadInput):
    """Somebody else may do this, and the one who asks may not."""

    exit_code = 4


class SettingsError(VnsmailError):
    """A settings file says something it cannot say."""

    exit_code = 2

    def __init__(self, file: str, key: str, value: str, problem: str) -> None:
        super().__init__(file, key, value, problem)
        self.file, self.key, self.value, self.problem = file, key, value, problem

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        given = f" = {self.value}" if self.value else ""
        return f"{where}{given}: {self.problem}"


class NotPrivileged(VnsmailError):
    """The operation needs a privilege that this process does not have."""

    exit_code = 4

    def __init__(self, action: str, remedy: str) -> None:
        super().__init__(action, remedy)
        self.action, self.remedy = action, remedy

    def __str__(self) -> str:
        return f"cannot {self.action} without privilege: {self.remedy}"


class DaemonNotRunning(VnsmailError):
    """No supervisor answers on the control socket of this root."""

    exit_code = 3

    def __init__(self, socket_path: str) -> None:
        super().__init__(socket_path)
        self.socket_path = socket_path

    def __str__(self) -> str:
        return (
            f"vnsmail is not running (nothing answers at {self.socket_path}): "
            "start it with `vnsmail up`"
        )


class DaemonRunning(VnsmailError):
    """A supervisor already serves this root."""

    def __init__(self, root: str, pid: int) -> None:
        super().__init__(root, pid)
        self.root, self.pid = root, pid

    def __str__(self) -> str:
        return (
            f"vnsmail already runs for {self.root} (process {self.pid}): "
            "stop it with `vnsmail down`, or give another --root"
        )


class StateUnusable(VnsmailError):
    """A state folder or file cannot be read, written or trusted."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"cannot use {self.path}: {self.problem}; {self.remedy}"


class NetworkStepFailed(VnsmailError):
    """The kernel refused one step of a network plan."""

    retry_helps = True

    def __init__(self, step: str, errno: int, detail: str = "") -> None:
        super().__init__(step, errno, detail)
        self.step, self.errno, self.detail = step, errno, detail

    def __str__(self) -> str:
        why = self.detail or os.strerror(self.errno)
        return f"cannot {self.step}: {why}"


class GuardUnavailable(VnsmailError):
    """The kernel cannot be told to guard source addresses; mail goes on without."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot guard source addresses: {self.reason}"


class SourceUnavailable(VnsmailError):
    """The owner's own address cannot be used to send.

    The attempt ends here. Sending from another address would break SPF for the host
    and reveal which hosts share this machine; there is no fallback.
    """

    retry_helps = True

    def __init__(self, owner: str, address: str, errno: int, reason: str = "") -> None:
        super().__init__(owner, address, errno, reason)
        self.owner, self.address = owner, address
        self.errno, self.reason = errno, reason

    def __str__(self) -> str:
        why = self.reason or os.strerror(self.errno)
        return (
            f"cannot send as {self.owner}: {self.address} is not usable here ({why}); "
            f"see `vnsmail host show {self.owner}`"
        )


class BrokerRefused(VnsmailError):
    """The broker refused a request; ``kind`` is a word of broker/protocol.py."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return f"the broker refused ({self.kind}): {self.text}"


class BrokerGone(VnsmailError):
    """The broker does not answer; the supervisor starts it again."""

    retry_helps = True

    def __str__(self) -> str:
        return "the socket broker does not answer; it is being restarted"


class QueueUnavailable(VnsmailError):
    """A queue file cannot be opened, read or written."""

    retry_helps = True

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"cannot use the queue {self.path}: {self.problem}"


class AlreadyQueued(VnsmailError):
    """A queue has taken a message with this token before; its queue id is known."""

    def __init__(self, queue_id: str) -> None:
        super().__init__(queue_id)
        self.queue_id = queue_id

    def __str__(self) -> str:
        return f"this message was queued as {self.queue_id}"


class ResolveError(VnsmailError):
    """A DNS question has no usable answer.

    ``temporary`` tells a server failure or timeout (ask again later) from a definite
    answer that the name or record does not exist.
    """

    def __init__(self, name: str, record: str, problem: str, temporary: bool) -> None:
        super().__init__(name, record, problem, temporary)
        self.name, self.record, self.problem = name, record, problem
        self.temporary = temporary

    @property
    def retry_helps(self) -> bool:  # type: ignore[override]
        return self.temporary

    def __str__(self) -> str:
        return f"cannot resolve {self.name} {self.record}: {self.problem}"


class NotServed(VnsmailError):
    """The worker asked does not serve this owner, or cannot yet."""

    retry_helps = True

    def __init__(self, owner: str, reason: str) -> None:
        super().__init__(owner, reason)
        self.owner, self.reason = owner, reason

    def __str__(self) -> str:
        return f"{self.owner} is not served now: {self.reason}"


class Suspended(NotServed):
    """A virtual host is suspended: it neither sends nor receives."""

    def __init__(self, host: str) -> None:
        reason = f"it is suspended; `vnsmail host resume {host}` ends that"
        super().__init__(host, reason)
        self.args = (host,)


class LimitReached(VnsmailError):
    """An owner has used up what its limits allow; ``limit`` is a field of Limits."""

    retry_helps = True

    def __init__(self, owner: str, limit: str, most: int, wait: float = 0.0) -> None:
        super().__init__(owner, limit, most, wait)
        self.owner, self.limit, self.most, self.wait = owner, limit, most, wait

    def __str__(self) -> str:
        if self.limit == "queue_bytes":
            return (
                f"the queue of {self.owner} may have {self.most} octets, and this would "
                "be more; try again when some of it is delivered, or see "
                "`vnsmail host limits`"
            )
        return (
            f"{self.owner} has taken the {self.most} messages that it may send in an "
            f"hour; try again in {max(1, round(self.wait / 60))} min, or see "
            "`vnsmail host limits`"
        )


class CannotRunAs(VnsmailError):
    """Programs of a virtual host cannot be held to its address, so none is started."""

    def __init__(self, host: str, problem: str, remedy: str) -> None:
        super().__init__(host, problem, remedy)
        self.host, self.problem, self.remedy = host, problem, remedy

    def __str__(self) -> str:
        return f"cannot run programs as {self.host}: {self.problem}; {self.remedy}"


class CommandNotRun(VnsmailError):
    """A command is not there or cannot be executed; exit codes as of a shell."""

    def __init__(self, command: str, errno: int) -> None:
        super().__init__(command, errno)
        self.command, self.errno = command, errno

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 127 if self.errno == ENOENT else 126

    def __str__(self) -> str:
        why = "not found" if self.errno == ENOENT else os.strerror(self.errno).lower()
        return f"cannot run {self.command}: {why}"
