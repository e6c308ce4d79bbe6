"""What the kernel decides for the programs of a virtual host that is an alias. Pure.

    hook         given                          answer
    create       a socket other than TCP, UDP   refused: nothing below could steer it
    bind         no address in particular       the host's, in its place
                 the host's, or loopback        allowed
                 any other                      refused
    connect      to a loopback address          allowed
                 the socket has a host address  allowed
                 the socket has no port yet     bound to the host's address; refused if
                                                that fails
                 any other                      refused: its source cannot be changed
    sendmsg      to a loopback address          allowed
                 from the host's                allowed
                 from any other                 sent from the host's
    all          of a family the host has not   refused, but for loopback

An IPv6 socket that speaks IPv4 (::ffff:10.77.0.1) is steered like an IPv4 socket.

Rules of this file: pure; a program refuses unless it found a reason to allow; what it
refuses fails with EPERM in the calling program. No helper used here wants a program to
be under the GPL.

A connected UDP socket can give sendmsg its source in a control message (IP_PKTINFO), and
the hook is then shown no destination at all, which looks like 0.0.0.0 or ``::``. So
these two count as loopback for connect, for which they are, but not for sendmsg.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vnsmail.model import IPAddress
from vnsmail.net import bpf
from vnsmail.net.bpf import Assembler, Register, Size
from vnsmail.net.guard_rules import MARK_OPTION

R0, R1, R2, R3 = Register.R0, Register.R1, Register.R2, Register.R3
R4, R5, R6, R8 = Register.R4, Register.R5, Register.R6, Register.R8
R10 = Register.R10

# bpf_prog_type and bpf_attach_type of linux/bpf.h.
CGROUP_SOCK, CGROUP_SOCK_ADDR = 9, 18
CREATE, BIND4, BIND6, CONNECT4, CONNECT6, SENDMSG4, SENDMSG6 = 2, 8, 9, 10, 11, 14, 15

# Helpers (enum bpf_func_id).
SETSOCKOPT, BIND = 49, 64

# Offsets in struct bpf_sock_addr, which bind, connect and sendmsg are given …
USER_IP4, USER_IP6, SOURCE_IP4, SOURCE_IP6, SOCKET = 4, 8, 40, 44, 64
# … and in struct bpf_sock, which create is given, and SOCKET points to.
TYPE, PROTOCOL, OWN_IP4, OWN_IP6, OWN_PORT = 8, 12, 24, 28, 44

_AF_INET, _AF_INET6 = 2, 10
_SIN_LENGTH, _SIN6_LENGTH = 16, 28
_SOL_SOCKET = 1
_STREAM_TCP, _DATAGRAM_UDP = (1, 6), (2, 17)
_ADDRESS = -32
"""Where on the stack the address to bind is written."""
_OPTION = -40

_LOOPBACK = 127
"""First octet of the IPv4 addresses that do not leave the machine (RFC 1122)."""
_ONE = bpf.words(b"\0\0\0\1")[0]
_MAPPED = bpf.words(b"\0\0\xff\xff")[0]

ALLOW, REFUSE, MINE = "allow", "refuse", "mine"

Words: TypeAlias = tuple[int, ...]
"""An address as programs see it, word by word."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program and the place where the kernel asks it."""

    name: str
    place: int
    kind: int
    program: tuple[bpf.Instruction, ...]


@dataclass(frozen=True, slots=True)
class _Own:
    """The addresses of a host; the first of each family is the one it sends from."""

    ip4: Sequence[int]
    ip6: Sequence[Words]


_Write: TypeAlias = Callable[[Assembler, _Own, int], None]


def hooks(addresses: Iterable[IPAddress], mark: int) -> tuple[Hook, ...]:
    """Return the programs for a host with these addresses.

    Args:
        addresses: its own, at least one; the first of each family is the source.
        mark: that of its sockets, by which the guard knows them (guard_rules.py).
    """
    packed = [address.packed for address in addresses]
    own = _Own(
        ip4=[bpf.words(each)[0] for each in packed if len(each) == 4],
        ip6=[bpf.words(each) for each in packed if len(each) == 16],
    )

    def hook(name: str, place: int, kind: int, write: _Write) -> Hook:
        asm = Assembler()
        asm.copy(R6, R1)
        write(asm, own, mark)
        _endings(asm)
        return Hook(name, place, kind, asm.assembled())

    return (
        hook("create", CREATE, CGROUP_SOCK, _create),
        hook("bind4", BIND4, CGROUP_SOCK_ADDR, _bind4),
        hook("bind6", BIND6, CGROUP_SOCK_ADDR, _bind6),
        hook("connect4", CONNECT4, CGROUP_SOCK_ADDR, _connect4),
        hook("connect6", CONNECT6, CGROUP_SOCK_ADDR, _connect6),
        hook("sendmsg4", SENDMSG4, CGROUP_SOCK_ADDR, _sendmsg4),
        hook("sendmsg6", SENDMSG6, CGROUP_SOCK_ADDR, _sendmsg6),
    )


def _endings(asm: Assembler) -> None:
    for label, answer in ((REFUSE, 0), (ALLOW, 1)):
        if asm.label_if_reached(label):
            asm.set(R0, answer)
            asm.end()


# The programs: what is not decided at their end is refused -----------------------


def _create(asm: Assembler, _own: _Own, _mark: int) -> None:
    asm.load(R1, R6, TYPE, Size.WORD)
    asm.load(R2, R6, PROTOCOL, Size.WORD)
    for kind, protocol in (_STREAM_TCP, _DATAGRAM_UDP):
        further = f"not {protocol}"
        asm.jump_unless_equal(R1, kind, further)
        asm.jump_if_equal(R2, protocol, ALLOW)
        asm.label(further)


def _bind4(asm: Assembler, own: _Own, _mark: int) -> None:
    _allow_loopback4(asm, USER_IP4)
    asm.load(R1, R6, USER_IP4, Size.WORD)
    if not own.ip4:
        return
    for word in own.ip4:
        asm.jump_if_equal(R1, word, ALLOW)
    asm.jump_unless_equal(R1, 0, REFUSE)
    _write(asm, USER_IP4, own.ip4[:1])
    asm.jump(ALLOW)


def _bind6(asm: Assembler, own: _Own, _mark: int) -> None:
    _load_address6(asm)
    _jump_if_mapped(asm, "ipv4")
    for address in own.ip6:
        _jump_if_same(asm, address, ALLOW)
    for register in (R1, R2, R3):
        asm.jump_unless_equal(register, 0, REFUSE)
    asm.jump_if_equal(R4, _ONE, ALLOW)
    asm.jump_unless_equal(R4, 0, REFUSE)
    # A socket of both families at a host of one speaks the host's.
    _write(asm, USER_IP6, [*own.ip6, *((0, 0, _MAPPED, ip4) for ip4 in own.ip4)][0])
    asm.jump(ALLOW)
    asm.label("ipv4")
    _allow_loopback4(asm, USER_IP6 + 12)
    if not own.ip4:
        return
    for word in own.ip4:
        asm.jump_if_equal(R4, word, ALLOW)
    asm.jump_unless_equal(R4, 0, REFUSE)
    _write(asm, USER_IP6 + 12, own.ip4[:1])
    asm.jump(ALLOW)


def _connect4(asm: Assembler, own: _Own, mark: int) -> None:
    _allow_loopback4(asm, USER_IP4)
    asm.load(R1, R6, USER_IP4, Size.WORD)
    asm.jump_if_equal(R1, 0, ALLOW)
    if not own.ip4:
        return
    asm.load(R8, R6, SOCKET, Size.DOUBLE)
    _mine_if_source4(asm, own)
    _bind_source4(asm, own.ip4[0])
    asm.label(MINE)
    _set_mark(asm, mark)


def _connect6(asm: Assembler, own: _Own, mark: int) -> None:
    asm.load(R8, R6, SOCKET, Size.DOUBLE)
    _load_address6(asm)
    _jump_if_mapped(asm, "ipv4")
    for register in (R1, R2, R3):
        asm.jump_unless_equal(register, 0, "ipv6")
    asm.jump_if_equal(R4, 0, ALLOW)
    asm.jump_if_equal(R4, _ONE, ALLOW)
    asm.label("ipv6")
    if own.ip6:
        for at, register in enumerate((R1, R2, R3, R4)):
            asm.load(register, R8, OWN_IP6 + 4 * at, Size.WORD)
        for address in own.ip6:
            _jump_if_same(asm, address, MINE)
        _refuse_if_port(asm)
        _bind_source6(asm, own.ip6[0])
        asm.jump(MINE)
    else:
        asm.jump(REFUSE)
    asm.label("ipv4")
    _allow_loopback4(asm, USER_IP6 + 12)
    if own.ip4:
        _mine_if_source4(asm, own)
        _bind_source6(asm, (0, 0, _MAPPED, own.ip4[0]))
    else:
        asm.jump(REFUSE)
    asm.label(MINE)
    _set_mark(asm, mark)


def _sendmsg4(asm: Assembler, own: _Own, _mark: int) -> None:
    _allow_loopback4(asm, USER_IP4)
    if not own.ip4:
        return
    asm.load(R1, R6, SOURCE_IP4, Size.WORD)
    for word in own.ip4:
        asm.jump_if_equal(R1, word, ALLOW)
    _write(asm, SOURCE_IP4, own.ip4[:1])
    asm.jump(ALLOW)


def _sendmsg6(asm: Assembler, own: _Own, _mark: int) -> None:
    _load_address6(asm)
    _jump_if_same(asm, (0, 0, 0, _ONE), ALLOW)
    if not own.ip6:
        return
    for at, register in enumerate((R1, R2, R3, R4)):
        asm.load(register, R6, SOURCE_IP6 + 4 * at, Size.WORD)
    for address in own.ip6:
        _jump_if_same(asm, address, ALLOW)
    _write(asm, SOURCE_IP6, own.ip6[0])
    asm.jump(ALLOW)


# Parts of them -------------------------------------------------------------------


def _allow_loopback4(asm: Assembler, offset: int) -> None:
    asm.load(R5, R6, offset, Size.BYTE)
    asm.jump_if_equal(R5, _LOOPBACK, ALLOW)


def _load_address6(asm: Assembler) -> None:
    for at, register in enumerate((R1, R2, R3, R4)):
        asm.load(register, R6, USER_IP6 + 4 * at, Size.WORD)


def _jump_if_mapped(asm: Assembler, label: str) -> None:
    """Go to a label if R1 to R4 are an IPv4 address in IPv6 (RFC 4291 2.5.5.2)."""
    asm.jump_unless_equal(R1, 0, "not mapped")
    asm.jump_unless_equal(R2, 0, "not mapped")
    asm.jump_if_equal(R3, _MAPPED, label)
    asm.label("not mapped")


def _jump_if_same(asm: Assembler, address: Words, label: str) -> None:
    """Go to a label if R1 to R4 are this address."""
    other = f"not {address}"
    for register, word in zip((R1, R2, R3), address[:3], strict=True):
        asm.jump_unless_equal(register, word, other)
    asm.jump_if_equal(R4, address[3], label)
    asm.label(other)


def _write(asm: Assembler, offset: int, address: Sequence[int]) -> None:
    """Write an address into what the kernel goes on with.

    By way of a register: the verifier takes no constant stored there before Linux 6.3.
    """
    for at, word in enumerate(address):
        asm.set(R5, word)
        asm.store(R6, offset + 4 * at, R5, Size.WORD)


def _mine_if_source4(asm: Assembler, own: _Own) -> None:
    """Go to MINE if the socket has a host's address; refuse if it has another port."""
    asm.load(R1, R8, OWN_IP4, Size.WORD)
    for word in own.ip4:
        asm.jump_if_equal(R1, word, MINE)
    _refuse_if_port(asm)


def _refuse_if_port(asm: Assembler) -> None:
    # The kernel binds no socket again that has a port. One gets here by a UDP socket
    # that sent before it was connected.
    asm.load(R1, R8, OWN_PORT, Size.WORD)
    asm.jump_unless_equal(R1, 0, REFUSE)


def _bind_source4(asm: Assembler, word: int) -> None:
    asm.store_value(R10, _ADDRESS, _AF_INET, Size.HALF)
    asm.store_value(R10, _ADDRESS + 2, 0, Size.HALF)
    asm.store_value(R10, _ADDRESS + 4, word, Size.WORD)
    asm.store_value(R10, _ADDRESS + 8, 0, Size.DOUBLE)
    _call_bind(asm, _SIN_LENGTH)


def _bind_source6(asm: Assembler, address: Words) -> None:
    asm.store_value(R10, _ADDRESS, _AF_INET6, Size.HALF)
    asm.store_value(R10, _ADDRESS + 2, 0, Size.HALF)
    for at, word in enumerate((0, *address, 0)):  # flow label, address, scope
        asm.store_value(R10, _ADDRESS + 4 + 4 * at, word, Size.WORD)
    _call_bind(asm, _SIN6_LENGTH)


def _call_bind(asm: Assembler, length: int) -> None:
    """Bind, with the port left for connect to choose; refuse if that fails."""
    asm.copy(R1, R6)
    asm.copy(R2, R10)
    asm.add(R2, _ADDRESS)
    asm.set(R3, length)
    asm.call(BIND)
    asm.jump_unless_equal(R0, 0, REFUSE)


def _set_mark(asm: Assembler, mark: int) -> None:
    """Mark the socket, now, as setting IP_TOS takes a mark away; refuse if that fails.

    Those to the loopback get none: they are the machine's there, and the guard would
    drop them for coming from 127.0.0.1.
    """
    asm.store_value(R10, _OPTION, mark, Size.WORD)
    asm.copy(R1, R6)
    asm.set(R2, _SOL_SOCKET)
    asm.set(R3, MARK_OPTION)
    asm.copy(R4, R10)
    asm.add(R4, _OPTION)
    asm.set(R5, 4)
    asm.call(SETSOCKOPT)
    asm.jump_unless_equal(R0, 0, REFUSE)
    asm.jump(ALLOW)
