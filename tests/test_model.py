"""The shared values refuse what cannot be, with words that help."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import BadInput
from vnsmail.model import (
    Context,
    Family,
    SourceAddress,
    Uplink,
    VirtualHost,
    domain_name,
    host_name,
    ip_address,
)


class TestNames:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("alpha.example", "alpha.example"),
            (" Alpha.EXAMPLE. ", "alpha.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("a-b.c3.example", "a-b.c3.example"),
        ],
    )
    def test_one_spelling(self, text, expected):
        assert expected == host_name(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "machine",
            "alpha..example",
            "-alpha.example",
            "alpha-.example",
            "al_pha.example",
            "../etc.example",
            "alpha.example/x",
            "a" * 64 + ".example",
            ".".join(["a" * 60] * 5),
            "10.77.0.1",
            "alpha example.com",
            "\ud800.example",
        ],
    )
    def test_refused(self, text):
        with pytest.raises(BadInput, match="virtual host"):
            host_name(text)

    @given(st.text())
    def test_any_text(self, text):
        """A name that is accepted is a safe file name, and stays the same."""
        try:
            name = domain_name(text)
        except BadInput:
            return

        assert name == domain_name(name)
        assert name.isascii()
        assert "/" not in name
        assert len(name) <= 253


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("10.77.0.1", "10.77.0.1"),
            (" fd77::0:1 ", "fd77::1"),
            ("fe80::1", "fe80::1"),
        ],
    )
    def test_accepted(self, text, expected):
        assert ipaddress.ip_address(expected) == ip_address(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "10.77.0.1/24",
            "10.77.0.256",
            "010.77.0.1",
            "alpha.example",
            "fe80::1%eth0",
            "::ffff:10.77.0.1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
        ],
    )
    def test_refused(self, text):
        with pytest.raises(BadInput, match="address"):
            ip_address(text)

    @given(st.text())
    def test_any_text(self, text):
        try:
            address = ip_address(text)
        except BadInput:
            return

        assert address == ip_address(str(address))

    @given(st.ip_addresses())
    def test_any_address(self, address):
        try:
            assert address == ip_address(str(address))
        except BadInput:
            mapped = address.version == 6 and address.ipv4_mapped
            assert address.is_multicast or address.is_unspecified or mapped


class TestSourceAddress:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("10.77.0.11/24", "10.77.0.11/24"),
            ("10.77.0.11", "10.77.0.11/32"),
            ("fd77::11/64", "fd77::11/64"),
            ("FD77:0::11", "fd77::11/128"),
            ("10.77.0.0/31", "10.77.0.0/31"),
        ],
    )
    def test_accepted(self, text, expected):
        assert expected == str(SourceAddress.parse(text))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "alpha",
            "10.77.0.11/33",
            "10.77.0.0/24",
            "10.77.0.255/24",
            "fd77::/64",
            "127.0.0.1/8",
            "::1",
            "0.0.0.0",
            "224.0.0.1/4",
            "fe80::1/64",
            "169.254.1.1/16",
            "::ffff:10.77.0.1/128",
            "fd77::11%eth0/64",
        ],
    )
    def test_refused(self, text):
        with pytest.raises(BadInput, match="address"):
            SourceAddress.parse(text)

    @given(st.ip_addresses(), st.integers(0, 128))
    def test_round_trip(self, address, length):
        """What is accepted is written as it is read, and lies in its own network."""
        try:
            found = SourceAddress.parse(f"{address}/{length}")
        except BadInput:
            return

        assert found == SourceAddress.parse(str(found))
        assert found.address in found.network
        assert found.family == address.version


def test_source_is_the_first_of_its_family():
    texts = ["10.77.0.11/24", "fd77::11/64", "10.77.0.12/24"]
    host = VirtualHost(
        host_name("alpha.example"),
        Context.NAMESPACE,
        tuple(SourceAddress.parse(text) for text in texts),
        (host_name("alpha.example"),),
        "br0",
        Uplink.BRIDGE,
    )

    assert "10.77.0.11/24" == str(host.source(Family.IPV4))
    assert "fd77::11/64" == str(host.source(Family.IPV6))
    assert {Family.IPV4, Family.IPV6} == host.families


def test_unknown_context():
    with pytest.raises(BadInput, match="namespace, alias"):
        Context.parse("jail")
