"""The service as systemd starts it: with the unit's capabilities, told what it says."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from integration import net_machine
from integration.labs import eventually
from integration.net_machine import ROOT, alone

UNIT = ROOT / "scripts" / "package" / "vnsmail.service"
VNSMAIL = Path(sys.executable).with_name("vnsmail")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def of_unit(key):
    """Return the words of a setting of the unit, all its lines together."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def bounded():
    """Return the command that leaves only the unit's capabilities to be had."""
    words = " ".join(of_unit("CapabilityBoundingSet")).lower().split()
    kept = ",".join(f"+{word.removeprefix('cap_')}" for word in words)
    return ["setpriv", "--bounding-set", f"-all,{kept}", "--no-new-privs", "--"]


@alone()
def test_started_as_a_service(tmp_path):
    """Ready when all is served, alive all the time, ending when it is asked to."""
    net_machine.build()
    root = tmp_path / "root"
    root.mkdir()
    (root / "vnsmail.toml").write_text(
        '[worker]\nuser = "12345"\ncount = 1\n[machine]\nname = "box.example"\n'
    )

    def vnsmail(*words):
        command = [str(VNSMAIL), "--root", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    said: list[bytes] = []
    # Like systemd, it takes at once what is said: few packets fit into the socket.
    threading.Thread(
        target=_hear, args=(tmp_path / "notify", said), daemon=True
    ).start()
    eventually((tmp_path / "notify").exists, "somebody listens")
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "600000",
    }
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(
            [*bounded(), str(VNSMAIL), "--root", str(root), "up"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    ready = b"READY=1\nSTATUS=1 owners served"
    eventually(lambda: ready in said, "it says that it is ready", 60)
    hosts = (
        ("a.example", "10.77.0.11/24", "namespace"),
        ("b.example", "10.77.0.12/24", "alias"),
    )
    for name, address, context in hosts:
        words = ("--address", address, "--context", context, "--link", "br0")
        vnsmail("host", "create", name, *words)
    status = json.loads(vnsmail("status", "--json"))
    said.clear()
    eventually(lambda: b"WATCHDOG=1" in said, "it gives signs of life", 60)
    # No child was told of the manager.
    children = subprocess.run(
        ["pgrep", "-P", str(service.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    inherited = [
        pid
        for pid in children
        if b"NOTIFY_SOCKET" in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    service.terminate()

    assert "watched, with all namespaces" == status["watching"]
    assert [] == inherited
    assert len(children) == 3
    assert 0 == service.wait(60)
    eventually(
        lambda: any(b"STOPPING=1" in packet for packet in said), "it says so", 60
    )


def _hear(path, said):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        while True:
            said.append(manager.recv(512))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_understands_the_unit(tmp_path):
    """Each key and value is known to it."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/vnsmail", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)


def test_no_mount_namespace():
    """The hosts' namespaces are mounts that must outlive the service (systemd.exec(5))."""
    makes_one = (
        "ProtectSystem ProtectHome ProtectKernelTunables ProtectKernelModules "
        "ProtectKernelLogs ProtectControlGroups ProtectProc ProcSubset PrivateTmp "
        "PrivateDevices PrivateMounts ReadOnlyPaths ReadWritePaths InaccessiblePaths "
        "BindPaths BindReadOnlyPaths TemporaryFileSystem RootDirectory DynamicUser"
    )

    assert [] == [key for key in makes_one.split() if of_unit(key)]
