"""iprev, over a table of DNS."""

from ipaddress import ip_address

import pytest

from vnsmail.authentication.iprev import iprev
from vnsmail.authentication.questions import Answer, Question, drive

V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")


def answers(table):
    def answer(question: Question) -> Answer:
        found = table.get((question.name, question.record), ())
        return found if isinstance(found, Answer) else Answer(tuple(found))

    return answer


@pytest.mark.parametrize(
    ("address", "pointers", "forward", "result"),
    [
        (V4, ["a.example"], ["192.0.2.7"], "pass"),
        (V6, ["b.example", "a.example"], ["2001:db8::7"], "pass"),
        (ip_address("::ffff:192.0.2.7"), ["a.example"], ["192.0.2.7"], "pass"),
        (V4, ["a.example"], ["192.0.2.8"], "fail"),
        (V4, ["a.example"], Answer(trouble="down"), "temperror"),
        (V4, Answer(trouble="down"), [], "temperror"),
        (V4, [], [], "permerror"),
        (
            V4,
            [f"n{n}.example" for n in range(10)] + ["a.example"],
            ["192.0.2.7"],
            "fail",
        ),
    ],
)
def test_iprev(address, pointers, forward, result):
    plain = getattr(address, "ipv4_mapped", None) or address
    kind = "A" if plain.version == 4 else "AAAA"
    table = {
        (plain.reverse_pointer, "PTR"): pointers,
        ("a.example", kind): forward,
    }

    assert result == drive(iprev(address), answers(table)).result
