"""What /etc says to a program that runs as a virtual host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.model import Context, HostName, SourceAddress, VirtualHost
from vnsmail.supervisor import host_files

ALPHA = VirtualHost(
    name=HostName("alpha.example"),
    context=Context.ALIAS,
    addresses=(
        SourceAddress.parse("10.77.0.11/24"),
        SourceAddress.parse("fd77::11/64"),
    ),
    domains=(HostName("alpha.example"),),
    link="lan0",
)
STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan.example\n"
BEHIND = "# by hand\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch lan.example\n"


def test_hosts():
    """The host's name leads to its own addresses, and these to its name."""
    assert (
        "127.0.0.1 localhost\n"
        "::1 localhost ip6-localhost ip6-loopback\n"
        "10.77.0.11 alpha.example alpha\n"
        "fd77::11 alpha.example alpha\n"
    ) == host_files.hosts(ALPHA)


@pytest.mark.parametrize(
    ("servers", "files", "own_loopback", "expected"),
    [
        (["10.77.0.2"], [STUB], True, "nameserver 10.77.0.2\n"),
        (["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"], [], True, 3),
        ([], [STUB, BEHIND], True, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"),
        (
            *([], [STUB, BEHIND], False),
            "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
        ),
        ([], ["nameserver ::1\nnameserver 0.0.0.0\n"], True, None),
        ([], ["nameserver\nnameserver nonsense\n"], True, "nameserver nonsense\n"),
        ([], ["", ""], False, None),
    ],
)
def test_resolv_conf(servers, files, own_loopback, expected):
    """Those of the settings, else those of the machine that can be reached."""
    found = host_files.resolv_conf(servers, files, own_loopback=own_loopback)
    if isinstance(expected, int):
        assert found is not None
        assert expected == found.count("nameserver")
    else:
        assert expected == found


@given(st.lists(st.text()), st.booleans())
def test_any_file(files, own_loopback):
    """Whatever stands there: no name of the machine, and a server or nothing."""
    found = host_files.resolv_conf([], files, own_loopback=own_loopback)
    words = [line.split()[0] for line in (found or "nameserver").splitlines()]

    assert set(words) <= {"nameserver", "options"}
    assert "nameserver" in words


def test_node_name():
    """A name that uname(2) cannot hold becomes its first label."""
    long = ".".join(["mail", "a" * 60, "example"])

    assert "alpha.example" == host_files.node_name("alpha.example")
    assert "mail" == host_files.node_name(long)
