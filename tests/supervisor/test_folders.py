import os
import pwd
import stat
import subprocess
import sys

import pytest

from vnsmail.errors import DaemonRunning, SettingsError, StateUnusable
from vnsmail.model import MACHINE, Owner
from vnsmail.settings import Settings, WorkerSettings, layout
from vnsmail.supervisor import folders
from vnsmail.supervisor.folders import (
    Account,
    is_locked,
    lock,
    prepare,
    prepare_owner,
    remove_owner,
    worker_account,
)

ALPHA = Owner("alpha.example")
ME = Account(os.geteuid(), os.getegid())


@pytest.fixture
def root(tmp_path):
    return layout(tmp_path / "root")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# Accounts ------------------------------------------------------------------------


def account(user, tmp_path):
    settings = Settings(worker=WorkerSettings(user=user))
    return worker_account(settings, tmp_path / "vnsmail.toml")


@pytest.fixture
def _many_uids(monkeypatch):
    monkeypatch.setattr(folders, "single_uid", lambda: False)


@pytest.mark.usefixtures("_many_uids")
def test_an_account_by_name(tmp_path):
    """A name stands for what the system says it is."""
    nobody = pwd.getpwnam("nobody")

    assert Account(nobody.pw_uid, nobody.pw_gid) == account("nobody", tmp_path)


@pytest.mark.usefixtures("_many_uids")
def test_an_account_by_number(tmp_path):
    """A number needs no entry anywhere."""
    assert Account(4711, 4711) == account("4711", tmp_path)


@pytest.mark.usefixtures("_many_uids")
def test_an_account_with_a_group_by_number(tmp_path):
    """If there is an entry, its group is the one."""
    nobody = pwd.getpwnam("nobody")

    assert nobody.pw_gid == account(str(nobody.pw_uid), tmp_path).gid


@pytest.mark.usefixtures("_many_uids")
@pytest.mark.parametrize("user", ["99999999999999", "4294967295", "²", "", "-1"])
def test_what_is_no_account(tmp_path, user):
    """Neither an account nor the number of one."""
    with pytest.raises(SettingsError, match="no such account"):
        account(user, tmp_path)


@pytest.mark.usefixtures("_many_uids")
def test_no_such_account(tmp_path):
    """It says how to make one."""
    with pytest.raises(SettingsError) as caught:
        account("no-such-user", tmp_path)

    assert str(caught.value).startswith(
        f"{tmp_path}/vnsmail.toml: worker.user = no-such-user: no such account"
    )
    assert "useradd --system" in str(caught.value)


@pytest.mark.usefixtures("_many_uids")
@pytest.mark.parametrize("user", ["root", "0", "00"])
def test_workers_are_not_root(tmp_path, user):
    """By whichever spelling."""
    with pytest.raises(SettingsError, match="workers must not be root"):
        account(user, tmp_path)


def test_only_one_uid(tmp_path, monkeypatch):
    """In an ordinary user's namespace there is nobody else to be."""
    monkeypatch.setattr(folders, "single_uid", lambda: True)

    assert account("no-such-user", tmp_path) is None


# Folders -------------------------------------------------------------------------


def test_prepare(root):
    """All folders are made, and a second time is no trouble."""
    prepare(root)
    prepare(root)

    assert root.state.is_dir()
    assert root.run.is_dir()
    assert root.hosts.is_dir()


def test_a_file_in_the_way(root):
    """It says which, and what to do."""
    root.state.mkdir()
    root.hosts.write_text("")
    with pytest.raises(StateUnusable) as caught:
        prepare(root)

    expected = f"cannot use {root.hosts}: file exists; give another --root, or mend it"
    assert expected == str(caught.value)


def test_not_writable(root, monkeypatch):
    """A folder that cannot be written is found out before anything starts."""
    monkeypatch.setattr(os, "access", lambda path, _: path != root.run)
    with pytest.raises(StateUnusable, match=f"{root.run}: it is not writable"):
        prepare(root)


@pytest.mark.parametrize("who", [None, ME])
def test_the_folder_of_an_owner(root, who):
    """It is the workers', and nobody else sees into it."""
    prepare(root)
    folder = prepare_owner(root, ALPHA, who)
    prepare_owner(root, ALPHA, who)

    assert root.hosts / "alpha.example" == folder
    assert 0o700 == mode(folder)
    assert os.geteuid() == folder.stat().st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give away")
def test_given_to_the_workers(root):
    """The account of the workers owns it."""
    prepare(root)
    found = prepare_owner(root, ALPHA, Account(4711, 4712)).stat()

    assert (4711, 4712) == (found.st_uid, found.st_gid)


def test_a_folder_that_cannot_be_made(root):
    """One host's trouble is told in words."""
    prepare(root)
    (root.hosts / "alpha.example").write_text("")
    with pytest.raises(StateUnusable, match=r"alpha\.example: file exists"):
        prepare_owner(root, ALPHA, None)


def test_removed_with_all_in_it(root):
    """A destroyed host's files go; a second time is no trouble."""
    prepare(root)
    folder = prepare_owner(root, ALPHA, None)
    (folder / "mail" / "ann" / "new").mkdir(parents=True)
    (folder / "mail" / "ann" / "new" / "1").write_text("mail")
    (folder / "outside").symlink_to(root.run)
    remove_owner(root, ALPHA)
    remove_owner(root, ALPHA)

    assert not folder.exists()
    assert root.run.is_dir()


def test_a_link_in_place_of_a_folder(root):
    """What a link points to is never removed."""
    prepare(root)
    (root.run / "precious").write_text("")
    (root.hosts / "alpha.example").symlink_to(root.run)
    with pytest.raises(StateUnusable, match="symbolic link"):
        remove_owner(root, ALPHA)

    assert (root.run / "precious").exists()


def test_the_machine_is_never_removed(root):
    """Its mail is nobody's to destroy."""
    with pytest.raises(ValueError, match="machine"):
        remove_owner(root, Owner(MACHINE))


# The lock --------------------------------------------------------------------------


def test_one_supervisor_a_root(root, tmp_path):
    """A second is told of the first; another root is another's."""
    prepare(root)
    other = layout(tmp_path / "other")
    prepare(other)
    with lock(root):
        assert is_locked(root)
        with pytest.raises(DaemonRunning) as caught:
            lock(root)
        lock(other).close()
        assert not is_locked(other)

    assert (str(root.state), os.getpid()) == (caught.value.root, caught.value.pid)
    assert not is_locked(root)
    lock(root).close()


def test_no_lock(root):
    """Where there never was a supervisor, none lives."""
    assert not is_locked(root)


def test_the_lock_of_one_that_was_killed(root):
    """However a supervisor died, the next may start."""
    prepare(root)
    script = (
        "import sys, pathlib, time\n"
        "from vnsmail.settings import layout\n"
        "from vnsmail.supervisor.folders import lock\n"
        "held = lock(layout(pathlib.Path(sys.argv[1])))\n"
        "print('locked', flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-P", "-c", script, str(root.state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:  # noqa: S603
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(DaemonRunning, match=f"process {holder.pid}"):
            lock(root)
        holder.kill()
    lock(root).close()


def test_nonsense_in_the_file(root):
    """What is no process number is none."""
    prepare(root)
    with lock(root) as file:
        file.truncate(0)
        file.write("nonsense")
        file.flush()
        with pytest.raises(DaemonRunning, match="process 0"):
            lock(root)


def test_no_place_for_the_lock(root):
    """It says so."""
    with pytest.raises(StateUnusable, match=r"supervisor\.pid: no such file"):
        lock(root)
