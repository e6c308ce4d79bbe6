"""Disks and descriptors run out under load from outside: 4xx, nothing lost, then on again.

Each message that was answered with 250 is looked for where it should have come, and is
there once; what was answered otherwise is nowhere.
"""

import os
from pathlib import Path

import pytest

from integration.faults import LARGE, SMALL, Disk, bring, holding, subjects
from integration.labs import Lab, eventually

pytestmark = pytest.mark.timeout(400)
"""The first test has the fixture in its time, and the machine may be busy."""

ADDRESSES = {
    "alpha": "10.77.0.11",
    "beta": "10.77.0.12",
    "gamma": "10.77.0.13",
    "delta": "10.77.0.14",
}
SIZES = (SMALL, LARGE, SMALL)
HELD = [ADDRESSES[label] for label in ("beta", "alpha", "gamma")]

DESCRIPTORS = 160
"""That each process may have: enough for the hosts, and some clients."""
SOUTH = "mx2.south.example"


class Scene:
    """A lab with a disk for each host that suffers, and what was promised."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.disks = {x: Disk(lab, f"{x}.example") for x in ("alpha", "gamma", "delta")}
        lab.vnsmail("down")
        self.disks["alpha"].in_memory()
        self.disks["gamma"].in_file()
        self.disks["delta"].in_memory()
        with (lab.root / "vnsmail.toml").open("a") as file:
            file.write("[smtp]\nmax_sessions_per_address = 500\n")
        lab.up(descriptors=DESCRIPTORS)
        for label in ("alpha", "gamma"):
            lab.vnsmail("alias", "add", f"out@{label}.example", "kim@south.example")
        self.kept: dict[str, list[str]] = {label: [] for label in ADDRESSES}
        self.kim: list[str] = []
        self._number = 0

    def bring(self, label: str, user: str = "user") -> list[int]:
        """Bring a message of each size; note those that are promised."""
        works = []
        for size in SIZES:
            self._number += 1
            works.append((f"{user}-{label}-{self._number:03}", size))
        to = f"{user}@{label}.example"
        said = bring(self.lab, ADDRESSES[label], to, *works)
        promised = [
            work[0] for work, code in zip(works, said, strict=True) if code == 250
        ]
        (self.kim if user == "out" else self.kept[label]).extend(promised)
        return said

    def reach_south(self, *, up: bool) -> None:
        word = "up" if up else "down"
        self.lab.inside(SOUTH, "ip", "link", "set", "eth0", word)

    def mailbox(self, label: str) -> list[str]:
        folder = self.lab.root / "hosts" / f"{label}.example" / "mail" / "user"
        # As the lab sees it, for the disk is mounted there.
        return subjects(self.lab.seen(folder))

    def at_south(self) -> list[str]:
        remote = next(r for r in self.lab.facts["remotes"] if "south" in r["domain"])
        return subjects(self.lab.seen(remote["mail"]) / "kim")

    def takes_again(self, label: str) -> bool:
        return set(self.bring(label)) == {250}

    def check(self) -> None:
        """Each promise was kept, once."""
        self.lab.settle()
        for label, promised in self.kept.items():
            assert sorted(promised) == self.mailbox(label)
        assert sorted(self.kim) == self.at_south()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("faults") / "root", hosts=len(ADDRESSES))
    try:
        yield Scene(lab)
    finally:
        lab.stop()


def _put_off(said):
    """Say whether mail was put off; what goes where there was room may be promised."""
    return 400 <= said[1] < 500 and all(
        code == 250 or code // 100 == 4 for code in said
    )


@pytest.mark.parametrize("label", ["alpha", "gamma"])
def test_disk_takes_no_more(scene, label):
    """A full disk, or one that fails: its host puts mail off, others go on.

    What was promised before leaves meanwhile, though nobody can write that down, and
    goes once.
    """
    scene.reach_south(up=False)
    assert {250} == set(scene.bring(label, "out"))
    scene.disks[label].fill()

    assert _put_off(scene.bring(label))
    assert {250} == set(scene.bring("beta"))

    scene.reach_south(up=True)
    eventually(lambda: set(scene.kim) <= set(scene.at_south()), "what was promised", 90)
    assert _put_off(scene.bring(label))
    scene.disks[label].empty()
    eventually(lambda: scene.takes_again(label), f"{label} takes mail again", 60)
    scene.check()


def test_no_descriptors_left(scene):
    """A worker that can open nothing more loses nothing, and goes on when it can.

    Clients take all it has. A session that was there before is put off if its message
    needs a file; what was promised leaves when there are sockets again.
    """
    pid = scene.lab.outer_pid("worker-0")
    scene.reach_south(up=False)
    assert {250} == set(scene.bring("alpha", "out"))
    with holding(scene.lab, "user@beta.example", 2 * DESCRIPTORS, HELD) as held:
        opened = Path(f"/proc/{pid}/fd")
        eventually(lambda: len(os.listdir(opened)) > DESCRIPTORS - 4, "all are taken")
        scene.reach_south(up=True)
        assert 400 <= held.send() < 500

    eventually(lambda: scene.takes_again("beta"), "beta takes mail again", 60)
    assert pid == scene.lab.outer_pid("worker-0")
    scene.check()


def test_disk_is_read_only(scene):
    """Mail is put off while nothing can be written, and taken as soon as it can."""
    scene.disks["delta"].read_only()

    assert _put_off(scene.bring("delta"))
    assert {250} == set(scene.bring("beta"))

    scene.disks["delta"].writable()
    eventually(lambda: scene.takes_again("delta"), "delta takes mail again", 60)
    scene.check()
