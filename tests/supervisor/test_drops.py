import asyncio
import os
from pathlib import Path

import pytest

from tests.directory.test_store import ALPHA, add, virtual_host
from vnsmail.directory import Directory
from vnsmail.drop.form import Request
from vnsmail.drop.writer import Writer
from vnsmail.errors import BadInput, NotAllowed, NotFound, Taken
from vnsmail.model import MACHINE, Login, User
from vnsmail.settings import layout
from vnsmail.supervisor import control, drop_folder
from vnsmail.supervisor.drops import Drops
from vnsmail.supervisor.services import WorkerRefused

ME = os.geteuid()
ANN = User(ALPHA, "ann")


class Services:
    """Takes messages, or fails, or waits, as told."""

    def __init__(self):
        self.mails = []
        self.messages = []
        self.given_back = []
        self.error: Exception | None = None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def take(self, mail, fd):
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        self.mails.append(mail)
        self.messages.append(os.pread(fd, 1000, mail.offset))
        return f"id-{len(self.mails)}"

    async def give_back(self, mail, reason, fd):
        self.given_back.append((mail.user, reason))

    def owners(self):
        return [MACHINE, ALPHA]


class Place:
    """A root with one user, whose account we are."""

    def __init__(self, root: Path) -> None:
        self.layout = layout(root)
        self.directory = Directory(root / "directory.db")
        add(self.directory, virtual_host(), "ann", "bob")
        self.services = Services()
        self.drops = Drops(
            self.layout,
            self.directory,
            self.services,  # type: ignore[arg-type]
            "box.example",
            10_000,
        )

    def left(self, uid=ME, message=b"hello\n", **request):
        request.setdefault("recipients", ("bob@b.example",))
        folder = self.layout.drop / str(uid)
        writing = Writer(str(folder), Request(**request))
        writing.write(message)
        name = writing.finish()
        writing.discard()
        return name

    def waiting(self, uid=ME):
        return drop_folder.waiting(self.layout.drop, uid, 0.0)


@pytest.fixture
async def place(tmp_path):
    place = Place(tmp_path)
    await place.drops.prepare()
    yield place
    place.directory.close()


@pytest.fixture
async def account(tmp_path, monkeypatch):
    """The same where we are not root: files in the folder 1000 count as of uid 1000."""
    place = Place(tmp_path)
    real = os.fstat

    def of_1000(fd):
        facts = list(real(fd))
        facts[4] = 1000
        return os.stat_result(facts)

    monkeypatch.setattr(os, "fstat", of_1000)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    place.directory.add_login(Login(1000, "annie", ANN))
    await place.drops.prepare()
    yield place
    place.directory.close()


async def test_taken(account):
    """A message goes to the host of its account, and its file goes."""
    name = account.left(1000, name="Ann", take_recipients=True, notify="NEVER")
    result = await account.drops.take(1000, name)
    (mail,) = account.services.mails

    assert "id-1" == result.queue_id
    assert [] == account.waiting(1000)
    assert [b"hello\n"] == account.services.messages
    assert (ALPHA, f"ann@{ALPHA}", "ann", 1000) == (
        *(mail.owner, mail.sender, mail.user),
        mail.uid,
    )
    assert ("Ann", True, "NEVER") == (mail.name, mail.take_recipients, mail.notify)
    assert (("annie", "ann"),) == mail.logins
    assert f"1000/{name}" == mail.token
    assert await account.drops.take(1000, name) is None


async def test_sender_is_looked_at_by_the_worker(account):
    """What -f says is handed on, with the user who must own it."""
    for sender in ("bob@alpha.example", "", "annie"):
        await account.drops.take(1000, account.left(1000, sender=sender))

    assert ["bob@alpha.example", "", "annie"] == [
        mail.sender for mail in account.services.mails
    ]
    assert {"ann"} == {mail.user for mail in account.services.mails}


@pytest.mark.skipif(ME != 0, reason="only root is root")
@pytest.mark.parametrize(
    ("sender", "owner", "expected"),
    [
        (None, MACHINE, "root@box.example"),
        ("", MACHINE, ""),
        ("cron", MACHINE, "cron@box.example"),
        ("me@Box.example", MACHINE, "me@Box.example"),
        ("ann@alpha.example", ALPHA, "ann@alpha.example"),
    ],
)
async def test_root(place, sender, owner, expected):
    """Root is the machine, or any user."""
    await place.drops.take(0, place.left(0, sender=sender))
    (mail,) = place.services.mails

    assert (owner, expected, "") == (mail.owner, mail.sender, mail.user)


@pytest.mark.skipif(ME != 0, reason="only root is root")
@pytest.mark.parametrize("sender", ["x@alpha.example", "x@elsewhere.example", "x@"])
async def test_root_as_nobody(place, sender):
    """It is told, and nothing is sent."""
    result = await place.drops.take(0, place.left(0, sender=sender), tell=True)

    assert os.EX_NOUSER == result.exit_code
    assert ([], []) == (place.services.mails, place.waiting(0))


async def test_user_that_is_suspended(account):
    account.directory.set_suspended(ANN, True)
    result = await account.drops.take(1000, account.left(1000), tell=True)

    assert (os.EX_NOPERM, "suspended" in result.problem) == (result.exit_code, True)
    assert [] == account.services.mails


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerRefused("no recipients", BadInput.exit_code), os.EX_DATAERR),
        (WorkerRefused("not yours", NotAllowed.exit_code), os.EX_NOPERM),
    ],
)
async def test_refused(account, error, code):
    """Who waits is told; who does not gets a message; the file goes either way."""
    account.services.error = error
    told = await account.drops.take(1000, account.left(1000), tell=True)
    assert (code, str(error), []) == (
        *(told.exit_code, told.problem),
        account.services.given_back,
    )

    account.left(1000)
    await account.drops.take_account(1000)
    assert [("ann", str(error))] == account.services.given_back
    assert [] == account.waiting(1000)


@pytest.mark.parametrize(
    "error",
    [WorkerRefused("disk full", 1), NotFound("virtual host", "x", "not served")],
)
async def test_not_now(account, error):
    """What passes is waited for, and the message stays."""
    account.services.error = error
    result = await account.drops.take(1000, account.left(1000), tell=True)
    assert str(error) == result.later
    assert 1 == len(account.waiting(1000))

    account.services.error = None
    await account.drops.take_all()
    assert (1, []) == (len(account.services.mails), account.waiting(1000))


async def test_asked_twice_at_once(account):
    """The command asks while the look at all folders takes it: once is enough."""
    account.services.may_go_on.clear()
    name = account.left(1000)
    asked = [
        asyncio.ensure_future(account.drops.take(1000, name, tell=True))
        for _ in range(3)
    ]
    await asyncio.sleep(0)
    account.services.may_go_on.set()

    assert ["id-1"] * 3 == [result.queue_id for result in await asyncio.gather(*asked)]
    assert 1 == len(account.services.mails)


async def test_command_that_goes_away(account):
    """Its message goes on without it."""
    account.services.may_go_on.clear()
    name = account.left(1000)
    asking = asyncio.ensure_future(account.drops.take(1000, name, tell=True))
    await asyncio.sleep(0)
    asking.cancel()
    account.services.may_go_on.set()

    result = await account.drops.take(1000, name)
    assert "id-1" == result.queue_id


async def test_what_is_no_message(account):
    """It goes, and nobody else's mail waits for it."""
    (account.layout.drop / "1000" / ("0" * 32)).write_bytes(b"x")
    account.left(1000)
    await account.drops.take_account(1000)

    assert (1, []) == (len(account.services.mails), account.waiting(1000))


async def test_login_comes_and_goes(place, monkeypatch):
    """An account gets its folder, and loses it with what it may not send any more."""
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    await place.drops.add_login(control.AddLogin("", 1000, "annie"), ANN)
    assert (place.layout.drop / "1000").is_dir()
    with pytest.raises(Taken):
        await place.drops.add_login(
            control.AddLogin("", 1000, "annie"), User(ALPHA, "bob")
        )

    await place.drops.remove_login(control.RemoveLogin("annie"))
    assert not (place.layout.drop / "1000").exists()
    with pytest.raises(NotFound):
        await place.drops.remove_login(control.RemoveLogin("annie"))


async def test_account_that_cannot_have_a_folder(place, monkeypatch):
    """It is not left half a user."""

    def refuse(*_, **__):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(BadInput, match="cannot be given a folder"):
        await place.drops.add_login(control.AddLogin("", 1000, "annie"), ANN)

    assert place.directory.login(1000) is None
