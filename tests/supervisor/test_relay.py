"""Passwords for relays, as files that only root reads."""

import os
import stat

import pytest

from vnsmail.errors import BadInput
from vnsmail.model import HostName, Relay
from vnsmail.settings import layout
from vnsmail.supervisor import relay

HOST = HostName("alpha.example")
RELAY = Relay("smtp.relay.example:587", "ann")
SECRET = "correct horse"  # noqa: S105


def told_of(places, host, wanted):
    told = relay.to_tell(places, host, wanted)
    assert told is not None
    return told


@pytest.fixture
def places(tmp_path):
    return layout(tmp_path)


def test_kept_for_one_server_and_user(places):
    relay.put(places, HOST, RELAY, SECRET)
    assert told_of(places, HOST, RELAY).password == SECRET
    for other in (Relay("smtp.evil.example:587", "ann"), Relay(RELAY.server, "bob")):
        told = told_of(places, HOST, other)
        assert not told.password
        assert "vnsmail host relay" in told.problem
        assert SECRET not in told.problem


def test_nobody_else_reads_it(places):
    relay.put(places, HOST, RELAY, SECRET)
    file = places.relay / HOST / relay.FILE
    for path, mode in ((file, 0o600), (file.parent, 0o700), (places.relay, 0o700)):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert SECRET not in repr(told_of(places, HOST, RELAY))


@pytest.mark.parametrize("password", ["", "x" * 1025, "two\nlines", "nul\0"])
def test_no_password(places, password):
    with pytest.raises(BadInput) as refused:
        relay.put(places, HOST, RELAY, password)
    assert "two" not in str(refused.value)
    assert not places.relay.exists()


def test_forgotten_and_put_back(places):
    relay.put(places, HOST, RELAY, SECRET)
    before = relay.kept(places, HOST)
    relay.put(places, HOST, RELAY, "another")
    relay.put_back(places, HOST, before)
    assert told_of(places, HOST, RELAY).password == SECRET
    relay.put_back(places, HOST, None)
    assert told_of(places, HOST, RELAY).problem


def test_damaged(places):
    relay.put(places, HOST, RELAY, SECRET)
    (places.relay / HOST / relay.FILE).write_text('{"password": "correct h')
    told = told_of(places, HOST, RELAY)
    assert "damaged" in told.problem
    assert "horse" not in told.problem


def test_file_of_somebody_else(places, tmp_path):
    file = tmp_path / "secret"
    wanted = Relay(RELAY.server, "ann", str(file))
    assert "no such file" in told_of(places, HOST, wanted).problem
    file.write_text(f"{SECRET}\nmore\n")
    file.chmod(0o644)
    assert "chmod 600" in told_of(places, HOST, wanted).problem
    file.chmod(0o600)
    assert told_of(places, HOST, wanted).password == SECRET


def test_without_a_user_nobody_signs_in(places):
    told = told_of(places, HOST, Relay("smtp.relay.example"))
    assert (told.user, told.password, told.problem) == ("", "", "")
    with pytest.raises(BadInput):
        relay.put(places, HOST, Relay("smtp.relay.example"), SECRET)
    assert relay.to_tell(places, HOST, None) is None
