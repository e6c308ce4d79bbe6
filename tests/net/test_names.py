"""Names: short enough, the same each time, and never those of another."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.net import names

_LABEL = st.from_regex("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
HOSTS = (
    st.lists(_LABEL, min_size=2, max_size=6)
    .map(".".join)
    .filter(lambda name: len(name) <= 253)
)
INSTANCES = st.one_of(
    st.just(""), st.from_regex("[0-9a-f]{6}", fullmatch=True), st.just("lab")
)


def test_names_of_the_default_root():
    assert "vns-alpha.example" == names.namespace("", "alpha.example")
    assert re.fullmatch("vns-[a-z2-7]{11}", names.link("", "alpha.example"))
    assert "vnsmail::alpha.example" == names.remark("", "alpha.example")
    assert 0x57000000 == names.mark("")


def test_names_of_another_root():
    assert "vns1a2b3c-alpha.example" == names.namespace("1a2b3c", "alpha.example")
    assert re.fullmatch("vns1a2b3c[a-z2-7]{6}", names.link("1a2b3c", "alpha.example"))
    assert "vnsmail:1a2b3c:alpha.example" == names.remark("1a2b3c", "alpha.example")
    assert 0x561A2B3C == names.mark("1a2b3c")


@given(INSTANCES, HOSTS)
def test_kernel_takes_them(instance, host):
    """Within IFNAMSIZ, NAME_MAX and IFALIASZ; marks fit 31 bits (a link's group)."""
    assert len(names.link(instance, host)) == names.LINK_LIMIT
    assert len(names.namespace(instance, host)) <= 255
    assert len(names.remark(instance, host)) <= 255
    assert 0 < names.mark(instance) < 2**31


@given(INSTANCES, HOSTS)
def test_ours_are_known(instance, host):
    assert names.is_namespace(instance, names.namespace(instance, host))
    assert names.is_mark(names.mark(instance))


@given(st.integers(0, 2**32 - 1))
def test_ordinary_numbers_are_no_marks(number):
    """Groups and metrics in use are small, or the largest there is."""
    assert names.is_mark(number) == (0x56000000 <= number < 0x59000000)


@given(st.tuples(INSTANCES, HOSTS), st.tuples(INSTANCES, HOSTS))
def test_no_two_namespaces_share_a_name(one, other):
    if one != other:
        assert names.namespace(*one) != names.namespace(*other)


def test_long_names_stay_apart():
    """A name that had to be cut keeps what tells it from its neighbours."""
    long = ".".join(["a" * 60] * 4)
    found = {names.namespace("1a2b3c", long + end) for end in (".a", ".ab", ".abc")}

    assert 3 == len(found)


@given(INSTANCES, INSTANCES, HOSTS)
def test_instances_do_not_meet(one, other, host):
    """The namespace of one root is never taken for one of another."""
    if one != other:
        assert not names.is_namespace(one, names.namespace(other, host))
        assert names.link(one, host) != names.link(other, host)
        assert names.mark(one) != names.mark(other)


@pytest.mark.parametrize("name", ["vns-test", "vnsalpha.example", "alpha.example", ""])
def test_names_of_others(name):
    """What people call their own namespaces is none of ours."""
    assert not names.is_namespace("", name)


@given(st.text(max_size=20))
def test_port_address(bridge):
    """Unicast, local, and higher than any address a manufacturer gives."""
    first = int(names.port_address(bridge)[:2], 16)

    assert re.fullmatch("([0-9a-f]{2}:){5}[0-9a-f]{2}", names.port_address(bridge))
    assert 0 == first & 1
    assert 2 == first & 2
    assert 0xFE == first
