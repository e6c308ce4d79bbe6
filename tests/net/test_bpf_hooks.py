"""What the hooks decide, compared with the rules in words, for any address and socket.

The programs run here as the kernel runs them (bpf_machine.py), on what it would give
them (struct bpf_sock_addr and struct bpf_sock of linux/bpf.h).
"""

import ipaddress
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.bpf_machine import Helper, Pointer, Region, run
from vnsmail.net import bpf, hook_programs
from vnsmail.net.guard_rules import MARK_OPTION

MARK = 0x4ABCDEF0
BIND, SETSOCKOPT = 64, 49

IP4 = st.ip_addresses(v=4)
IP6 = st.ip_addresses(v=6)


def ip(text):
    return ipaddress.ip_address(text)


def mapped(address):
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)


OWN4 = [ip("10.77.0.14"), ip("203.0.113.7")]
OWN6 = [ip("fd77::14"), ip("2001:db8::255.0.0.1")]
OWNS = st.sampled_from(
    [OWN4[:1], OWN4, OWN6[:1], OWN6, [*OWN4, *OWN6], [OWN6[1], OWN4[1]]]
)
NEAR4 = st.sampled_from(
    [*OWN4, *map(ip, ("0.0.0.0", "127.0.0.1", "127.255.0.9", "126.0.0.1", "10.77.0.1"))]
)
NEAR6 = st.sampled_from(
    [
        *OWN6,
        *map(ip, ("::", "::1", "::2", "1::1", "::ffff:0:0:1", "fd77::1", "fe80::1")),
    ]
)
ANY4 = NEAR4 | IP4
ANY6 = NEAR6 | IP6 | ANY4.map(mapped)


class Kernel:
    """A hook's context, and what the program did."""

    def __init__(self, address, *, source4=0, source6=0, port=0, message=None):
        own = struct.pack("=6I", 0, 0, 0, 0, 0, 0) + ip(source4).packed
        own += ipaddress.IPv6Address(source6).packed + struct.pack(
            "=8I", port, *[0] * 7
        )
        sock = Region.of(own)
        given = struct.pack("=I", 2 if address.version == 4 else 10)
        given += address.packed if address.version == 4 else bytes(4)
        given += address.packed if address.version == 6 else bytes(16)
        given += struct.pack("=4I", 0, 0, 1, 6)
        source = b"" if message is None else message.packed
        given += source.ljust(4, b"\0") if len(source) < 16 else bytes(4)
        given += source if len(source) == 16 else bytes(16)
        self.context = Region.of(given.ljust(72, b"\0"))
        self.context.pointers[64] = Pointer(sock, 0)
        self.bound = None
        self.mark = None
        self.bind_works = True
        self.mark_works = True

    def bind(self, context, address, length, *_):
        assert context == Pointer(self.context, 0)
        octets = address.read(length)
        (family,) = struct.unpack("=H", octets[:2])
        assert bytes(2) == octets[2:4], "a port would be bound"
        if family == socket.AF_INET:
            assert 16 == length
            self.bound = ipaddress.IPv4Address(octets[4:8])
        else:
            assert (socket.AF_INET6, 28) == (family, length)
            assert bytes(8) == octets[4:8] + octets[24:]
            self.bound = ipaddress.IPv6Address(octets[8:24])
        return 0 if self.bind_works else -99

    def setsockopt(self, context, level, name, value, length):
        assert (Pointer(self.context, 0), 1, MARK_OPTION, 4) == (
            context,
            level,
            name,
            length,
        )
        if self.mark_works:
            self.mark = int.from_bytes(value.read(4), sys.byteorder)
        return 0 if self.mark_works else -1

    def ask(self, name, own):
        """Return whether the hook allows it."""
        (hook,) = [h for h in hook_programs.hooks(own, MARK) if h.name == name]
        helpers: dict[int, Helper] = {BIND: self.bind, SETSOCKOPT: self.setsockopt}
        answer = run(bpf.packed(hook.program), self.context, helpers)
        assert answer in {0, 1}
        return bool(answer)

    def address(self, version, at4, at6):
        data = self.context.data
        if version == 4:
            return ipaddress.IPv4Address(bytes(data[at4 : at4 + 4]))
        return ipaddress.IPv6Address(bytes(data[at6 : at6 + 16]))


def plain(address):
    """Return the address that is meant: that in a mapped one, if it is one."""
    return address if address.version == 4 else address.ipv4_mapped or address


def of_family(own, address):
    return [each for each in own if each.version == plain(address).version]


@given(OWNS, ANY4 | ANY6, ANY4, ANY6, st.sampled_from([0, 0, 40000]), st.booleans())
def test_connect(own, address, source4, source6, port, bind_works):
    """From a host's address or not at all; loopback alone is left as it is."""
    kernel = Kernel(address, source4=source4, source6=source6, port=port)
    kernel.bind_works = bind_works
    allowed = kernel.ask(f"connect{address.version}", own)
    mine = of_family(own, address)
    source = source4 if plain(address).version == 4 else source6

    if plain(address).is_loopback or address.is_unspecified:
        assert (True, None, None) == (allowed, kernel.bound, kernel.mark)
    elif not mine or (source not in mine and port):
        assert (False, None, None) == (allowed, kernel.bound, kernel.mark)
    elif source in mine:
        assert (True, None, MARK) == (allowed, kernel.bound, kernel.mark)
    else:
        assert kernel.bound is not None
        assert plain(kernel.bound) == mine[0]
        assert kernel.bound.version == address.version
        assert bind_works == allowed
        assert (MARK if bind_works else None) == kernel.mark


@given(OWNS, NEAR4.map(mapped) | NEAR6)
def test_a_socket_that_cannot_be_marked_is_not_connected(own, address):
    """The guard would not know it; better to say so than to have packets dropped."""
    kernel = Kernel(address)
    kernel.mark_works = False
    allowed = kernel.ask("connect6", own)

    assert allowed == (plain(address).is_loopback or address.is_unspecified)


@given(OWNS, ANY4 | ANY6)
def test_bind(own, address):
    """The host's addresses and loopback as they are; any is the host's; no other."""
    kernel = Kernel(address)
    allowed = kernel.ask(f"bind{address.version}", own)
    bound = kernel.address(address.version, 4, 8)
    mine = of_family(own, address)

    if plain(address).is_loopback or plain(address) in mine:
        assert (True, address) == (allowed, bound)
    elif address == ip("::"):
        assert allowed
        assert plain(bound) == (of_family(own, address) or own)[0]
    elif plain(address).is_unspecified and mine:
        assert (True, mine[0], address.version) == (
            allowed,
            plain(bound),
            bound.version,
        )
    else:
        assert (False, address) == (allowed, bound)


@given(OWNS, st.tuples(ANY4, ANY4) | st.tuples(NEAR6 | IP6, NEAR6 | IP6))
def test_sendmsg(own, addresses):
    """Whatever the source was to be, it is the host's; 0.0.0.0 is no loopback here."""
    address, source = addresses
    kernel = Kernel(address, message=source)
    allowed = kernel.ask(f"sendmsg{address.version}", own)
    used = kernel.address(address.version, 40, 44)
    # An IPv4-mapped destination never comes here: the kernel asks sendmsg4.
    mine = [each for each in own if each.version == address.version]

    if address.is_loopback:
        assert (True, source) == (allowed, used)
    elif not mine:
        assert not allowed
    else:
        assert allowed
        assert (source if source in mine else mine[0]) == used


WRITTEN = {"bind4": (4, 4), "bind6": (8, 16), "sendmsg4": (40, 4), "sendmsg6": (44, 16)}


@given(OWNS, ANY4 | ANY6, ANY4 | ANY6)
def test_nothing_else_is_written(own, address, source):
    """A hook changes the address it is asked about, and nothing beside it."""
    for hook in hook_programs.hooks(own, MARK)[1:]:
        if hook.name[-1] != str(address.version):
            continue
        kernel = Kernel(address, message=source)
        before = bytes(kernel.context.data)
        kernel.ask(hook.name, own)
        after = bytes(kernel.context.data)
        at, size = WRITTEN.get(hook.name, (0, 0))

        assert before[:at] + before[at + size :] == after[:at] + after[at + size :]


@pytest.mark.parametrize(
    ("kind", "protocol", "allowed"),
    [
        (socket.SOCK_STREAM, socket.IPPROTO_TCP, True),
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP, True),
        (socket.SOCK_RAW, socket.IPPROTO_TCP, False),
        (socket.SOCK_RAW, socket.IPPROTO_RAW, False),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMP, False),
        (socket.SOCK_DGRAM, socket.IPPROTO_TCP, False),
        (socket.SOCK_STREAM, socket.IPPROTO_SCTP, False),
        (socket.SOCK_STREAM, socket.IPPROTO_MPTCP, False),
        (socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP, False),
    ],
)
def test_create(kind, protocol, allowed):
    """A socket that no hook steers is not made."""
    (hook,) = [h for h in hook_programs.hooks(OWN4, MARK) if h.name == "create"]
    context = Region.of(struct.pack("=4I", 0, 2, kind, protocol))

    assert int(allowed) == run(bpf.packed(hook.program), context, {})


@given(OWNS)
def test_programs_fit(own):
    """Each ends, jumps forward into itself, and is within what any kernel takes."""
    hooks = hook_programs.hooks(own, MARK)
    for hook in hooks:
        assert len(hook.program) <= 4096
        assert bpf.END == hook.program[-1].code
        for at, line in enumerate(hook.program):
            if line.code in {bpf.JUMP, bpf.JUMP_IF_EQUAL, bpf.JUMP_UNLESS_EQUAL}:
                assert 0 <= line.offset
                assert at + 1 + line.offset < len(hook.program)

    assert len(hooks) == len({hook.place for hook in hooks})
