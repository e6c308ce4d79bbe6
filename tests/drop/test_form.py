import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.drop import form
from vnsmail.drop.form import BadDrop, Request, front, read_front

FULL = Request(
    "ann@a.example",
    ("bob@b.example", "grü@b.example"),
    name="Ann Archer",
    take_recipients=True,
    notify="SUCCESS,FAILURE",
    returned="HDRS",
    envelope_id="job 7",
)


@pytest.mark.parametrize(
    "request_", [FULL, Request(), Request(""), Request(None, ("x",)), Request("a@b")]
)
def test_reads_back(request_):
    """What was asked is what is read, and the message begins behind it."""
    data = front(request_, 5)

    assert (request_, len(data), 5) == read_front(data + b"x\n\ny\n")


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(
    sender=st.none() | st.just("") | TEXT.filter(lambda t: t != "<>"),
    recipients=st.lists(TEXT, max_size=3).map(tuple),
    name=st.just("") | TEXT,
    take=st.booleans(),
    size=st.integers(0, 10**12),
)
def test_any_request_reads_back(sender, recipients, name, take, size):
    """Whatever stands in it."""
    request = Request(sender, recipients, name=name, take_recipients=take)
    data = front(request, size)

    assert (request, len(data), size) == read_front(data)


@pytest.mark.parametrize("value", ["a\nto b", "a\0", "x" * 2000, "\ud800", "a\r"])
def test_values_that_cannot_be(value):
    """Nothing that is said becomes another line."""
    for request in (Request(value), Request(None, (value,)), Request(name=value)):
        with pytest.raises(BadDrop):
            front(request, 0)


def test_too_many_recipients():
    """What is in front is bounded."""
    with pytest.raises(BadDrop, match="recipients take more"):
        front(Request(None, ("x" * 300,) * 1000), 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"vnsmail-drop 1 ",
        b"vnsmail-drop 2 0000000000000005\n\n",
        b"vnsmail-drop 1 5\n\n",
        b"vnsmail-drop 1 -000000000000005\n\n",
        b"vnsmail-drop 1 0000000000000005\n",
        b"vnsmail-drop 1 0000000000000005\nto \n\n",
        b"vnsmail-drop 1 0000000000000005\nof x\n\n",
        b"vnsmail-drop 1 0000000000000005\nfrom x\nfrom y\n\n",
        b"vnsmail-drop 1 0000000000000005\nto \xff\n\n",
    ],
)
def test_what_is_none(data):
    """A file of somebody else's is not understood by half."""
    with pytest.raises(BadDrop):
        read_front(data)


@given(st.binary(max_size=200))
def test_any_bytes(data):
    """Whatever lies there, it is read or refused."""
    for each in (data, form.first_line(3).encode() + data):
        with contextlib.suppress(BadDrop):
            read_front(each)


@pytest.mark.parametrize(
    ("name", "yes"),
    [("0" * 32, True), ("f" * 31, False), ("F" * 32, False), ("../" + "0" * 29, False)],
)
def test_names(name, yes):
    assert yes == form.is_name(name)


def test_command_imports_little():
    """It runs for each message that a program sends: nothing heavy is loaded."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import vnsmail.cli.sendmail; "
    done = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-I", "-S", "-c", code + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"typer", "rich", "pydantic", "msgspec", "asyncio", "pathlib"}
    heavy |= {"dataclasses", "typing", "re", "json", "logging", "ipaddress"}

    assert set() == heavy & set(done.stdout.split())
