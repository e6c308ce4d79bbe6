"""Mail that local accounts left in the drop: whose it is, and on to a worker.

    named file ─► opened, looked at ─► sender decided ─► worker's queue ─► file removed
                                                      └► refused: told   ─► file removed

Rules of this file: the message itself is not read here, only what the command wrote in
front of it; who sends is decided by the uid that the kernel gives, never by what a file
says; a file is removed when its message is in a queue, or its account was told why
not. A queue takes a file once, however often it is asked (its name and account are the
token), so that a crash at any step neither loses a message nor doubles it.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vnsmail.directory import Directory
from vnsmail.drop import form
from vnsmail.engines.protocol import LocalMail, QueueEntry
from vnsmail.errors import BadInput, NotAllowed, NotFound, VnsmailError
from vnsmail.log import logger
from vnsmail.model import MACHINE, Login, User
from vnsmail.settings import Layout
from vnsmail.supervisor import control, drop_folder
from vnsmail.supervisor.services import Services, WorkerRefused

AGAIN_AFTER = 1.0
"""Seconds until what could not be taken is tried again; twice as long each time, up to
LOOK_EVERY. A worker that is being started is ready soon."""

LOOK_EVERY = 30.0
"""Seconds between two looks at all folders. A command that leaves mail asks for it; this
is for those that ended before they could."""

log = logger("drop")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a message."""

    queue_id: str = ""
    problem: str = ""
    """Why it was refused for good; it is removed."""
    exit_code: int = 0
    """Of sysexits.h."""
    later: str = ""
    """Why it cannot be taken now; it stays."""


@dataclass(frozen=True, slots=True)
class Sending:
    """On whose behalf a message is sent."""

    owner: str
    sender: str
    user: str
    """Local part; empty: any of the owner's."""


class Drops:
    """The drop of one root.

    Args:
        layout: where it lies.
        directory: who the accounts are.
        services: the way to the workers.
        machine_name: what the machine calls itself.
        max_size: bytes that a message may have.
    """

    def __init__(
        self,
        layout: Layout,
        directory: Directory,
        services: Services,
        machine_name: str,
        max_size: int,
    ) -> None:
        self._drop: Path = layout.drop
        self._directory = directory
        self._services = services
        self._machine = machine_name
        self._max_size = max_size
        self._taking: dict[tuple[int, str], asyncio.Future[Result | None]] = {}

    async def prepare(self) -> None:
        """Make the folders of all accounts that may send, and no others.

        Raises:
            StateUnusable: the drop cannot be made.
        """
        for uid, reason in (await self._make()).items():
            log.warning("drop.no_folder", uid=uid, reason=reason)

    async def run(self) -> None:
        """Take what was left, again and again, until cancelled."""
        wait = AGAIN_AFTER
        while True:
            waits = True
            try:
                waits = await self.take_all()
            except VnsmailError as error:
                log.warning("drop.not_looked_at", reason=str(error))
            except Exception:
                log.exception("drop.fault")
            wait = min(2 * wait, LOOK_EVERY) if waits else AGAIN_AFTER
            await asyncio.sleep(wait if waits else LOOK_EVERY)

    async def take_all(self) -> bool:
        """Take what is in all folders, an account's turn at a time.

        Returns whether something waits that could not be taken yet.
        """
        await self.prepare()
        uids = [0, *(login.uid for login in self._directory.logins())]
        return any([await self.take_account(uid) for uid in uids])

    async def take_account(self, uid: int) -> bool:
        """Take what an account left, some at a time; returns whether more waits."""
        now = time.time()
        names = await asyncio.to_thread(drop_folder.waiting, self._drop, uid, now)
        for name in names:
            result = await self.take(uid, name)
            if result is not None and result.later:
                log.info("drop.waits", uid=uid, name=name, reason=result.later)
                return True
        return len(names) >= drop_folder.AT_ONCE

    async def take(self, uid: int, name: str, *, tell: bool = False) -> Result | None:
        """Take one message.

        Args:
            uid: whose folder.
            name: of the file.
            tell: somebody waits who can be told of a refusal; else it is written to.

        Returns what became of it; None: there is none of that name.
        """
        key = (uid, name)
        if key not in self._taking:
            loop = asyncio.get_running_loop()
            taking = loop.create_task(self._take(uid, name, tell=tell))
            self._taking[key] = taking
            taking.add_done_callback(lambda _: self._taking.pop(key, None))
        # Whoever waits may go; the message goes on.
        return await asyncio.shield(self._taking[key])

    async def add_login(self, request: control.AddLogin, user: User) -> control.Done:
        """Let a local account send as a user.

        Raises:
            NotFound: there is no such user.
            Taken: the account is another user.
            BadInput: it cannot be given a folder.
        """
        self._directory.add_login(Login(request.uid, request.name, user))
        unmade = await self._make()
        if request.uid in unmade:
            self._directory.remove_login(str(request.uid))
            remedy = f"it cannot be given a folder here: {unmade[request.uid]}"
            raise BadInput("account", request.name, remedy)
        return control.Done()

    async def remove_login(self, request: control.RemoveLogin) -> control.Done:
        """Let a local account send no more; what it has left is taken before.

        Raises:
            NotFound: it is no user.
        """
        await self.take_all()
        self._directory.remove_login(request.account)
        await self.prepare()
        return control.Done()

    async def queued(self, uid: int, limit: int) -> Sequence[QueueEntry]:
        """Return messages in the queues that an account may see: its own; root all.

        Raises:
            NotAllowed: it is no user.
        """
        if uid == 0:
            found: list[QueueEntry] = []
            for owner in self._services.owners():
                found += await self._services.list_queue(owner, limit)
            return sorted(found, key=lambda entry: entry.envelope.received_at)[:limit]
        user = self._user(uid)
        entries = await self._services.list_queue(user.host, limit)
        return [
            e for e in entries if self._directory.find_user(e.envelope.sender) == user
        ]

    # Within ------------------------------------------------------------------

    async def _make(self) -> dict[int, str]:
        uids = {0, *(login.uid for login in self._directory.logins())}
        make = partial(drop_folder.prepare, self._drop, uids, self._max_size)
        return await asyncio.to_thread(make)

    async def _take(self, uid: int, name: str, *, tell: bool) -> Result | None:
        try:
            dropped = await asyncio.to_thread(
                drop_folder.open_message, self._drop, uid, name, self._max_size
            )
        except drop_folder.NotTakeable as error:
            log.warning("drop.removed", uid=uid, name=name, reason=str(error))
            await asyncio.to_thread(drop_folder.remove, self._drop, uid, name)
            return Result(
                problem=f"the message cannot be taken: {error}", exit_code=os.EX_DATAERR
            )
        except VnsmailError as error:
            return Result(later=str(error))
        if dropped is None:
            return None
        with dropped:
            result = await self._handed_on(dropped, tell=tell)
            if not result.later:
                await asyncio.to_thread(
                    drop_folder.remove, self._drop, uid, name, dropped.fd
                )
            return result

    async def _handed_on(self, dropped: drop_folder.Dropped, *, tell: bool) -> Result:
        uid, request = dropped.uid, dropped.request
        mail: LocalMail | None = None
        try:
            sending = self._sending(uid, request)
            mail = self._mail(sending, dropped)
            return Result(queue_id=await self._services.take(mail, dropped.fd))
        except BadInput as error:
            problem, code = str(error), sysexit(error)
            if isinstance(error, NotFound) and mail is not None:
                return Result(later=problem)  # its host is not served now
        except WorkerRefused as error:
            problem, code = str(error), sysexit(error)
            if error.exit_code not in {BadInput.exit_code, NotAllowed.exit_code}:
                return Result(later=problem)
        except VnsmailError as error:
            return Result(later=str(error))
        log.warning("drop.refused", uid=uid, name=dropped.name, reason=problem)
        if mail is not None and not tell:
            try:
                await self._services.give_back(mail, problem, dropped.fd)
            except VnsmailError as error:
                return Result(later=f"{problem}; and nobody can be told: {error}")
        return Result(problem=problem, exit_code=code)

    def _mail(self, sending: Sending, dropped: drop_folder.Dropped) -> LocalMail:
        request = dropped.request
        names = () if sending.owner == MACHINE else self._directory.logins()
        return LocalMail(
            owner=sending.owner,
            sender=sending.sender,
            recipients=request.recipients,
            uid=dropped.uid,
            user=sending.user,
            name=request.name,
            take_recipients=request.take_recipients,
            logins=tuple(
                (login.name, login.user.local_part)
                for login in names
                if login.user.host == sending.owner
            ),
            offset=dropped.offset,
            token=f"{dropped.uid}/{dropped.name}",
            notify=request.notify,
            returned=request.returned,
            envelope_id=request.envelope_id,
        )

    def _sending(self, uid: int, request: form.Request) -> Sending:
        """Return on whose behalf an account sends.

        Raises:
            NotAllowed: it is no user.
            NotFound: root names a user that is none.
        """
        if uid == 0:
            return self._of_root(request.sender)
        user = self._user(uid)
        if request.sender is not None:
            return Sending(user.host, request.sender, user.local_part)
        own = f"{user.local_part}@{user.host}"
        return Sending(user.host, own, user.local_part)

    def _of_root(self, sender: str | None) -> Sending:
        """Root sends as any user of a host, else as the machine."""
        if sender is None:
            return Sending(MACHINE, f"root@{self._machine}", "")
        if not sender or "@" not in sender:
            return Sending(MACHINE, sender and f"{sender}@{self._machine}", "")
        user = self._directory.find_user(sender)
        if user is not None:
            return Sending(user.host, sender, "")
        if sender.rpartition("@")[2].lower() == self._machine:
            return Sending(MACHINE, sender, "")
        remedy = (
            "no user of a virtual host has this address, and it is not at "
            f"{self._machine}; see `vnsmail user list`"
        )
        raise NotFound("sender", sender, remedy)

    def _user(self, uid: int) -> User:
        login = self._directory.login(uid)
        if login is None:
            remedy = (
                "no user of a virtual host; root can make it one: "
                "`vnsmail login add USER@HOST ACCOUNT`"
            )
            raise NotAllowed("account", f"uid {uid}", remedy)
        host = login.user.host
        users = self._directory.users(host)
        if any(u.local_part == login.user.local_part and u.suspended for u in users):
            raise NotAllowed("user", f"{login.user.local_part}@{host}", "is suspended")
        return next(u for u in users if u.local_part == login.user.local_part)


def sysexit(error: VnsmailError) -> int:
    """Return what a sendmail command ends with for an error (sysexits.h)."""
    if isinstance(error, NotFound):
        return os.EX_NOUSER
    codes = {BadInput.exit_code: os.EX_DATAERR, NotAllowed.exit_code: os.EX_NOPERM}
    return codes.get(error.exit_code, os.EX_UNAVAILABLE)
