import importlib
import inspect
import pickle
import pkgutil
from types import SimpleNamespace

import pytest

import vnsmail
from vnsmail import errors
from vnsmail.errors import VnsmailError
from vnsmail.model import Outcome, Verdict
from vnsmail.smtp.replies import Reply

OUTCOME = Outcome(Verdict.DEFERRED, 421, "4.4.1", "connection refused", "mx [10.0.0.2]")

# Facts for every parameter that an error of ours has; by type for all others.
BY_NAME = {
    "errno": 99,
    "temporary": True,
    "exit_code": 2,
    "outcome": OUTCOME,
    "reply": Reply(501, ("no",), "5.5.4"),
    "problems": (SimpleNamespace(line=1, key="name", text="no"),),
}
BY_TYPE = {str: "alpha.example", int: 25, float: 1.5, bool: True}


def every_error():
    """Return all error classes of the program, whichever module they are in."""
    for module in pkgutil.walk_packages(vnsmail.__path__, "vnsmail."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = set[type[VnsmailError]](), [VnsmailError]
    while left:
        for each in left.pop().__subclasses__():
            found.add(each)
            left.append(each)
    return sorted(
        (
            each
            for each in found
            if each.__module__.startswith("vnsmail.") and says(each)
        ),
        key=lambda each: (each.__module__, each.__name__),
    )


def says(kind):
    """Return whether errors of this kind have words; if not, it only groups others."""
    return kind.__str__ is not BaseException.__str__


def made(kind):
    """Return an error with facts of the right kind."""
    if kind.__init__ is Exception.__init__:
        return kind()
    parameters = inspect.signature(kind).parameters.values()
    facts = [
        BY_NAME.get(each.name, BY_TYPE.get(each.annotation, "alpha.example"))
        for each in parameters
        if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    return kind(*facts)


each_error = pytest.mark.parametrize(
    "kind", every_error(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}"
)


@each_error
def test_one_line(kind):
    """An error is one sentence on one line, without a stop at its end."""
    text = str(made(kind))

    assert text
    assert 1 == len(text.splitlines())
    assert not text.endswith(".")


@each_error
def test_it_crosses_processes(kind):
    """Pickled and read again, an error has the same facts and says the same."""
    error = made(kind)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert type(error) is type(again)
    assert str(error) == str(again)
    assert vars(error) == vars(again)


@each_error
def test_exit_codes(kind):
    """Each ends a command with one of the documented codes."""
    error = made(kind)

    assert error.exit_code in {1, 2, 3, 4, 126, 127}
    assert isinstance(error.retry_helps, bool)


def test_the_tree_is_the_documented_one():
    """The docstring of errors.py shows every error with its place."""
    listed, above = {}, {0: VnsmailError}
    for line in (errors.__doc__ or "").splitlines()[2:]:
        name = line.split()[0] if line.strip() else ""
        if not (kind := getattr(errors, name, None)):
            continue
        depth = (len(line) - len(line.lstrip())) // 4
        above[depth] = kind
        if kind is not VnsmailError:
            listed[kind] = above[depth - 1]
    here = {each for each in every_error() if each.__module__ == "vnsmail.errors"}

    assert here == set(listed)
    for kind, parent in listed.items():
        assert parent is kind.__bases__[0]


NOT_USABLE = (
    "cannot send as alpha.example: 10.0.0.1 is not usable here ({}); "
    "see `vnsmail host show alpha.example`"
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            errors.SourceUnavailable("alpha.example", "10.0.0.1", 99),
            NOT_USABLE.format("Cannot assign requested address"),
        ),
        (
            errors.SourceUnavailable("alpha.example", "10.0.0.1", 99, "it is gone"),
            NOT_USABLE.format("it is gone"),
        ),
        (
            errors.NetworkStepFailed("make namespace vns-a", 17),
            "cannot make namespace vns-a: File exists",
        ),
        (
            errors.NetworkStepFailed("make namespace vns-a", 17, "it is there"),
            "cannot make namespace vns-a: it is there",
        ),
        (errors.SettingsError("f.toml", "", "", "no TOML"), "f.toml: no TOML"),
        (errors.SettingsError("f.toml", "a", "1", "no"), "f.toml: a = 1: no"),
        (
            errors.ResolveError("b.example", "MX", "no", temporary=True),
            "cannot resolve b.example MX: no",
        ),
    ],
)
def test_sentences(error, sentence):
    """What failed, of what, why, and what to do."""
    assert sentence == str(error)


@pytest.mark.parametrize("temporary", [False, True])
def test_whether_a_retry_helps(temporary):
    """A name that does not exist will not tomorrow; a name server may answer."""
    error = errors.ResolveError("b.example", "MX", "no", temporary=temporary)

    assert temporary is error.retry_helps
