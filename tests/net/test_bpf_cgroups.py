"""Where cgroup v2 is mounted, as mountinfo of proc(5) says."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.net.cgroups import mounted

ROOT = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw"
PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = [
    "31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755",
    "37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd",
    "38 31 0:38 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw",
    "39 31 0:39 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
]
SUBTREE = "50 22 0:38 /system.slice/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ([ROOT, PURE], "/sys/fs/cgroup"),
        ([ROOT, *HYBRID], "/sys/fs/cgroup/unified"),
        ([ROOT, *HYBRID[:2]], None),
        ([ROOT, SUBTREE], None),
        # Something is mounted over it, as after a new /sys.
        ([ROOT, PURE, "60 22 0:21 / /sys rw - sysfs sysfs rw"], None),
        ([ROOT, PURE, "60 22 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw"], None),
        # And mounted there again.
        (
            [ROOT, PURE, "60 22 0:21 / /sys rw - sysfs sysfs rw", PURE],
            "/sys/fs/cgroup",
        ),
        # Beside it, with a name that begins as its does.
        ([ROOT, PURE, "60 22 0:9 / /sys/fs/cg rw - tmpfs tmpfs rw"], "/sys/fs/cgroup"),
        ([], None),
    ],
)
def test_mounted(lines, where):
    """The mount that shows the whole hierarchy and that nothing hides."""
    assert (None if where is None else Path(where)) == mounted(
        "\n".join(lines).encode()
    )


@given(
    st.binary(min_size=1, max_size=20)
    .filter(lambda name: not set(b"\0/") & set(name))
    .map(os.fsdecode)
)
def test_any_name(name):
    """Blanks, line ends and backslashes in a path are written in octal, and read."""
    path = Path("/mnt", name)
    written = b"".join(
        b"\\%03o" % octet if octet in b" \t\n\\" else bytes([octet])
        for octet in bytes(path)
    )
    line = b"30 23 0:26 / " + written + b" rw - cgroup2 cgroup2 rw"

    assert path == mounted(f"{ROOT}\n".encode() + line + b"\n")


@given(st.binary())
def test_nonsense(text):
    """What is not mountinfo names no mount."""
    if b" - cgroup2" not in text:
        assert mounted(text) is None
