import pytest

from tests.delivery.helpers import ALPHA, DUAL, Table, no_such, null_mx, server_failure
from vnsmail.delivery.explain import explain
from vnsmail.delivery.route import Hop, route


async def told(domain, who, table):
    """Return the targets as text: turn, name, address, and why not."""
    path = await explain(domain, who, table)
    return [
        " ".join(filter(None, (str(t.turn), t.exchanger, str(t.address or ""), t.why)))
        for t in path.targets
    ], path.refusal


async def test_what_is_tried_and_what_is_not():
    """Addresses of a family that the host has not are told, and why they are none."""
    table = Table(
        {"b.example": [(20, "two.example"), (10, "one.example")]},
        {"one.example": ["10.0.1.1", "fd00::1"], "two.example": ["10.0.2.1"]},
    )
    targets, refusal = await told("b.example", ALPHA, table)

    assert [
        "0 one.example fd00::1 alpha.example has no IPv6 address to send from",
        "1 one.example 10.0.1.1",
        "2 two.example 10.0.2.1",
    ] == targets
    assert refusal is None


async def test_it_is_the_way_that_delivery_takes():
    """Turns are those of the route, address by address."""
    table = Table(
        {"b.example": [(10, "one.example"), (20, "two.example")]},
        {"one.example": ["10.0.1.1", "fd00::11"], "two.example": ["fd00::12"]},
    )
    hops = await route("b.example", DUAL, table, lambda each: each.sort())
    path = await explain("b.example", DUAL, table)

    by_turn = sorted((t for t in path.targets if t.turn), key=lambda t: t.turn)
    assert hops == tuple(Hop(t.exchanger, t.address) for t in by_turn if t.address)


async def test_this_host_itself():
    """Exchangers that are no closer to the domain are passed over."""
    table = Table(
        {"b.example": [(5, "up.example"), (10, "alpha.example"), (20, "low.example")]},
        {
            "up.example": ["10.0.1.1"],
            "alpha.example": ["10.77.0.11"],
            "low.example": ["10.0.2.1"],
        },
    )
    targets, _ = await told("b.example", ALPHA, table)

    assert targets[0] == "1 up.example 10.0.1.1"
    assert targets[1].endswith("it is this host itself")
    assert "no closer to the domain" in targets[2]


async def test_without_an_address():
    targets, refusal = await told(
        "b.example", ALPHA, Table({"b.example": [(10, "x.example")]}, {"x.example": []})
    )

    assert ["0 x.example it has no address"] == targets
    assert refusal is not None
    assert "no mail host of b.example has an address" in refusal.text


@pytest.mark.parametrize("make", [null_mx, no_such, server_failure])
async def test_nobody_to_ask(make):
    """What would become of the mail is told, as delivery would have it."""
    table = Table({"b.example": make("b.example")}, {})
    targets, refusal = await told("b.example", ALPHA, table)

    assert [] == targets
    assert refusal == await route("b.example", ALPHA, table, lambda each: each.sort())


async def test_an_address_literal():
    targets, _ = await told("[10.0.0.9]", ALPHA, Table({}, {}))

    assert ["1 [10.0.0.9] 10.0.0.9"] == targets
