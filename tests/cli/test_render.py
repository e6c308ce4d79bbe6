import contextlib
import io
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.cli import render

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m0s"),
        (3599, "59m59s"),
        (3600, "1h0m"),
        (90061, "1d1h"),
        (-5, "0s"),
    ],
)
def test_age(monkeypatch, seconds, words):
    """The largest two units that matter; the future is now."""
    monkeypatch.setattr(time, "time", lambda: NOW)

    assert words == render.age(NOW - seconds)


def test_no_age():
    """Where there is none, nothing is said."""
    assert "" == render.age(None)


def test_cells(capsys):
    """Lists are a line each, nothing is empty, and no markup is obeyed."""
    render.table(
        "things", ("a", "b"), [(["x", "y"], None), ("[bold]z[/]", 5)], "nothing"
    )

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [["x"], ["y"], ["[bold]z[/]", "5"]] == lines[-3:]


def test_complaints_are_one_line(capsys):
    """Whatever an error says."""
    render.complain("one\ntwo [red]three[/]\r\nfour")

    assert "vnsmail: one two [red]three[/] four\n" == capsys.readouterr().err


@given(st.text())
def test_any_complaint(text):
    """Nothing that was read from anywhere breaks a complaint."""
    written = io.StringIO()
    with contextlib.redirect_stderr(written):
        render.complain(text)

    assert 1 == len(written.getvalue().splitlines())


def test_progress_without_a_terminal(capsys):
    """Each new step is a line; the same one is not told again."""
    with render.progress("lab") as tell:
        tell("one", 0, 2)
        tell("one", 1, 2)
        tell("two", 2, 2)

    assert "lab: one (0/2)\nlab: two (2/2)\n" == capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(monkeypatch):
    """A terminal gets a bar, which leaves nothing behind."""
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    with render.progress("lab") as tell:
        tell("one", 1, 2)

    assert "one" in written.getvalue()
