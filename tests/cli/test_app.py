import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail import __version__
from vnsmail.cli import app
from vnsmail.cli.app import root_first
from vnsmail.supervisor import control

NOUNS = {
    "up",
    "down",
    "status",
    "send",
    "prove",
    "host",
    "user",
    "alias",
    "queue",
    "lab",
}


def test_version(vnsmail):
    """The version is one line."""
    assert f"vnsmail {__version__}\n" == vnsmail("--version", rooted=False).out


@pytest.mark.parametrize("words", [("--help",), ("-h",)])
def test_help(vnsmail, words):
    """All commands are named."""
    shown = vnsmail(*words)

    assert 0 == shown.code
    assert {noun for noun in NOUNS if noun in shown.out} == NOUNS


@pytest.mark.parametrize("noun", sorted(NOUNS - {"up", "down"}))
def test_each_command_has_help(vnsmail, noun):
    """Help needs no daemon and no privilege."""
    assert 0 == vnsmail(noun, "--help").code


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("host", "nonsense"),
        ("host", "create"),
        ("queue", "list", "--limit", "0"),
        ("status", "--nonsense"),
    ],
)
def test_bad_usage(vnsmail, words):
    """What the command line does not know is bad input, told on standard error."""
    done = vnsmail(*words)

    assert (2, "") == (done.code, done.out)
    assert done.err


# --root --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("host list", "host list"),
        ("host list --root /r", "--root /r host list"),
        ("host --root=/r list --json", "--root=/r host list --json"),
        ("--root /a host --root /b list", "--root /a --root /b host list"),
        ("send -- --root /r", "send -- --root /r"),
        ("host list --root", "host list --root"),
        ("", ""),
    ],
)
def test_root_first(given_, expected):
    """The root may stand anywhere; nothing behind ``--`` is touched."""
    assert expected.split() == root_first(given_.split())


@given(st.lists(st.sampled_from(["--root", "--root=/r", "/r", "--", "host", "-x"])))
def test_root_first_loses_nothing(words):
    """Words are moved, never lost, and the others keep their order."""
    found = root_first(words)

    assert sorted(words) == sorted(found)
    assert found == root_first(found)


def test_root_anywhere(vnsmail, supervisor, root):
    """It is an option of the whole program."""
    supervisor.answers[control.ListQueue] = control.QueueListed(())
    done = vnsmail("queue", "list", "--root", root, rooted=False)

    assert 0 == done.code
    assert 1 == len(supervisor.requests)


def test_root_of_the_environment(vnsmail, supervisor, root, monkeypatch):
    """VNSMAIL_ROOT is as good."""
    supervisor.answers[control.ListQueue] = control.QueueListed(())
    monkeypatch.setenv("VNSMAIL_ROOT", str(root))

    assert 0 == vnsmail("queue", "list", rooted=False).code


def test_a_root_that_is_too_long(vnsmail, tmp_path):
    """A path that no Unix socket can have is one line."""
    done = vnsmail("status", "--root", tmp_path / ("x" * 120), rooted=False)

    assert 1 == done.code
    assert 1 == len(done.err.splitlines())
    assert "the path is too long for a Unix socket" in done.err


# Errors --------------------------------------------------------------------------

COMMANDS = [
    ("status",),
    ("down",),
    ("host", "create", "alpha.example", "--address", "10.77.0.11/24"),
    ("host", "destroy", "alpha.example"),
    ("user", "add", "ann@alpha.example"),
    ("user", "remove", "ann@alpha.example"),
    ("alias", "add", "sales@alpha.example", "ann"),
    ("alias", "remove", "sales@alpha.example"),
    ("queue", "list"),
    ("queue", "wait"),
    ("send", "--as", "ann@alpha.example", "--to", "bob@b.example", "--text", "hello"),
    ("send", "--machine", "--to", "bob@b.example", "--text", "hello"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_not_running(vnsmail, words, root):
    """Without a supervisor each says so in one line, and ends with 3."""
    done = vnsmail(*words)

    assert (3, "") == (done.code, done.out)
    assert (
        "vnsmail: vnsmail is not running (nothing answers at "
        f"{root}/run/control.sock): start it with `vnsmail up`\n"
    ) == done.err


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("code", [1, 2, 4])
def test_refused(vnsmail, supervisor, words, code):
    """The supervisor's sentence, on one line, with the exit code it chose."""
    for kind in control.Request.__args__:
        supervisor.answers[kind] = control.Error("it cannot\nbe done", code)
    done = vnsmail(*words)

    assert (code, "", "vnsmail: it cannot be done\n") == (done.code, done.out, done.err)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"nonsense", "vnsmail runs in another version than this command: "),
        (b'{"type":"Done","new":1}', "vnsmail runs in another version"),
        (b'{"type":"Done","x":"\xff"}', "vnsmail runs in another version"),
        (
            control.Queued("x", "1"),
            "unexpected answer Queued from vnsmail",
        ),
    ],
)
def test_an_answer_that_fits_nothing(vnsmail, supervisor, words, answer, sentence):
    """Two versions that do not understand each other say so in one line."""
    if isinstance(answer, control.Queued) and words[0] == "send":
        answer, sentence = control.Done(), "unexpected answer Done from vnsmail"
    for kind in control.Request.__args__:
        supervisor.answers[kind] = answer
    done = vnsmail(*words)

    assert (1, "") == (done.code, done.out)
    assert done.err.startswith(f"vnsmail: {sentence}")
    assert 1 == len(done.err.splitlines())


def test_a_supervisor_that_hangs_up(vnsmail, supervisor):
    """One that ends in the middle does not run any more."""
    supervisor.answers[control.GetStatus] = None

    assert 3 == vnsmail("status").code


def test_one_that_does_not_answer(vnsmail, supervisor, monkeypatch):
    """Silence is told."""
    monkeypatch.setattr("vnsmail.cli.client.PATIENCE", 0.02)
    monkeypatch.setattr("vnsmail.cli.client.receive_now", _time_out)
    done = vnsmail("status")

    assert (1, "vnsmail: vnsmail did not answer within 0 s\n") == (done.code, done.err)


def _time_out(*_, **__):
    raise TimeoutError


def test_not_ours(vnsmail, supervisor, monkeypatch):
    """A socket of another user's is a matter of privilege."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vnsmail.cli.client.send_now", refuse)
    done = vnsmail("status")

    assert 4 == done.code
    assert done.err.startswith(
        f"vnsmail: cannot use {supervisor.layout.control_socket}"
    )
    assert done.err.endswith("run it as the user that started vnsmail (root)\n")


def test_interrupted(vnsmail, monkeypatch):
    """Ctrl-C ends a command without a trace."""

    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupt)
    done = vnsmail("status")

    assert (130, "", "") == (done.code, done.out, done.err)


# Real processes -------------------------------------------------------------------

VNSMAIL = (sys.executable, "-P", "-m", "vnsmail.cli.app")


@pytest.mark.parametrize(("json", "many"), [(False, 3000), (True, 1)])
def test_a_reader_that_leaves(supervisor, root, json, many):
    """``vnsmail … | head`` ends without a word, however much there is to say."""
    processes = tuple(
        control.ProcessStatus(f"worker-{n}", "running", n, 0, "") for n in range(many)
    )
    status = control.Status(1, str(root), processes, (), ())
    supervisor.answers[control.GetStatus] = status
    reader, writer = os.pipe()
    os.close(reader)
    words = ("--root", str(root), "status", *(["--json"] if json else []))
    done = subprocess.run(  # noqa: S603
        [*VNSMAIL, *words], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)

    assert (1, b"") == (done.returncode, done.stderr)


def test_a_real_process(supervisor, root):
    """Data goes to standard output, complaints to standard error, codes to the shell."""
    supervisor.answers[control.ListQueue] = control.QueueListed(())
    good, bad = (
        subprocess.run(  # noqa: S603
            [*VNSMAIL, *words, "--root", str(root)],
            capture_output=True,
            check=False,
            text=True,
        )
        for words in (["queue", "list", "--json"], ["host", "show", "nonsense"])
    )

    assert (0, "[]\n", "") == (good.returncode, good.stdout, good.stderr)
    assert (2, "") == (bad.returncode, bad.stdout)
    assert 1 == len(bad.stderr.splitlines())
