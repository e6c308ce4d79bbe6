"""SPF against the openspf suite for RFC 7208 (its licence is in the file)."""

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from vnsmail.authentication.questions import Answer, Question, drive
from vnsmail.authentication.spf import check_host

SUITE = json.loads(Path(__file__).with_name("rfc7208_suite.json").read_text("utf-8"))
CASES = [
    pytest.param(scenario["zone"], *case, id=f"{scenario['section']}/{name}")
    for scenario in SUITE["scenarios"]
    for name, case in scenario["tests"].items()
]


def answer(zone, question, depth=0):
    name = question.name.lower()
    entries = zone.get(name)
    if entries is None:
        return Answer(exists=False)
    found = [value for kind, value in entries if kind == question.record]
    if "TIMEOUT" in found or (not found and ["*", "TIMEOUT"] in entries):
        return Answer(trouble="no answer in time")
    alias = [value for kind, value in entries if kind == "CNAME"]
    if not found and alias and depth < 4:
        return answer(zone, Question(alias[0], question.record), depth + 1)
    if question.record == "MX":
        found = [name for _, name in sorted(found)]
    if question.record == "TXT":
        found = [text.encode().decode("latin-1") for text in found]
    return Answer(tuple(found))


@pytest.mark.parametrize(("zone", "host", "sender", "helo", "wanted"), CASES)
def test_suite(zone, host, sender, helo, wanted):
    checking = check_host(ip_address(host), sender, helo)

    assert drive(checking, lambda question: answer(zone, question)).result in wanted
