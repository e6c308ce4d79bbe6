"""SPF beyond the suite: limits hold and parsers bear anything."""

import contextlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as some

from vnsmail.authentication.questions import Answer, Question, drive
from vnsmail.authentication.spf import SpfResult, check_host
from vnsmail.authentication.spf_macro import SpfSyntaxError
from vnsmail.authentication.spf_record import is_record, parse_record

CLIENT = ip_address("192.0.2.1")


class Names:
    """DNS that says the same to every question of a kind, and counts."""

    def __init__(self, record, **values):
        self.record = record
        self.values = values
        self.asked: list[Question] = []

    def __call__(self, question):
        self.asked.append(question)
        if question.record == "TXT":
            return Answer((self.record,))
        found = self.values.get(question.record, ())
        return found if isinstance(found, Answer) else Answer(found)


def judged(names, sender="a@x.example"):
    return drive(check_host(CLIENT, sender, "helo.example"), names)


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 include:x.example -all",
        "v=spf1 redirect=x.example",
        "v=spf1 " + "include:%{d} " * 50,
        "v=spf1 " + "a:%{ir}.x.example " * 50,
        "v=spf1 " + "ptr:x.example " * 50,
        "v=spf1 " + "mx:x.example " * 50,
    ],
)
def test_no_record_costs_more_than_its_limits(record):
    names = Names(
        record,
        A=("198.51.100.1",),
        MX=tuple(f"m{n}.example" for n in range(10)),
        PTR=tuple(f"p{n}.example" for n in range(100)),
    )

    assert judged(names).result is SpfResult.PERMERROR
    assert len(names.asked) <= 130


@pytest.mark.parametrize("record", ["a", "mx", "exists:y.example", "include:y.example"])
def test_trouble_is_temporary_and_nothing_else(record):
    trouble = Answer(trouble="no answer in time")
    names = Names(f"v=spf1 {record} -all", A=trouble, MX=trouble)

    def answer(question):
        return trouble if question.name == "y.example" else names(question)

    assert judged(answer).result is SpfResult.TEMPERROR


def test_the_null_sender_is_its_helo_name():
    names = Names("v=spf1 ip4:192.0.2.0/24 -all")
    found = judged(names, "")

    assert (SpfResult.PASS, "helo.example") == (found.result, found.domain)


words = some.sampled_from(
    ["a", "mx", ":", "/", "//", "24", "ip4:", "ip6:", "%{", "}", "%{d}", "%{ir}", "=",
     " ", "-", "~", "?", "all", "include:", "redirect=", "exp=", "x.example", "1.2.3.4",
     "::1", "%", "%%", "%_", "\u00e9", "exists:", "ptr"]
)  # fmt: skip


@given(some.lists(words, max_size=14).map("".join) | some.text(max_size=60))
def test_any_record_is_read_or_refused(text):
    record = f"v=spf1 {text}"
    assert is_record(record)
    with contextlib.suppress(SpfSyntaxError):
        parse_record(record)
    found = judged(Names(record))
    assert found.result in set(SpfResult)


@given(some.text(max_size=40), some.text(max_size=40))
def test_any_sender_has_an_answer(sender, helo):
    checking = check_host(CLIENT, sender, helo)

    assert drive(checking, Names("v=spf1 exists:%{l}.%{h}.%{d} -all")).result
