"""``vnsmail exec``: whose word is whose, and what is said if nothing can be run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.cli.app import begins_command, root_first
from vnsmail.directory.store import Directory
from vnsmail.errors import CannotRunAs, CommandNotRun, NotPrivileged
from vnsmail.model import Context, HostName, SourceAddress, VirtualHost
from vnsmail.supervisor import run_as

ALPHA = VirtualHost(
    name=HostName("alpha.example"),
    context=Context.ALIAS,
    addresses=(SourceAddress.parse("10.77.0.11/24"),),
    domains=(HostName("alpha.example"),),
    link="lan0",
)


@pytest.fixture(autouse=True)
def _host(root):
    with open(root / "vnsmail.toml", "w", encoding="utf-8") as file:
        file.write('[dns]\nservers = ["10.77.0.2"]\n')
    directory = Directory(root / "directory.db")
    directory.add_host(ALPHA)
    directory.activate(ALPHA.name)
    directory.close()


@pytest.fixture
def ran(monkeypatch):
    """What was to be run; it ends with ``code``."""

    class Ran:
        code: object = 0
        given: tuple[object, ...] = ()

        def __call__(self, host, instance, words, servers, _identity):
            self.given = (host, words, servers)
            if isinstance(self.code, BaseException):
                raise self.code
            return self.code

    ran = Ran()
    monkeypatch.setattr(run_as, "run", ran)
    return ran


LINES = [
    ("alpha.example", "--", "curl", "-v", "--root", "x"),
    ("alpha.example", "curl", "-v", "--root", "x"),
    ("--", "alpha.example", "curl", "-v", "--root", "x"),
]


@pytest.mark.parametrize("line", LINES)
def test_words_of_the_command(vnsmail, ran, line):
    """From its first word on the line is the command's, whatever it looks like."""
    found = vnsmail("exec", *line)

    assert (0, "", "") == (found.code, found.out, found.err)
    assert (ALPHA, ["curl", "-v", "--root", "x"], ["10.77.0.2"]) == ran.given


def test_root_anywhere_before(vnsmail, ran, root):
    """--root may stand behind ``exec``, as behind every other word of ours."""
    found = vnsmail("exec", "--root", root, "alpha.example", "true", rooted=False)

    assert (0, ["true"]) == (found.code, ran.given[1])


@given(st.lists(st.text(min_size=1), min_size=1))
def test_nothing_of_a_command_is_taken(words):
    """Each word reaches the command, in its place."""
    line = ["--root=r", "exec", "alpha.example", *words]

    assert line == root_first(line)


@pytest.mark.parametrize("words", [[], ["exec"], ["exec", "-h"], ["host", "list"]])
def test_not_begun(words):
    assert not begins_command(words)


@pytest.mark.parametrize("code", [0, 1, 7, 126, 255])
def test_exit_code(vnsmail, ran, code):
    """The command's own."""
    ran.code = code

    assert code == vnsmail("exec", "alpha.example", "x").code


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (CommandNotRun("x", 2), 127, "cannot run x: not found"),
        (CommandNotRun("x", 13), 126, "cannot run x: permission denied"),
        (
            NotPrivileged("do it", "be root"),
            4,
            "cannot do it without privilege: be root",
        ),
        (
            *(CannotRunAs("alpha.example", "no cgroup", "mount one"), 1),
            "cannot run programs as alpha.example: no cgroup; mount one",
        ),
    ],
)
def test_not_run(vnsmail, ran, error, code, says):
    """One line each."""
    ran.code = error
    found = vnsmail("exec", "alpha.example", "x")

    assert (code, "", f"vnsmail: {says}\n") == (found.code, found.out, found.err)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("beta.example", "true"), "virtual host 'beta.example'"),
        (("alpha", "true"), "virtual host 'alpha'"),
        (("alpha.example",), "Missing argument"),
        (("alpha.example", "--"), "give a command to run"),
        ((), "Missing argument"),
    ],
)
def test_bad_input(vnsmail, ran, line, says):
    found = vnsmail("exec", *line)

    assert (2, ()) == (found.code, ran.given)
    assert says in found.err
    assert 1 == found.err.count("\n")
