import os
import subprocess
import sys
from pathlib import Path

import pytest

from vnsmail.supervisor.privileges import (
    NET_ADMIN,
    SYS_ADMIN,
    capability,
    describe,
    effective,
    last,
    permitted,
    single_uid,
)

ALL = "\n".join(["Uid:\t0\t0\t0\t0", "CapEff:\t000001ffffffffff", ""])
BROKER = "\n".join(["Uid:\t0\t0\t0\t0", "CapEff:\t0000000000203400", ""])
WORKER = "\n".join(["Uid:\t991\t991\t991\t991", "CapEff:\t0000000000000000", ""])


def test_numbers():
    """Names stand for the kernel's numbers (linux/capability.h)."""
    assert (NET_ADMIN, SYS_ADMIN) == (capability("net_admin"), capability("sys_admin"))
    assert (0, 10, 40) == (
        capability("chown"),
        capability("net_bind_service"),
        capability("checkpoint_restore"),
    )
    assert last() >= 36


def test_of_this_process():
    """What is effective is permitted."""
    assert effective() == effective(os.getpid())
    assert 0 == effective() & ~permitted()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ALL, "uid 0; all capabilities; "),
        (BROKER, "uid 0; net_bind_service, net_admin, net_raw, sys_admin; "),
        (WORKER, "uid 991; no capabilities; "),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_in_a_line(monkeypatch, status, words, apart):
    """Account, capabilities and network, for people."""
    monkeypatch.setattr(Path, "read_text", lambda _: status)
    if apart:
        monkeypatch.setattr(os, "readlink", lambda path: path)
    else:
        monkeypatch.setattr(os, "readlink", lambda _: "net:[1]")
    network = "a network namespace apart" if apart else "the machine's network"

    assert words + network == describe(1)


def test_a_process_that_is_gone():
    """Nothing is said of one that has ended."""
    child = subprocess.Popen([sys.executable, "-ISc", ""])
    child.wait()

    assert "" == describe(child.pid)


def test_a_process_that_goes_meanwhile(monkeypatch):
    """Nor of one that ends while it is looked at (ESRCH)."""

    def gone(_):
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_text", gone)

    assert "" == describe(1)


@pytest.mark.parametrize(
    ("mapping", "single"),
    [
        ("         0          0 4294967295\n", False),
        ("         0       1000          1\n", True),
        ("         0       1000          1\n         1     100000      65536\n", False),
    ],
)
def test_single_uid(monkeypatch, mapping, single):
    """A user namespace of one uid is told from the others."""
    monkeypatch.setattr(Path, "read_text", lambda _: mapping)

    assert single is single_uid()
