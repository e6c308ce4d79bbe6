"""Worker, broker and supervisor are killed under load: nothing acknowledged is lost."""

import secrets
import sys

import pytest

from integration import kills
from integration.labs import Lab

TIMES = 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("kills") / "root", hosts=1)
    yield found
    found.stop()


@pytest.mark.timeout(480)
def test_every_acknowledged_message_is_accounted_for(lab):
    """At the remotes and in the mailbox, whole; twice only where SMTP cannot tell."""
    seed = secrets.randbits(32)
    account = kills.run(
        lab, TIMES, seed, tell=lambda said: sys.stdout.write(f"{said}\n")
    )
    said = "\n".join(account.lines())

    assert TIMES == len(account.kills)
    assert len(account.acknowledged) > 10 * TIMES, said
    assert {"mailbox": [], "north": [], "south": []} == account.lost, said
    assert [] == account.damaged, said
    assert [] == account.doubled["mailbox"], said
    assert [] == account.unexcused, said
