import contextlib
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.broker import protocol
from vnsmail.broker.protocol import (
    Attach,
    Configure,
    Done,
    Grant,
    HostGrant,
    OpenConnectable,
    Opened,
    OpenListener,
    OpenResolver,
    Refused,
    Revoke,
    Unavailable,
)
from vnsmail.channel import MAX_MESSAGE

ids = st.integers(0, 2**53)
names = st.text(string.ascii_letters + string.digits + ".-_", min_size=1, max_size=253)
addresses = st.ip_addresses().map(str)
address_lists = st.lists(addresses, max_size=64).map(tuple)
ports = st.integers(1, 65535)
kinds = st.sampled_from(["not_owned", "no_such_address", "port", "server", "malformed"])

grants = st.builds(HostGrant, names, names | st.just(""), address_lists)
supervisor_requests = st.one_of(
    st.builds(Configure, ids, st.lists(ports, max_size=64).map(tuple), address_lists),
    st.builds(Attach, ids, names),
    st.builds(Grant, ids, names, st.lists(grants, max_size=4).map(tuple)),
    st.builds(Revoke, ids, names, names),
)
refusals = st.builds(Refused, ids, kinds, st.text())
supervisor_answers = (
    st.builds(Done, ids)
    | refusals
    | st.builds(protocol.Attached, ids, st.lists(names, max_size=5).map(tuple))
)
worker_requests = st.one_of(
    st.builds(OpenConnectable, ids, names, st.sampled_from([4, 6])),
    st.builds(OpenListener, ids, names, addresses, ports),
    st.builds(OpenResolver, ids, st.sampled_from(["udp", "tcp"]), addresses),
)
worker_answers = st.one_of(
    st.builds(Opened, ids, addresses | st.none()),
    st.builds(Unavailable, ids, ports, st.text(), addresses | st.none()),
    refusals,
)


def batches(messages):
    return st.lists(messages, min_size=1, max_size=protocol.MAX_BATCH).map(tuple)


@given(supervisor_requests)
def test_supervisor_requests_come_back_as_they_were(request):
    assert request == protocol.decode_supervisor_request(protocol.encode(request))


@given(supervisor_answers)
def test_supervisor_answers_come_back_as_they_were(answer):
    assert answer == protocol.decode_supervisor_answer(protocol.encode(answer))


@given(batches(worker_requests))
def test_batches_of_requests_come_back_as_they_were(batch):
    assert batch == protocol.decode_requests(protocol.encode_batch(batch))


@given(batches(worker_answers))
def test_batches_of_answers_come_back_as_they_were(batch):
    assert batch == protocol.decode_answers(protocol.encode_batch(batch))


DECODERS = [
    protocol.decode_supervisor_request,
    protocol.decode_supervisor_answer,
    protocol.decode_requests,
    protocol.decode_answers,
]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | values.map(msgspec.msgpack.encode))
def test_anything_else_is_one_error(data):
    """What drops a peer is Malformed and nothing else, whatever the bytes."""
    for decode in DECODERS:
        with contextlib.suppress(protocol.Malformed):
            decode(data)


@pytest.mark.parametrize("start", [b"", b"\x91\x82\xa1x", b"\x82\xa1x"], ids=repr)
def test_values_in_values_without_end_are_the_same_error(start):
    for decode in DECODERS:
        with pytest.raises(protocol.Malformed):
            decode(start + b"\x91" * 100_000 + b"\xc0")


@given(batches(worker_requests), st.data())
def test_a_request_with_a_changed_byte_is_refused_or_still_a_request(batch, data):
    encoded = bytearray(protocol.encode_batch(batch))
    where = data.draw(st.integers(0, len(encoded) - 1))
    encoded[where] ^= data.draw(st.integers(1, 255))
    try:
        decoded = protocol.decode_requests(bytes(encoded))
    except protocol.Malformed:
        return

    assert len(decoded) <= protocol.MAX_BATCH


def raw(**fields):
    return msgspec.msgpack.encode([fields])


GOOD = {"type": "OpenConnectable", "id": 1, "owner": "a.example", "family": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"family": 5},
        {"family": "4"},
        {"owner": ""},
        {"owner": "a" * 254},
        {"owner": "a.example\n"},
        {"owner": "a/../b"},
        {"id": -1},
        {"id": 2**53 + 1},
        {"id": True},
        {"type": "Grant"},
        {"extra": 1},
    ],
    ids=repr,
)
def test_no_value_out_of_range_is_decoded(change):
    assert protocol.decode_requests(raw(**GOOD))
    with pytest.raises(protocol.Malformed):
        protocol.decode_requests(raw(**GOOD | change))


@pytest.mark.parametrize("size", [0, protocol.MAX_BATCH + 1])
def test_a_batch_has_bounds(size):
    request = OpenConnectable(1, "a.example", 4)
    with pytest.raises(protocol.Malformed):
        protocol.decode_requests(protocol.encode_batch([request] * size))


def test_the_longest_messages_fit_a_channel():
    """Nothing that decodes could not have been sent."""
    name, address = "n" * 253, "f" * 45
    grant = HostGrant(name, name, (address,) * 64, 2**32 - 1, (address,) * 8)
    whole = [
        protocol.encode(Grant(2**53, name, (grant,) * protocol.MAX_HOSTS)),
        protocol.encode_batch(
            [OpenListener(2**53, name, address, 65535)] * protocol.MAX_BATCH
        ),
    ]

    assert [] == [len(data) for data in whole if len(data) > MAX_MESSAGE]
