import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.cli import sendmail_options as options_of
from vnsmail.cli.sendmail_options import Usage, parse


def parsed(line, program="sendmail"):
    return parse(program, line.split() if isinstance(line, str) else line)


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("-t -i", {"take_recipients": True, "dot_is_text": True}),
        ("-ti", {"take_recipients": True, "dot_is_text": True}),
        ("-oi -t", {"take_recipients": True, "dot_is_text": True}),
        ("-O IgnoreDots=true x@y", {"dot_is_text": True}),
        ("-OIgnoreDots -t", {"dot_is_text": True}),
        ("-O DeliveryMode=b -oem -odi -oeq -om x", {"recipients": ("x",)}),
        ("-f ann@a.example x@y", {"sender": "ann@a.example"}),
        ("-fann@a.example x@y", {"sender": "ann@a.example"}),
        ("-r ann@a.example x@y", {"sender": "ann@a.example"}),
        ("-f <ann@a.example> x@y", {"sender": "ann@a.example"}),
        (["-f", "", "x@y"], {"sender": "", "recipients": ("x@y",)}),
        ("-f <> x@y", {"sender": ""}),
        ("x@y", {"sender": None, "recipients": ("x@y",)}),
        (["-F", "Ann Archer", "x"], {"name": "Ann Archer", "recipients": ("x",)}),
        ("-FCronDaemon -i -B8BITMIME -oem ann", {"name": "CronDaemon"}),
        ("-FCronDaemon -i -odi -oem -oi -t -f root", {"sender": "root"}),
        ("-i -- -odd@x", {"recipients": ("-odd@x",)}),
        ("a@b c@d", {"recipients": ("a@b", "c@d")}),
        (["a@b, c@d,", "<e@f>"], {"recipients": ("a@b", "c@d", "e@f")}),
        (['"a,b"@c'], {"recipients": ('"a,b"@c',)}),
        (["Ann <a@b>"], {"recipients": ("a@b",)}),
        ("-v x", {"verbose": True}),
        ("-N success,delay x", {"notify": "SUCCESS,DELAY"}),
        ("-N never -R hdrs -V id7 x", {"notify": "NEVER", "returned": "HDRS"}),
        ("-V id7 x", {"envelope_id": "id7"}),
        ("-G -U -n -m -x -B 7BIT -h 3 -L tag -X log -C f -p p -A m -d0 x", {}),
        ("-bm x", {"mode": options_of.DELIVER}),
        ("-bp", {"mode": options_of.LIST}),
        ("-bs", {"mode": options_of.TALK}),
        ("-bi", {"mode": options_of.NOTHING}),
        ("-q", {"mode": options_of.NOTHING}),
        ("-q15m", {"mode": options_of.NOTHING}),
    ],
)
def test_words_that_programs_use(line, facts):
    """Each does what it does in Sendmail, or nothing."""
    found = parsed(line)

    assert facts == {name: getattr(found, name) for name in facts}


@pytest.mark.parametrize(
    ("program", "mode"),
    [("mailq", options_of.LIST), ("newaliases", options_of.NOTHING)],
)
def test_other_names(program, mode):
    assert mode == parsed("", program).mode


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-bd", "vnsmail up"),
        ("-bD", "vnsmail up"),
        ("-bt", "test mode"),
        ("-bv x", "not verified"),
        ("-bz", "no mode"),
        ("-b", "lacks"),
        ("-f", "lacks"),
        ("-Z", "no option -Z"),
        ("--help", "no option"),
        ("-N often x", "-N often"),
        ("-N never,delay x", "never"),
        ("-R half x", "-R half"),
    ],
)
def test_words_that_cannot_be_meant(line, words):
    with pytest.raises(Usage, match=words):
        parsed(line)


@given(st.lists(st.text(max_size=8), max_size=5))
def test_any_words(words):
    """Whatever is said, it is understood or refused."""
    with contextlib.suppress(Usage):
        assert all(parse("sendmail", words).recipients)
