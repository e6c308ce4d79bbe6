"""What an operator does to a queue, through an owner's service."""

import asyncio
import os

import pytest

from tests.engines.helpers import Lodging, handed
from vnsmail.engines import protocol
from vnsmail.engines.protocol import FindQueue, LocalMail, WorkQueue
from vnsmail.events import record
from vnsmail.queue.selection import Selection

ALPHA = "alpha.example"
ANN, BOB, EVE = "ann@alpha.example", "bob@b.example", "eve@c.example"


@pytest.fixture
async def lodging(tmp_path):
    lodging = Lodging(tmp_path)
    yield lodging
    await lodging.close()


@pytest.fixture
async def told():
    return []


@pytest.fixture
async def service(lodging, told):
    """A service that has nothing to send from: what is for elsewhere stays."""
    service = await lodging.opened()
    service._tell = told.append
    return service


async def send(service, *recipients, sender=ANN):
    fd = handed(b"Subject: hi\r\n\r\nhello\r\n")
    try:
        return await service.inject(fd, LocalMail(ALPHA, sender, recipients, 1000))
    finally:
        os.close(fd)


async def work(service, action, reason="", dry_run=False, **wanted):
    request = WorkQueue(
        1, ALPHA, action, Selection(**wanted), reason=reason, dry_run=dry_run
    )
    messages, recipients, under_way, place = await service.desk().work(request)
    assert "" == place
    return messages, recipients, under_way


async def queued(service, **wanted):
    entries, _ = await service.desk().find(FindQueue(1, ALPHA, Selection(**wanted)))
    return {entry.envelope.id: entry for entry in entries}


def names(told):
    return [type(each).__name__.lower() for each in told]


async def tries(service):
    """Return how many attempts there were."""
    return sum(
        r[1] for each in (await queued(service)).values() for r in each.recipients
    )


async def settled(service):
    """Wait until nothing is under way: there is no source."""
    async with asyncio.timeout(30):
        while service._agent.in_memory():
            await asyncio.sleep(0.001)


async def test_list_and_header(service):
    """Entries with what keeps them, and the header of one."""
    one = await send(service, BOB, EVE)
    await settled(service)
    found = await queued(service, domain="c.example")
    header = await service.desk().header(one)

    assert [one] == list(found)
    assert [BOB, EVE] == [r[0] for r in found[one].recipients]
    assert "Subject: hi" in header
    assert "hello" not in header


async def test_delete_what_is_meant(service, told):
    """Recipients that are not meant stay; a dry run changes nothing."""
    one, two = await send(service, BOB, EVE), await send(service, BOB)
    await settled(service)
    would = await work(service, "delete", dry_run=True, domain="b.example")
    before = await queued(service)
    did = await work(service, "delete", domain="b.example")
    after = await queued(service)

    assert (2, 2, 0) == would == did
    assert {one, two} == set(before)
    assert [one] == list(after)
    assert [EVE] == [r[0] for r in after[one].recipients]
    assert ["deleted", "deleted"] == names(told)[-2:]


async def test_bounce_tells_the_sender(service, lodging, told):
    """The sender gets a notice with the reason in it, and the message is gone."""
    one = await send(service, BOB)
    await settled(service)
    did = await work(service, "bounce", reason="not in this house", ids=(one,))
    (mail,) = await lodging.mail("ann")

    assert (1, 1, 0) == did
    assert {} == await queued(service, ids=(one,))
    assert b"not in this house" in mail
    assert b"Status: 5.0.0" in mail
    assert b"Action: failed" in mail


async def test_hold_and_release_a_message(service, told):
    """It is listed as held with the reason, does not come in time, and is let go."""
    one, two = await send(service, BOB), await send(service, BOB)
    await settled(service)
    did = await work(service, "hold", reason="looked at", ids=(one,))
    again = await work(service, "hold", reason="looked at", ids=(one,))
    held = await queued(service, status="held")
    await work(service, "release", ids=(one,), status="held")

    assert ((1, 1, 0), (0, 0, 0)) == (did, again)
    assert {one: "looked at"} == {each: entry.held for each, entry in held.items()}
    assert {} == await queued(service, status="held")
    assert {one, two} == set(await queued(service))
    assert ["held", "released"] == names(told)[-2:]


async def test_hold_a_host(lodging, told):
    """Nothing is delivered, not even here, nor after a restart; then all of it is."""
    service = await lodging.opened()
    await service.desk().hold_place("*", "moving")
    await send(service, ANN)
    await lodging.open.pop().close()
    service = await lodging.opened(addresses=("10.77.0.12",))
    held = await queued(service)
    in_memory = service._agent.in_memory()
    released = await service.desk().release_place("*")
    (mail,) = await lodging.mail("ann")

    assert ["moving"] == [entry.held for entry in held.values()]
    assert [] == in_memory
    assert released
    assert b"Subject: hi" in mail


async def test_hold_a_destination(service, told):
    """Only what goes there is held, also what comes later."""
    await service.desk().hold_place("b.example", "busy")
    one, two = await send(service, BOB), await send(service, EVE)
    await settled(service)
    held = await queued(service, status="held")

    assert [one] == list(held)
    assert "" == (await queued(service, ids=(two,)))[two].held
    assert {"b.example": "busy"} == await service.desk().holds()
    assert await service.desk().release_place("b.example")
    assert not await service.desk().release_place("b.example")


async def test_events_of_holds(service, told):
    """Who looks later finds who was held, and why."""
    await service.desk().hold_place("*", "moving")
    await service.desk().release_place("*")

    assert [("moving", ""), None] == [
        (e.reason, e.destination) if isinstance(e, record.Held) else None for e in told
    ]


async def test_pages(service):
    """A list goes on where the page before ended."""
    ids = [await send(service, BOB) for _ in range(5)]
    await settled(service)
    desk, found, place = service.desk(), [], ""
    while True:
        request = FindQueue(1, ALPHA, after=place, limit=2)
        entries, place = await desk.find(request)
        found += [entry.envelope.id for entry in entries]
        if not place:
            break

    assert ids == found
    assert protocol.decode_request(protocol.encode(request)) == request


async def test_retry(service):
    """What waits for a destination that is down is tried now; what is held is not."""
    one, two = await send(service, BOB), await send(service, BOB)
    while not (await queued(service, status="deferred")):
        await asyncio.sleep(0.001)
    await settled(service)
    before = await tries(service)
    await work(service, "hold", reason="looked at", ids=(two,))

    assert (2, 2, 0) == await work(service, "retry")
    assert [two] == list(await queued(service, status="held"))
    async with asyncio.timeout(30):
        while await tries(service) <= before:
            await asyncio.sleep(0.001)
    assert {one, two} == set(await queued(service))
