"""What the broker is asked, by the supervisor and by workers, and what it answers.

Pure. A message is msgpack over a channel (vnsmail/channel.py). The supervisor sends
one request a message. A worker sends a batch, a list of requests; the answers come in
the order of the requests, with the descriptors of all that were opened in that order.

Rules of this file: every length has a bound, so that what is decoded is small; unknown
fields and tags are refused; what decodes may still be refused by policy.py, which says
so with one of the words below. What does not decode, or has an id that is not greater
than the one before it on that channel, ends the channel.

    not_owned         the worker was not granted that owner
    no_such_address   a listener on an address that is not the owner's
    port              a listener on a port that is not configured
    server            a name server that is not configured
    store             a socket of a mail store that is not configured
    malformed         a value that cannot be: an address, a namespace, a grant
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta
from msgspec.msgpack import Decoder as _Decoder

from vnsmail.packets import MAX_DESCRIPTORS

Decoded = TypeVar("Decoded")

MAX_BATCH = MAX_DESCRIPTORS
"""Requests in one message: their descriptors fit one answer."""

MAX_HOSTS = 32
"""Hosts in one grant; 32 with the longest names and all addresses fit a message."""

Id: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,253}\Z")]
Address: TypeAlias = Annotated[str, Meta(min_length=2, max_length=45)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
SocketPath: TypeAlias = Annotated[str, Meta(pattern=r"^/[^\x00]{1,106}\Z")]
Addresses: TypeAlias = Annotated[tuple[Address, ...], Meta(max_length=64)]
Kind: TypeAlias = Literal[
    "not_owned", "no_such_address", "port", "server", "store", "malformed"
]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    id: Id


class HostGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One owner's sockets: whose, where they live, what they may be bound to."""

    name: Name
    """A virtual host's name, or ``machine``, whose sockets are never bound."""
    namespace: Annotated[str, Meta(max_length=253)]
    """Name of its network namespace; empty for the machine's own."""
    addresses: Addresses
    """The first of each family is the one to send from; none for the machine."""
    mark: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0
    """Mark of its sockets (net/guard_rules.py), by which the guard knows whose they are; 0: none.
    Only in the machine's network: in a namespace of its own, all are the host's."""
    resolvers: Annotated[tuple[Address, ...], Meta(max_length=8)] = ()
    """Name servers that it asks from its own addresses, beside those of the machine."""
    identity: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Which its network namespace is (net/namespaces.py): in another of that name no
    socket is opened. 0 in the machine's network, which has no name."""
    engine: Annotated[str, Meta(max_length=107, pattern=r"^(/[^\x00]*)?\Z")] = ""
    """Unix socket at which its engine takes mail; empty: the worker is the engine."""


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mail store of this machine that mail may be handed to (LMTP, RFC 2033)."""

    owner: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,253}\Z")]
    """Who may; empty: everybody."""
    path: SocketPath
    """Of its Unix socket."""


# The supervisor asks ----------------------------------------------------------


class Configure(_Message, frozen=True):
    """The first message: ports that may be listened on, name servers to be asked."""

    ports: Annotated[tuple[Port, ...], Meta(max_length=64)]
    resolvers: Addresses
    stores: Annotated[tuple[Store, ...], Meta(max_length=1000)] = ()


class Attach(_Message, frozen=True):
    """Carries one descriptor: a channel to this worker.

    It replaces an earlier one, and all grants of the worker are forgotten: whoever
    attaches it grants anew what it owns now.
    """

    worker: Name


class Grant(_Message, frozen=True):
    """Open sockets of these owners for this worker, and for no other any more."""

    worker: Name
    hosts: Annotated[tuple[HostGrant, ...], Meta(max_length=MAX_HOSTS)]


class Revoke(_Message, frozen=True):
    """Open no more sockets of this owner for this worker."""

    worker: Name
    host: Name


class ListAttached(_Message, frozen=True):
    """Which workers have a channel? One that misbehaved has none any more."""


SupervisorRequest: TypeAlias = Configure | Attach | Grant | Revoke | ListAttached


class Done(_Message, frozen=True):
    """The request was carried out."""


class Refused(_Message, frozen=True):
    """The request was not carried out, and never will be as things are."""

    kind: Kind
    text: str


class Attached(_Message, frozen=True):
    """Answer to ListAttached."""

    workers: Annotated[tuple[Name, ...], Meta(max_length=MAX_HOSTS)]
    opened: int = 0
    """Sockets opened since the broker was started."""
    unavailable: int = 0
    """Requests that the kernel refused: no such address, port in use."""
    refused: int = 0
    """Requests for what is not the worker's."""


SupervisorAnswer: TypeAlias = Done | Refused | Attached


# Workers ask ------------------------------------------------------------------


class OpenConnectable(_Message, frozen=True):
    """A TCP socket of the owner, bound to its address, to be connected."""

    owner: Name
    family: Literal[4, 6]


class OpenListener(_Message, frozen=True):
    """A TCP socket listening on an address of the owner."""

    owner: Name
    address: Address
    port: Port


class OpenResolver(_Message, frozen=True):
    """A socket connected to port 53 of a name server.

    With an owner it is the owner's, bound to its address, and the server one of its own;
    else it is the machine's, and the server one of those configured.
    """

    transport: Literal["udp", "tcp"]
    server: Address
    owner: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,253}\Z")] = ""


class OpenEngine(_Message, frozen=True):
    """A Unix socket connected to the owner's engine, which speaks SMTP there."""

    owner: Name


class OpenStore(_Message, frozen=True):
    """A Unix socket connected to a mail store of this machine."""

    owner: Name
    path: SocketPath


WorkerRequest: TypeAlias = (
    OpenConnectable | OpenListener | OpenResolver | OpenEngine | OpenStore
)


class Opened(_Message, frozen=True):
    """The next descriptor of this message is the socket."""

    source: str | None
    """The address it is bound to; None if the kernel is to choose."""


class Unavailable(_Message, frozen=True):
    """The kernel would not make or bind that socket now."""

    errno: int
    reason: str
    """Words for the errno, or better ones."""
    source: str | None
    """The address it was to be bound to, if there is one of that family."""


WorkerAnswer: TypeAlias = Opened | Unavailable | Refused

# Bytes ------------------------------------------------------------------------

_Requests: TypeAlias = Annotated[
    tuple[WorkerRequest, ...], Meta(min_length=1, max_length=MAX_BATCH)
]
_Answers: TypeAlias = Annotated[
    tuple[WorkerAnswer, ...], Meta(min_length=1, max_length=MAX_BATCH)
]

encode = msgspec.msgpack.Encoder().encode
_supervisor_request: _Decoder[SupervisorRequest] = _Decoder(SupervisorRequest)
_supervisor_answer: _Decoder[SupervisorAnswer] = _Decoder(SupervisorAnswer)
_requests: _Decoder[tuple[WorkerRequest, ...]] = _Decoder(_Requests)
_answers: _Decoder[tuple[WorkerAnswer, ...]] = _Decoder(_Answers)


class Malformed(Exception):
    """What came is not a message of this protocol."""


def decode_supervisor_request(data: bytes) -> SupervisorRequest:
    """Return what the supervisor asks; raises Malformed if it is nothing."""
    return _decoded(_supervisor_request, data)


def decode_supervisor_answer(data: bytes) -> SupervisorAnswer:
    """Return what the supervisor is answered; raises Malformed if it is nothing."""
    return _decoded(_supervisor_answer, data)


def decode_requests(data: bytes) -> tuple[WorkerRequest, ...]:
    """Return what a worker asks, one request at least; raises Malformed."""
    return _decoded(_requests, data)


def decode_answers(data: bytes) -> tuple[WorkerAnswer, ...]:
    """Return what a worker is answered, one answer at least; raises Malformed."""
    return _decoded(_answers, data)


def encode_batch(messages: Sequence[WorkerRequest] | Sequence[WorkerAnswer]) -> bytes:
    """Return one message of several requests, or of the answers to them."""
    return encode(messages)


def _decoded(decoder: _Decoder[Decoded], data: bytes) -> Decoded:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
