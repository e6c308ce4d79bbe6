"""A supervisor that says what it is told, on a real control socket."""

import contextlib
import os
import select
import socket
import threading
from typing import Any

from vnsmail.channel import ChannelClosed, close_all, receive_now, send_now
from vnsmail.settings import layout
from vnsmail.supervisor import control


class FakeSupervisor:
    """Answers in a thread, by the type of the request; started by ``with``.

    An answer may be bytes, which are sent as they are, or None: it hangs up.
    """

    def __init__(self, root):
        self.layout = layout(root)
        self.answers: dict[type, object] = {}
        self.requests: list[control.Request] = []
        self.messages: list[bytes] = []

    def __enter__(self):
        self.layout.run.mkdir(exist_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(self.layout.control_socket))
        self._socket.listen()
        self._end, self._ending = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.close(self._ending)
        self._thread.join()
        os.close(self._end)
        self._socket.close()
        self.layout.control_socket.unlink()

    def _serve(self):
        while True:
            either: list[Any] = [self._socket, self._end]
            ready, _, _ = select.select(either, [], [])
            if self._end in ready:
                return
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(ChannelClosed):
                self._answer(connection)

    def _answer(self, connection):
        payload, fds = receive_now(connection, large=True)
        request = control.decode_request(payload)
        self.requests.append(request)
        self.messages += [os.read(fd, 1 << 20) for fd in fds]
        close_all(fds)
        answer = self.answers.get(type(request), control.Done())
        if answer is not None:
            send_now(
                connection,
                answer if isinstance(answer, bytes) else control.encode(answer),
            )
