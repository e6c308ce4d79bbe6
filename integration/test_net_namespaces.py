"""Namespaces by name: as ip-netns(8) knows them, and threads that come back."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from integration.net_machine import INSTANCE, ROOT, alone, inside, ip
from vnsmail.net import namespaces
from vnsmail.net.observe import observe

pytestmark = pytest.mark.root

FOLDER = Path("/run/netns")


def fresh():
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)


def identity():
    """Return which namespace the calling thread is in."""
    return os.stat("/proc/thread-self/ns/net").st_ino


@alone()
def test_known_to_ip_netns():
    """Ours are listed there, theirs can be entered here, and both can be removed."""
    fresh()
    namespaces.make("ours")
    ip("netns add theirs")

    assert {"ours", "theirs"} == {each["name"] for each in ip("netns list")}
    assert "lo" == inside("ours", "link show")[0]["ifname"]
    assert ["lo"] == [
        name for _, name in namespaces.inside("theirs", socket.if_nameindex)
    ]
    ip("netns del ours")
    namespaces.remove("theirs")
    assert () == namespaces.existing()


@alone()
def test_folder_is_as_ip_netns_makes_it():
    """Shared, so that processes with other mount namespaces see what is made later."""
    fresh()
    namespaces.prepare_folder()
    ours = subprocess.check_output(
        ["findmnt", "-no", "PROPAGATION,TARGET", str(FOLDER)], text=True
    )
    code = "import sys; sys.stdin.readline(); print(len(__import__('os').listdir('/run/netns')))"
    with subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--propagation",
            "unchanged",
            sys.executable,
            "-c",
            code,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        namespaces.make("later")
        out, _ = other.communicate("\n")

    assert "shared" in ours
    assert "1" == out.strip()


@alone()
@pytest.mark.parametrize("name", ["nothing", "half", "", ".", "..", "a/b", "../x"])
def test_a_typo_makes_nothing(name):
    """No name is made by asking for it; a file alone is no namespace."""
    fresh()
    namespaces.prepare_folder()
    (FOLDER / "half").touch()
    before = identity()
    for ask in (
        lambda: namespaces.open_namespace(name),
        lambda: namespaces.inside(name, identity),
        lambda: namespaces.enter(name),
    ):
        with pytest.raises(FileNotFoundError):
            ask()

    assert ("half",) == namespaces.existing()
    assert before == identity()


@alone()
def test_only_a_thread_moves():
    """The caller and all others stay where they are; the visitor comes back."""
    fresh()
    namespaces.make("one")
    namespaces.make("two")
    home = identity()
    found = [namespaces.inside(name, identity) for name in ("one", "two")]
    with namespaces.Visitor() as visitor:
        visits = [visitor.run(name, identity) for name in ("one", "two", "one")]
        with pytest.raises(ZeroDivisionError):
            visitor.run("two", lambda: 1 // 0)
        with pytest.raises(FileNotFoundError):
            visitor.run("three", identity)
        visits.append(visitor.run("two", identity))
        # A thread that stayed would keep a namespace that was removed.
        threads = [
            os.stat(f"/proc/self/task/{thread}/ns/net").st_ino
            for thread in os.listdir("/proc/self/task")
        ]

    assert {home} == set(threads)
    assert 3 == len({home, *found})
    assert [*found, *found] == visits
    assert home == identity()
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(identity()))
    thread.start()
    thread.join()
    assert [home] == elsewhere


@alone()
def test_a_visitor_finds_the_namespace_of_now():
    """A name that was given to another namespace means that one."""
    fresh()
    namespaces.make("one")
    with namespaces.Visitor() as visitor:
        before = visitor.run("one", identity)
        with namespaces.inside("one", socket.socket):
            namespaces.remove("one")
            namespaces.make("one")

            assert before != visitor.run("one", identity)


@alone()
def test_nothing_is_left_open():
    """No descriptor stays open, whether it went well or not."""
    fresh()
    namespaces.make("one")

    def descriptors():
        return sorted(os.listdir("/proc/self/fd"))

    def fail():
        raise ZeroDivisionError

    before = descriptors()
    for _ in range(3):
        namespaces.make("two", lambda: None)
        namespaces.inside("two", identity)
        with pytest.raises(ZeroDivisionError):
            namespaces.make("three", fail)
        with pytest.raises(FileNotFoundError):
            namespaces.inside("three", identity)
        namespaces.remove("two")
        observe(INSTANCE)

    assert before == descriptors()
    assert ("one",) == namespaces.existing()


@alone()
def test_prepared_before_it_has_a_name():
    """Whoever finds it finds it prepared."""
    fresh()
    seen = []

    def prepare():
        seen.append(identity())
        with pytest.raises(FileNotFoundError):
            namespaces.open_namespace("one")

    namespaces.make("one", prepare)

    assert seen == [namespaces.inside("one", identity)]
    namespaces.make("one", lambda: pytest.fail("it is there already"))


@alone()
def test_a_name_given_twice():
    """Two mounts, one over the other, as after a race: both go."""
    fresh()
    namespaces.make("one")
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", FOLDER / "one"], check=True)
    namespaces.remove("one")

    assert () == namespaces.existing()
    assert "nsfs" not in Path("/proc/self/mountinfo").read_text()


@alone()
def test_the_folder_is_made_by_one_at_a_time():
    """Whoever has the lock that iproute2 takes, too, is waited for."""
    fresh()
    FOLDER.mkdir()
    maker = threading.Thread(target=namespaces.prepare_folder)
    lock = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        maker.start()
        deadline = time.monotonic() + 20
        while "-> FLOCK" not in Path("/proc/locks").read_text():
            assert time.monotonic() < deadline, "it does not wait"
    finally:
        os.close(lock)
    maker.join()

    assert "shared" in subprocess.check_output(
        ["findmnt", "-no", "PROPAGATION", str(FOLDER)], text=True
    )


@alone()
def test_many_makers_at_once():
    """Processes of ours and ip-netns(8) at the same moment: one folder, all names."""
    fresh()
    code = (
        "import sys; from vnsmail.net import namespaces; sys.stdin.readline(); "
        "[namespaces.make(f'{sys.argv[1]}-{n}') for n in range(8)]; "
        "namespaces.make('same')"
    )
    commands = [[sys.executable, "-c", code, name] for name in ("a", "b", "c")]
    shell = "read x; for n in 0 1 2 3 4 5 6 7; do ip netns add d-$n || exit 1; done"
    commands.append(["sh", "-c", shell])
    makers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
        for command in commands
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write(b"\n")
        maker.stdin.close()
    assert [0] * 4 == [maker.wait() for maker in makers]
    expected = {f"{letter}-{n}" for letter in "abcd" for n in range(8)} | {"same"}

    assert expected == set(namespaces.existing())
    assert expected == {each["name"] for each in ip("netns list")}
    for name in expected:
        namespaces.remove(name)
    assert () == namespaces.existing()
    mounts = Path("/proc/self/mountinfo").read_text()
    assert "nsfs" not in mounts


@alone()
def test_no_two_have_one_identity():
    """Also not one after the other, with the same name and the same inode."""
    fresh()
    seen = []
    for _ in range(5):
        namespaces.make("one")
        seen.append(namespaces.inside("one", namespaces.identity))
        assert seen[-1] == namespaces.inside("one", namespaces.identity)
        namespaces.remove("one")

    assert 5 == len(set(seen) - {namespaces.identity()})
