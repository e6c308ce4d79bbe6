"""What virtual hosts that are really served cost in memory.

Usage: .venv/bin/python scripts/bench_memory.py [--hosts 100] [--seconds 45]

A lab is started, the hosts are created in it by `vnsmail apply`, each in a namespace of
its own with guard, listeners, queue and delivery; after a time in which nothing happens
the resident memory of supervisor, broker and workers is compared with that before.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

PROCESSES = ("supervisor", "broker", "worker-0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=45)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _lab(Path(folder) / "root") as root:
        before = _memory(root)
        begin = time.perf_counter()
        _vnsmail(root, "apply", "-", text=_file(arguments.hosts))
        seconds = time.perf_counter() - begin
        waits = range(arguments.seconds)
        for _ in track(waits, "resting", console=Console(stderr=True), transient=True):
            time.sleep(1)
        after = _memory(root)
    each = {
        name: (after[name] - before[name]) / arguments.hosts / 1024
        for name in PROCESSES
    }
    found = {
        "hosts": arguments.hosts,
        "apply_seconds": seconds,
        **{f"{name}_kib_each": value for name, value in each.items()},
        "kib_each": sum(each.values()),
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print("  ".join(f"{key} {value:.1f}" for key, value in found.items()))
    print("load of the machine:", *(f"{x:.1f}" for x in os.getloadavg()))


def _file(count: int) -> str:
    return "".join(
        f'[host."h{n}.example"]\ncontext = "namespace"\n'
        f'addresses = ["fd77::{n + 4096:x}/64"]\nusers = ["user"]\n'
        for n in range(count)
    )


@contextlib.contextmanager
def _lab(root: Path) -> Iterator[Path]:
    root.parent.chmod(0o755)
    _vnsmail(root, "lab", "up", "--hosts", "0")
    try:
        yield root
    finally:
        _vnsmail(root, "lab", "down")


def _memory(root: Path) -> dict[str, int]:
    """Return the resident bytes of each process, as vnsmail measures them."""
    prefix = "vnsmail_process_resident_memory_bytes"
    found = {}
    for line in _vnsmail(root, "metrics").splitlines():
        if line.startswith(prefix):
            name, value = line.removeprefix(f'{prefix}{{process="').split('"} ')
            found[name] = int(float(value))
    return found


def _vnsmail(root: Path, *words: str, text: str | None = None) -> str:
    command = [sys.executable, "-P", "-m", "vnsmail.cli.app", "--root", str(root)]
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        [*command, *words],
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
