"""Each path of each host, in each family: its packets have its address, or there are none."""

from functools import partial

import pytest

from integration.labs import Lab, eventually
from integration.paths import FAMILIES, MAILS, PLACES, Scene, recipient

pytestmark = pytest.mark.timeout(300)
"""The first test has the fixture in its time, and the machine may be busy."""

CASES = [(label, family) for label in PLACES for family in FAMILIES]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Everything that hosts send has been tried; what cannot leave is queued."""
    folder = tmp_path_factory.mktemp("paths")
    lab = Lab(folder / "root", hosts=0)
    try:
        found = Scene(lab, folder)
        try:
            _act(found)
            yield found
        finally:
            found.close()
    finally:
        lab.stop()


def _all_wait(scene, place, recipients):
    return recipients <= set(scene.waiting(place))


def _act(scene):
    """Take every path; first all is put off, so that late mail is warned of."""
    scene.bring(*PLACES.values())
    for place in PLACES.values():
        scene.send(place)
    for place in PLACES.values():
        ours = {recipient(place, f, "warning") for f in place.families}
        eventually(partial(_all_wait, scene, place, ours), "warnings", 90)
    scene.turn("take")
    scene.run_programs(*PLACES.values())
    scene.doctor()
    wanted = {
        recipient(place, family, path)
        for place in PLACES.values()
        for family in place.families
        for path in MAILS
    }
    eventually(lambda: wanted <= set(scene.taken()), f"all of {wanted}")
    scene.end = scene.wire.mark()


def test_nothing_else_is_on_the_wire(scene):
    """Whatever it was: no packet of a host's from anybody else, nor of another family."""
    assert [] == scene.leaks(0)
    for place in PLACES.values():
        rows = scene.packets_of(place, 0, scene.end)
        assert set(place.own.values()) == {
            source for source, *_ in rows if source not in _remote_side(place)
        }


def _remote_side(place):
    return {place.sink(family) for family in FAMILIES}


@pytest.mark.parametrize("path", MAILS)
@pytest.mark.parametrize(("label", "family"), CASES)
def test_mail(scene, label, family, path):
    """It comes from the host's address of that family; without one the sender is told."""
    place = PLACES[label]
    to = recipient(place, family, path)
    if family in place.families:
        assert {place.own[family]} == scene.taken()[to]
        return
    assert to not in scene.taken()
    if path in {"message", "sendmail", "submission"}:
        eventually(lambda: to in scene.notices(place), "a notice of failure")


@pytest.mark.parametrize("question", ["MX", "address", "SPF", "DKIM", "reverse"])
@pytest.mark.parametrize(("label", "family"), CASES)
def test_question(scene, label, family, question):
    """A host with a name server of its own asks it from its own address only."""
    place = PLACES[label]
    name = place.asked(family)[question]
    askers = {
        source
        for source, destination, _, port, asked in scene.wire.between(0, scene.end)
        if (asked, port, destination) == (name, "53", place.resolver)
    }
    own = place.own[max(place.families)]
    # Who brings mail by one family only is asked for in that one only.
    unasked = question == "reverse" and family != min(place.families)
    assert askers == (set() if unasked else {own})


@pytest.mark.parametrize(("label", "family"), CASES)
@pytest.mark.parametrize("kind", ["25", "7777", "udp"])
def test_program(scene, label, family, kind):
    """An unmodified program is seen at its sink from the host's address, or not at all."""
    place = PLACES[label]
    seen = {
        source
        for source, destination, tcp, udp, _ in scene.wire.between(0, scene.end)
        if destination == place.sink(family)
        and (udp == "7777" if kind == "udp" else tcp == kind)
    }
    assert {a for f, a in place.own.items() if f == family} == seen


@pytest.mark.parametrize("family", FAMILIES)
def test_doctor(scene, family):
    """``doctor --reach`` knocks from each host that has the family, and from no other."""
    target = {4: "10.77.0.3", 6: "fd77::3"}[family]
    seen = {
        source
        for source, destination, tcp, *_ in scene.wire.between(0, scene.end)
        if (destination, tcp) == (target, "25")
    }
    assert {p.own[family] for p in PLACES.values() if family in p.families} == seen
