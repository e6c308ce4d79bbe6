"""Asking the running supervisor over its control socket."""

import socket
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from vnsmail.errors import DaemonNotRunning, NotPrivileged, VnsmailError
from vnsmail.packets import ChannelClosed, close_all, receive_now, send_now
from vnsmail.settings import Layout
from vnsmail.supervisor import control

AnswerT = TypeVar("AnswerT", bound=control.Answer)

PATIENCE = 120.0
"""Seconds to wait for an answer; the longest request creates a host."""

ASK_AGAIN = 0.02
"""Seconds between two tries while too many others stand in line."""


class Refused(VnsmailError):
    """The supervisor answered with an error; the sentence is its own."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text, exit_code)
        self.text = text
        self.exit_code = exit_code  # type: ignore[misc]  # the daemon's choice, not the class's

    def __str__(self) -> str:
        return self.text


def _connect(sock: socket.socket, path: str, patience: float) -> None:
    """Connect, and wait in line while others do.

    A full line is told at once (EAGAIN), unlike with TCP: unix(7).
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(ASK_AGAIN)
        else:
            return


def ask(
    layout: Layout,
    request: control.Request,
    expected: type[AnswerT],
    fds: Sequence[int] = (),
    *,
    patience: float | None = None,
) -> AnswerT:
    """Send one request to the supervisor and return its answer.

    ``patience`` is the seconds to wait for it; PATIENCE unless told.

    Raises:
        DaemonNotRunning: nobody listens on the control socket.
        NotPrivileged: the socket is not ours to use.
        Refused: the supervisor could not do it; exit code and sentence are its own.
    """
    path = str(layout.control_socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        patience = PATIENCE if patience is None else patience
        sock.settimeout(patience)
        try:
            _connect(sock, path, patience)
            send_now(sock, control.encode(request), fds)
            payload, received = receive_now(sock, large=True)
        except PermissionError:
            msg = f"use {path}"
            raise NotPrivileged(
                msg, "run it as the user that started vnsmail (root)"
            ) from None
        except TimeoutError:
            text = f"vnsmail did not answer within {patience:.0f} s"
            raise Refused(text, 1) from None
        except (OSError, ChannelClosed):
            raise DaemonNotRunning(path) from None
    close_all(received)
    return _understood(payload, expected)


def _understood(payload: bytes, expected: type[AnswerT]) -> AnswerT:
    try:
        answer = control.decode_answer(payload)
    except msgspec.MsgspecError as error:
        text = f"vnsmail runs in another version than this command: {error}"
        raise Refused(text, 1) from None
    if isinstance(answer, control.Error):
        raise Refused(answer.text, answer.exit_code)
    if not isinstance(answer, expected):
        text = f"unexpected answer {type(answer).__name__} from vnsmail"
        raise Refused(text, 1)
    return answer
