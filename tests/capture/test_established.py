"""What /proc/net/tcp says of connections that are there already."""

import sys

import pytest

from vnsmail.capture.established import rows

TEXT = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt
   0: 0B004D0A:9C40 03004D0A:0019 01 00000000:00000000 00:00000000 00000000
   1: 0B004D0A:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000
   2: 0B004D0A:0019 03004D0A:9C41 01 00000000:00000000 00:00000000 00000000
   3: 0B004D0A:9C42 03004D0A:01BB 01 00000000:00000000 00:00000000 00000000
   4: 000000FD000000000000000011000000:9C40 000000FD000000000000000003000000:0019 01 0
"""

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="as this text is")


def test_those_to_the_ports_whoever_began():
    """Listening sockets and other ports are left out; the client comes first."""
    assert [
        ("10.77.0.11", 40000, "10.77.0.3", 25),
        ("10.77.0.3", 40001, "10.77.0.11", 25),
        ("fd00::11", 40000, "fd00::3", 25),
    ] == list(rows(TEXT, {25}))
