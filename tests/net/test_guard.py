"""Without the library or the kernel's part: one plain line, and nobody is harmed."""

import errno
import socket

import pytest

from tests.net.networks import INSTANCE, host
from vnsmail.errors import GuardUnavailable, VnsmailError
from vnsmail.net import guard, nftables

ASKS = [
    lambda: guard.apply([host()], INSTANCE),
    lambda: guard.remove_all(INSTANCE),
    lambda: guard.counters([host()], INSTANCE),
    lambda: nftables.query("chains", family="inet"),
    lambda: nftables.commit([]),
]


@pytest.mark.parametrize("ask", ASKS)
def test_no_library(monkeypatch, ask):
    monkeypatch.setattr(nftables, "_LIBRARY", "libnftables.so.none")
    nftables._library.cache_clear()
    try:
        with pytest.raises(GuardUnavailable) as caught:
            ask()
    finally:
        nftables._library.cache_clear()

    assert str(caught.value) == (
        "cannot guard source addresses: libnftables.so.none is missing; "
        "install it (apt-get install libnftables1)"
    )


@pytest.mark.parametrize("ask", ASKS)
def test_no_nftables_in_the_kernel(monkeypatch, ask):
    """It is asked before libnftables is, which would end the process."""

    def refuse(*_):
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(nftables, "_library", lambda: None)
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(
        GuardUnavailable, match=r"no nftables \(Protocol not supported\)$"
    ):
        ask()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            b"internal:0:0-0: Error: Could not process rule: Operation not permitted\n",
            "Could not process rule: Operation not permitted",
        ),
        (
            b"Error: No such file or directory\nlist table inet x\n    ^^^^",
            "No such file or directory",
        ),
        (
            b"Error: Could not process rule: Message too long",
            "for so many hosts this needs root, or a larger net.core.wmem_default",
        ),
        (b"", "libnftables refuses without a reason"),
        (b"\xff\xfe", "��"),
    ],
)
def test_words_of_the_library(said, reason):
    """One line, without its habit of pointing at the place in what we never wrote."""
    error = nftables._refused(said)

    assert reason == error.reason
    assert isinstance(error, VnsmailError)
    assert "\n" not in str(error)


def test_what_is_there():
    assert nftables.Refused("Could not process rule: File exists").is_there
    assert not nftables.Refused(
        "Could not process rule: Device or resource busy"
    ).is_there
