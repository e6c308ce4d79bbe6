import socket
import threading

import pytest

from vnsmail.channel import receive_now, send_now
from vnsmail.cli import client
from vnsmail.errors import DaemonNotRunning
from vnsmail.settings import layout
from vnsmail.supervisor import control


@pytest.fixture
def root(tmp_path):
    found = layout(tmp_path)
    found.run.mkdir()
    return found


def test_a_full_line(root):
    """Who comes while others stand in line waits, and is not told that nobody is there."""
    crowd = 4
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(root.control_socket))
        sock.listen(0)
        first = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        first.connect(str(root.control_socket))
        answers = []

        def ask():
            answers.append(client.ask(root, control.ShutDown(), control.Done))

        threads = [threading.Thread(target=ask) for _ in range(crowd)]
        for thread in threads:
            thread.start()
        sock.accept()[0].close()
        for _ in range(crowd):
            connection, _ = sock.accept()
            with connection:
                receive_now(connection, large=True)
                send_now(connection, control.encode(control.Done()))
        for thread in threads:
            thread.join()
        first.close()

    assert [control.Done()] * crowd == answers


def test_a_line_that_does_not_move(root):
    """That is told for what it is, after a while."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(root.control_socket))
        sock.listen(0)
        first = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        first.connect(str(root.control_socket))
        with first, pytest.raises(client.Refused, match="did not answer within"):
            client.ask(root, control.ShutDown(), control.Done, patience=0.05)


def test_nobody_there(root):
    """A socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(root.control_socket))
    with pytest.raises(DaemonNotRunning):
        client.ask(root, control.ShutDown(), control.Done)
