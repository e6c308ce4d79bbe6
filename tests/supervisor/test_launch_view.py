import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import StateUnusable
from vnsmail.supervisor import view
from vnsmail.supervisor.view import Cover, Link, Show, Wanted, plan, walk

STRANGER = 54321


def paths():
    return st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(
        lambda names: Path("/", *names)
    )


# The plan ---------------------------------------------------------------------


@given(st.sets(paths(), max_size=4), st.sets(paths(), max_size=4), paths())
def test_a_path_is_seen_as_the_nearest_word_on_it_says(covers, shown, path):
    shown -= covers
    steps = plan(Wanted(covers, dict.fromkeys(shown, 0)))

    seen = True
    for step in steps:
        if step.path == path or step.path in path.parents:
            seen = isinstance(step, Show)
    assert nearest(path, covers, shown) == seen


def nearest(path, covers, shown):
    for place in (path, *path.parents):
        if place in shown:
            return True
        if place in covers:
            return False
    return True


@given(
    st.sets(paths(), max_size=4), st.dictionaries(paths(), st.integers(), max_size=4)
)
def test_every_place_exists_when_its_turn_comes(covers, shown):
    """Outside in; and nothing is bound on itself where it is seen anyway."""
    shown = {path: flags for path, flags in shown.items() if path not in covers}
    steps = plan(Wanted(covers, shown))

    assert sorted(steps, key=lambda step: step.path.parts) == steps
    assert covers == {step.path for step in steps if isinstance(step, Cover)}
    for step in steps:
        if isinstance(step, Show):
            assert covers & set(step.path.parents)


def test_links_on_the_way_are_made_again():
    steps = plan(
        Wanted(
            {Path("/home")},
            {Path("/home/u/real"): 1},
            {Path("/home/u/link"): "real", Path("/opt/link"): "/home/u/link"},
        )
    )

    assert [
        Cover(Path("/home")),
        Link(Path("/home/u/link"), "real"),
        Show(Path("/home/u/real"), 1),
    ] == steps


def test_what_is_to_be_seen_and_not_seen_cannot_be():
    with pytest.raises(StateUnusable, match="/opt/vnsmail"):
        plan(Wanted({Path("/opt/vnsmail")}, {Path("/opt/vnsmail"): 0}))


# The way to a file ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder whose own path has no links in it."""
    return tmp_path.resolve()


def test_a_way_without_links_ends_where_it_says(folder):
    assert ({}, folder / "a" / "b") == walk(folder / "a" / "b")


def test_all_links_on_the_way_are_found(folder):
    (folder / "real" / "deep").mkdir(parents=True)
    (folder / "absolute").symlink_to(folder / "relative")
    (folder / "relative").symlink_to("real/../real")
    (folder / "real" / "again").symlink_to("deep")
    links, end = walk(folder / "absolute" / "again")

    assert folder / "real" / "deep" == end
    assert {
        folder / "absolute": str(folder / "relative"),
        folder / "relative": "real/../real",
        folder / "real" / "again": "deep",
    } == links


def test_links_in_a_circle_are_told_of(folder):
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(StateUnusable, match="too many symbolic links"):
        walk(folder / "a" / "x")


# What a worker is to see ------------------------------------------------------


@pytest.fixture
def python(folder, monkeypatch):
    """A Python installation that lies below the test's folder."""
    prefix = folder / "python"
    for name in ("bin", "lib"):
        (prefix / name).mkdir(parents=True)
    monkeypatch.setattr(view, "_python", lambda: [prefix / "bin", prefix / "lib"])
    monkeypatch.setattr(view, "_search_path", lambda: [folder / "src"])
    return prefix


def mine(path):
    status = path.stat()
    return status.st_uid, status.st_gid


def test_state_beside_the_revealed_folder_is_covered(folder, python):
    hosts = folder / "state" / "hosts"
    hosts.mkdir(parents=True)
    wanted = view.of_worker([hosts], *mine(folder))

    assert folder / "state" in wanted.covers
    assert [Cover(folder / "state"), Show(hosts, view._DATA)] == [
        step for step in plan(wanted) if folder in step.path.parents
    ]


def test_python_within_what_is_covered_stays_visible(folder, python):
    hosts = folder / "hosts"
    hosts.mkdir()
    (folder / "src").mkdir()
    steps = plan(view.of_worker([hosts], *mine(folder)))

    assert [
        Cover(folder),
        Show(hosts, view._DATA),
        Show(python / "bin", view._CODE),
        Show(python / "lib", view._CODE),
        Show(folder / "src", view._CODE),
    ] == [s for s in steps if s.path == folder or folder in s.path.parents]


def test_a_root_that_is_the_folder_of_the_package_shows_the_package(
    folder, python, monkeypatch
):
    """As after ``git clone`` and ``vnsmail --root .``."""
    hosts = folder / "hosts"
    hosts.mkdir()
    package = folder / "vnsmail"
    package.mkdir()
    monkeypatch.setattr(view, "_python", lambda: [package])
    monkeypatch.setattr(view, "_search_path", lambda: [folder])
    steps = plan(view.of_worker([hosts], *mine(folder)))

    assert [Cover(folder), Show(hosts, view._DATA), Show(package, view._CODE)] == [
        s for s in steps if s.path == folder or folder in s.path.parents
    ]


def test_a_folder_that_the_account_may_not_pass_is_covered_too(folder, python):
    """As a home of mode 0700 with a virtual environment in it."""
    hosts = folder / "state" / "hosts"
    hosts.mkdir(parents=True)
    python.chmod(0o711)
    folder.chmod(0o700)
    wanted = view.of_worker([hosts], STRANGER, STRANGER)

    assert folder in wanted.covers
    assert python not in wanted.covers
    assert Show(python / "bin", view._CODE) in plan(wanted)
    python.chmod(0o700)
    assert python in view.of_worker([hosts], STRANGER, STRANGER).covers


@pytest.mark.parametrize(
    ("mode", "uid_is_mine", "gid_is_mine", "expected"),
    [
        (0o700, True, True, True),
        (0o070, True, True, False),
        (0o070, False, True, True),
        (0o707, False, True, False),
        (0o701, False, False, True),
        (0o770, False, False, False),
    ],
)
def test_who_may_pass_a_folder(folder, mode, uid_is_mine, gid_is_mine, expected):
    """The first class that fits decides, as in the kernel (path_resolution(7))."""
    place = folder / "place"
    place.mkdir()
    uid, gid = mine(place)
    place.chmod(mode)
    uid = uid if uid_is_mine else STRANGER
    gid = gid if gid_is_mine else STRANGER

    assert expected == view._passable(place, uid, gid)
    place.chmod(0o700)


def test_a_way_to_python_that_is_barred_is_found(folder, python):
    folder.chmod(0o700)

    assert view.hidden_from(*mine(folder)) is None
    barred = view.hidden_from(STRANGER, STRANGER)
    assert barred in {folder, *folder.parents}


@pytest.mark.parametrize("name", ["missing", "file"])
def test_only_a_folder_can_be_revealed(folder, python, name):
    (folder / "file").touch()
    with pytest.raises(StateUnusable):
        view.of_worker([folder / name], os.getuid(), os.getgid())


def test_the_root_of_all_cannot_be_revealed():
    with pytest.raises(StateUnusable):
        view.of_worker([Path("/")], 0, 0)


def test_this_very_python_is_among_what_is_shown():
    needed = {walk(path)[1] for path in view._python()}

    assert Path(os.__file__).resolve().parent.parent in needed
    assert Path(view.__file__).parent.parent in needed
