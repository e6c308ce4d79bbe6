"""Programs to run as a virtual host, and what others see of them."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from integration.labs import VNSMAIL, eventually
from vnsmail.settings import layout

REMOTE = "mx1.north.example"
PORT = 7777

# Says to each who connects, and to each datagram, where it came from.
OBSERVER = """
import socket, sys, threading

def mirror(sock):
    while True:
        data, peer = sock.recvfrom(100)
        sock.sendto(peer[0].encode(), peer)

def accept(sock):
    while True:
        found, peer = sock.accept()
        found.sendall(peer[0].encode())
        found.close()

for family, address in ((socket.AF_INET, "10.77.0.3"), (socket.AF_INET6, "fd77::3")):
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((address, 7777))
    tcp = socket.create_server((address, 7777), family=family)
    for function, sock in ((mirror, udp), (accept, tcp)):
        threading.Thread(target=function, args=(sock,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def observer(lab):
    """Have a program on a remote that says who came."""
    process = lab.beside(REMOTE, lab.python, "-c", OBSERVER)
    try:
        assert "ready\n" == process.stdout.readline()
        yield
    finally:
        process.communicate()


def _as_a_shell_starts_it():
    # Whoever started the tests may ignore some (nohup, a job in the background), and a
    # shell cannot trap what it was started to ignore.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Program:
    """A program that runs as a virtual host; those that are asked to, wait for a line."""

    def __init__(self, lab, host, *words):
        self.process = subprocess.Popen(
            [*command(lab), "exec", host, "--", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_as_a_shell_starts_it,  # noqa: PLW1509  one thread
            # A job of its own, as from a shell: in an orphaned process group, which is
            # what a test run without a terminal may be, nothing stops at SIGTSTP.
            process_group=0,
        )

    def line(self):
        """Return the next line that it writes."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def go_on(self):
        """Let it go on; returns the rest of what it writes."""
        out, _ = self.process.communicate("\n", timeout=60)
        return out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Its end of file ends what waits for a line; the lab's end ends the rest.
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)


def command(lab):
    """Return the words that begin a command of the product."""
    return [*VNSMAIL, "--root", str(lab.root)]


def python(lab, host, code, *words):
    """Return what Python code, run as a host, writes as JSON."""
    done = lab.vnsmail("exec", host, "--", sys.executable, "-c", code, *words)
    return json.loads(done.stdout)


def opened(lab):
    """Return the connections of the capture so far: (source, destination)."""
    done = subprocess.run(
        [
            *(
                "tshark",
                "-r",
                lab.facts["capture"],
                "-T",
                "fields",
                "-E",
                "separator= ",
            ),
            *("-e", "ip.src", "-e", "ip.dst", "-e", "ipv6.src", "-e", "ipv6.dst"),
            *("-Y", "tcp.flags.syn==1 && tcp.flags.ack==0"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(line.split()) for line in done.stdout.splitlines()]


def opened_since(lab, before):
    """Return the connections that were opened since the capture was that long.

    What the machine itself opens now comes last, and when it is there, so is all.
    """
    code = "import socket; socket.create_connection(('10.77.0.4', 25)).close()"
    last = ("10.77.0.1", "10.77.0.4")

    def found():
        seen = opened(lab)[len(before) :]
        return seen[:-1] if seen and seen[-1] == last else None

    lab.inside("machine", lab.python, "-c", code)
    eventually(lambda: found() is not None, "the machine's connection in the capture")
    return found()


def cgroups_of(lab):
    """Return the cgroups there are of a lab's hosts."""
    mount = Path("/sys/fs/cgroup")
    folders = mount.glob(f"**/vnsmail/{instance(lab)}/*/cgroup.procs")
    return sorted(folder.parent.name for folder in folders)


def instance(lab):
    return layout(lab.root).instance
