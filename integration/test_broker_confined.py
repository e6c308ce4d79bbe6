"""What a process can do that was started as the broker is: open sockets, and little else.

The code run inside is what somebody could do who has taken the broker over.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from integration.net_machine import alone
from vnsmail.supervisor.process import launch_command
from vnsmail.supervisor.services import BROKER_CAPABILITIES

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are of x86_64"),
]

TRIES = """
import ctypes, json, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
victim = int(sys.argv[1])

def call(*words):
    if libc.syscall(*(ctypes.c_long(word) for word in words)) < 0:
        return ctypes.get_errno()
    return 0

def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        return error.errno
    return 0

here = os.open("/proc/self/ns/net", os.O_RDONLY)
made = [socket.socket(family, socket.SOCK_STREAM) for family in (2, 10)]
print(json.dumps({
    "allowed": {"setns": call(308, here, 0x40000000), "sockets": len(made)},
    "refused": {
        "kill": kill(victim),
        "kill all": kill(-1),
        "ptrace": call(101, 16, victim, 0, 0),
        "process_vm_readv": call(310, victim, 0, 0, 0, 0, 0),
        "process_vm_writev": call(311, victim, 0, 0, 0, 0, 0),
        "pidfd_getfd": call(438, 3, 0, 0),
        "pidfd_send_signal": call(424, 3, 9, 0, 0),
        "unshare": call(272, 0x40000000),
        "clone": call(56, 0x20000000 | 17, 0, 0, 0, 0),
        "mount": call(165, 0, 0, 0, 0, 0),
        "umount2": call(166, 0, 0),
        "pivot_root": call(155, 0, 0),
        "chroot": call(161, 0),
        "open_tree": call(428, 0, 0, 0),
        "move_mount": call(429, 0, 0, 0, 0, 0),
        "fsopen": call(430, 0, 0),
        "bpf": call(321, 0, 0, 0),
        "perf_event_open": call(298, 0, 0, 0, 0, 0),
        "io_uring_setup": call(425, 1, 0),
        "userfaultfd": call(323, 0),
        "keyctl": call(250, 0, 0, 0, 0, 0),
    },
    "status": open("/proc/self/status").read(),
}))
"""


@alone()
def test_what_a_broker_that_is_taken_over_can_do():
    """Its capabilities alone would let it mount, trace and load programs; its filter
    does not. What it is there for works."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(["sleep", "60"]) as victim:
        options = ["--keep-capabilities", BROKER_CAPABILITIES]
        command = launch_command("MODULE", theirs.fileno(), options)
        launcher = command[: command.index("--") + 1]
        done = subprocess.run(
            [*launcher, sys.executable, "-c", TRIES, str(victim.pid)],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        alive = victim.poll() is None
        victim.kill()
    found = json.loads(done.stdout)
    facts = dict(line.split(":\t", 1) for line in found["status"].splitlines())

    assert alive
    assert {"setns": 0, "sockets": 2} == found["allowed"]
    assert dict.fromkeys(found["refused"], errno.EPERM) == found["refused"]
    assert ("2", "1") == (facts["Seccomp"], facts["NoNewPrivs"])


def test_the_broker_that_runs(lab):
    """Seen from outside: a filter, no new privileges, and what status says it has."""
    status = Path(f"/proc/{lab.outer_pid('broker')}/status").read_text()
    facts = dict(line.split(":", 1) for line in status.splitlines())
    numbers = {10: "net_bind_service", 12: "net_admin", 13: "net_raw", 21: "sys_admin"}
    held = {
        numbers.get(n, str(n)) for n in range(64) if int(facts["CapEff"], 16) >> n & 1
    }
    (told,) = [p for p in lab.json("status")["processes"] if p["name"] == "broker"]

    assert "2" == facts["Seccomp"].strip()
    assert "1" == facts["NoNewPrivs"].strip()
    assert set(BROKER_CAPABILITIES.split(",")) <= held
    assert held <= {*BROKER_CAPABILITIES.split(","), "2"}  # 2: dac_read_search
    assert facts["CapEff"] == facts["CapBnd"] == facts["CapPrm"]
    for name in BROKER_CAPABILITIES.split(","):
        assert name in json.dumps(told)
