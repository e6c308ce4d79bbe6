import subprocess
import sys

import pytest

from vnsmail.supervisor import launch, privileges

CAPABILITIES = privileges.last() + 1


def options(*words):
    return launch._parser().parse_args([*words, "--", "/bin/true", "--flag"])


def test_the_command_is_what_follows_the_dashes():
    parsed = options("--empty-network", "--pass-fd", "7", "--user", "42")

    assert ["/bin/true", "--flag"] == parsed.command
    assert (True, [7], 42) == (parsed.empty_network, parsed.pass_fd, parsed.user)


def test_folders_to_reveal_may_have_any_name():
    parsed = options("--reveal", "/a:b/c d:rw", "--reveal", "/e:rw")

    assert ["/a:b/c d", "/e"] == [str(path) for path in parsed.reveal]


def test_capabilities_are_a_bit_set():
    parsed = options("--keep-capabilities", "net_bind_service,sys_admin")

    assert 1 << 10 | 1 << 21 == parsed.keep_capabilities


@pytest.mark.parametrize(
    "words",
    [
        ["--reveal", "/a"],
        ["--reveal", "/a:ro"],
        ["--reveal", "a:rw"],
        ["--keep-capabilities", "all"],
        ["--user", "root"],
        ["--unknown"],
    ],
    ids=repr,
)
def test_what_is_not_understood_is_refused(words, capsys):
    with pytest.raises(SystemExit) as raised:
        options(*words)

    assert 2 == raised.value.code
    assert capsys.readouterr().err


def test_if_something_cannot_be_given_up_the_command_does_not_run(tmp_path):
    """Here a folder that is not there; all else would have been possible or not."""
    command = [sys.executable, "-P", "-m", "vnsmail.supervisor.launch"]
    done = subprocess.run(  # noqa: S603  our own launcher
        [*command, "--reveal", f"{tmp_path}/no:rw", "--", "/bin/echo", "ran"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (launch.LAUNCH_FAILED, "") == (done.returncode, done.stdout)
    expected = f"vnsmail launch: cannot use {tmp_path}/no: it is no folder to show"
    assert done.stderr.startswith(expected)
