import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.supervisor import seccomp
from vnsmail.supervisor.seccomp import MACHINES, NUMBERS, Only, program

PID = 4242
KILLED, ALLOWED = "killed", 0
MACHINE_NAMES = pytest.mark.parametrize("name", sorted(MACHINES))


def run(lines, audit, number, arguments=()):
    """Do what the kernel does with a filter and a call; returns what becomes of it."""
    words = {0: number, 4: audit}
    for index, argument in enumerate(arguments):
        words[16 + 8 * index] = argument & 0xFFFFFFFF
        words[20 + 8 * index] = argument >> 32 & 0xFFFFFFFF
    accumulator, at = 0, 0
    for _ in range(len(lines)):
        code, if_true, if_false, operand = lines[at]
        at += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                accumulator = words.get(operand, 0)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= operand
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += if_true if accumulator == operand else if_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += if_true if accumulator >= operand else if_false
            case 0x06:  # BPF_RET | BPF_K
                return result(operand)
            case _:
                raise AssertionError(code)
    raise AssertionError("it runs off its end")


def result(operand):
    if operand == 0x80000000:
        return KILLED
    if operand == 0x7FFF0000:
        return ALLOWED
    assert operand >> 16 == 5
    return operand & 0xFFFF


def called(rules, name, call, *arguments):
    machine = MACHINES[name]
    number = NUMBERS[call][machine.column] if isinstance(call, str) else call
    return run(program(rules, machine), machine.audit, number, arguments)


ATTRIBUTES = st.integers(0, 2**64 - 1)


@MACHINE_NAMES
@given(
    call=st.sampled_from(sorted(NUMBERS)) | st.integers(0, 500),
    arguments=st.lists(
        ATTRIBUTES | st.sampled_from([0, 1, 2, 6, 9, 13, 25, PID]), max_size=6
    ),
)
def test_the_program_says_what_the_table_says(name, call, arguments):
    rules = seccomp.for_worker(PID)
    machine = MACHINES[name]
    number = NUMBERS[call][machine.column] if isinstance(call, str) else call

    expected = by_table(rules, machine, number, arguments)
    assert expected == called(rules, name, call, *arguments)


def by_table(rules, machine, number, arguments):
    arguments = [*arguments, *[0] * 6]
    for rule in rules:
        if NUMBERS[rule.call][machine.column] != number:
            continue
        for way in rule.ways:
            if all(arguments[i] & mask & 0xFFFFFFFF == v for i, mask, v in way):
                return ALLOWED
        return rule.error
    return ALLOWED


@MACHINE_NAMES
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_another_abi_ends_the_process(name, audit, number):
    machine = MACHINES[name]
    lines = program(seccomp.for_broker(PID), machine)
    if audit != machine.audit:
        assert KILLED == run(lines, audit, number)
    if machine.foreign_from is not None:
        foreign = number | machine.foreign_from
        assert KILLED == run(lines, machine.audit, foreign)


@MACHINE_NAMES
@pytest.mark.parametrize(
    "call",
    [
        ("socket", 2, 1, 0),
        ("socket", 1, 1, 0),
        ("bind", 3),
        ("listen", 3),
        ("setns", 3),
        ("unshare", 0x40000000),
        ("clone", 0x10000000 | 17),
        ("kill", 1, 9),
        ("kill", 2**64 - 1, 9),
        ("kill", 0, 9),
        ("tgkill", 1, 1, 9),
        ("setsockopt", 3, 41, 26),
        ("setsockopt", 3, 0, 4),
        ("setsockopt", 3, 1, 25),
        ("setsockopt", 3, 6, 30),
        ("sendto", 3, 0, 0, 0x20000040),
        ("sendmsg", 3, 0, 0x20000000),
        ("sendmmsg", 3, 0, 1, 0x20000000),
        ("ptrace", 16),
        ("pidfd_getfd", 3, 4),
        ("process_vm_readv", PID),
        ("mount", 0),
        ("bpf", 5),
        ("io_uring_setup", 8),
        ("keyctl", 0),
    ],
    ids=lambda call: call[0],
)
def test_a_worker_is_refused(name, call):
    assert errno.EPERM == called(seccomp.for_worker(PID), name, *call)


@MACHINE_NAMES
@pytest.mark.parametrize(
    "call",
    [
        ("clone", 0x003D0F00),  # a thread, as libc makes it
        ("kill", PID, 0),
        ("tgkill", PID, 77, 6),
        ("setsockopt", 3, 6, 1),
        ("setsockopt", 3, 1, 9),
        ("sendto", 3, 0, 0, 0x4000),
        ("sendmsg", 3, 0, 0x4000),
    ],
    ids=lambda call: call[0],
)
def test_a_worker_is_left(name, call):
    assert ALLOWED == called(seccomp.for_worker(PID), name, *call)


@MACHINE_NAMES
def test_clone3_is_told_to_be_missing_so_that_libc_takes_clone(name):
    assert errno.ENOSYS == called(seccomp.for_worker(PID), name, "clone3")


@MACHINE_NAMES
def test_the_broker_may_do_its_work_and_no_more(name):
    rules = seccomp.for_broker(PID)
    work = ["socket", "bind", "listen", "setns", "setsockopt", "sendmsg"]

    assert {ALLOWED} == {called(rules, name, call) for call in work}
    denied = {rule.call for rule in seccomp.for_worker(PID)} - {
        *work,
        "clone",
        "clone3",
    }
    others = denied - {"sendto", "sendmmsg"}
    assert {errno.EPERM} == {called(rules, name, call) for call in others}


@MACHINE_NAMES
def test_it_is_as_short_as_the_kernel_wants(name):
    """BPF_MAXINSNS, and jumps of a byte."""
    lines = program(seccomp.for_worker(PID), MACHINES[name])

    assert len(lines) <= 4096
    assert {True} == {max(line[1:3]) <= 255 for line in lines}


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
NEWER = {"open_tree_attr"}
"""Linux 6.15."""


@MACHINE_NAMES
def test_the_numbers_are_those_of_the_headers(name):
    if not HEADERS[name].exists():
        pytest.skip(f"no {HEADERS[name]}")
    defined = re.findall(
        r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[name].read_text(), re.MULTILINE
    )
    known = {call: int(number) for call, number in defined}

    ours = {c: n[MACHINES[name].column] for c, n in NUMBERS.items() if c not in NEWER}
    assert {call: known.get(call) for call in ours} == ours


# In the kernel ----------------------------------------------------------------

INSIDE = """
import os, socket, sys
from vnsmail.supervisor import kernel, seccomp
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
rules = seccomp.for_worker(os.getpid())
seccomp.install(seccomp.program(rules, seccomp.machine()))
"""


def filtered(code, *, preparation=""):
    """Run code in a process with the filter; returns its status and what it says."""
    script = preparation + INSIDE + code
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(  # noqa: S603  our own script
        command, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


needs_table = pytest.mark.skipif(
    seccomp.machine() is None, reason=f"no table for {os.uname().machine}"
)


@needs_table
def test_the_kernel_takes_it_and_refuses_with_eperm():
    status, said, wrong = filtered(
        """
for call in (
    lambda: socket.socket(),
    lambda: socket.socket(socket.AF_UNIX),
    lambda: bound.bind(("127.0.0.1", 0)),
    lambda: bound.listen(),
    lambda: bound.setsockopt(socket.SOL_IP, 24, 1),
    lambda: os.kill(os.getppid(), 0),
    lambda: kernel.unshare(kernel.CLONE_NEWNET),
):
    try:
        call()
    except PermissionError as error:
        print(error.errno)
""",
        preparation="import socket; bound = socket.socket()",
    )

    assert (0, ["1"] * 7, "") == (status, said.split(), wrong)


@needs_table
def test_what_a_worker_is_made_of_works_under_it():
    """Its event loop, threads, its database, its resolver, and its end."""
    status, said, wrong = filtered(
        """
import asyncio, signal, threading
import apsw, dns.asyncresolver, uvloop
from concurrent.futures import ThreadPoolExecutor

async def work():
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)  # a Unix pair
    theirs.send(b"line\\n")
    print(await reader.readline())
    with ThreadPoolExecutor(2) as executor:
        print(await loop.run_in_executor(executor, threading.current_thread))
    writer.close()
    theirs.close()
    os.kill(os.getpid(), signal.SIGTERM)
    await ended.wait()

apsw.Connection(":memory:").execute("select 1")
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(work())
asyncio.run(work())
print("ended")
"""
    )

    assert (0, "") == (status, wrong)
    assert said.endswith("ended\n")


@needs_table
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is of x86_64")
def test_a_call_of_another_abi_kills():
    status, _, _ = filtered(
        """
import ctypes
ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))
"""
    )

    assert status == -31  # SIGSYS


def test_a_rule_with_no_way_is_a_refusal():
    assert errno.EPERM == called([Only("bpf")], "x86_64", "bpf")
