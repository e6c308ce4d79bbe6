"""Hosts that go to another installation, and those that come from one.

    pack      written down as moving, served no more, copied, written down as moved
    unpack    read beside the hosts, judged, made like a new host, its folders put in
              place, and in one transaction active with its people, its pack used up

Rules of this file: a host that moves is suspended from before its first file is copied,
and stays so over crashes until somebody takes the move back, so that its mail is in one
place only. Whatever dies in between, doing the same again finishes: a pack that is not
whole has no name, and a host that is half unpacked goes at the next start.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from vnsmail.database import sync_folder
from vnsmail.directory import Directory, declaration
from vnsmail.errors import BadInput, NotFound, StateUnusable, Taken, VnsmailError
from vnsmail.log import logger
from vnsmail.model import Context, HostName, Owner, VirtualHost, host_name
from vnsmail.net.guard_rules import desired as guarded
from vnsmail.net.plan import Actual
from vnsmail.settings import Layout
from vnsmail.supervisor import control, packing, unpacking
from vnsmail.supervisor.folders import Account
from vnsmail.supervisor.hosts import Hosts
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.services import Services
from vnsmail.supervisor.unpacking import Unpacked

STAGE = "unpacking"
"""Folder of a root in which a pack is read; one that a crash left is removed."""

T = TypeVar("T")

log = logger("hosts")


class Moving:
    """Packs hosts, and unpacks them."""

    def __init__(
        self,
        hosts: Hosts,
        layout: Layout,
        directory: Directory,
        services: Services,
        network: Network,
        account: Account | None,
    ) -> None:
        self._hosts = hosts
        self._layout = layout
        self._directory = directory
        self._services = services
        self._network = network
        self._account = account
        self._reading = asyncio.Lock()

    async def pack(self, request: control.PackHost) -> control.Packed:
        """Suspend a host, and write all that is its own into a file.

        Raises:
            NotFound: there is no such host.
            BadInput: it is packed already, or the file cannot be; nothing is changed.
            StateUnusable: it cannot be written; the host goes on as before.
        """
        return await _to_its_end(self._pack(request))

    async def unpack(self, request: control.UnpackHost) -> control.Unpacked:
        """Make a host of a pack.

        Raises:
            BadInput: it is no pack, or cannot be a host here; nothing is changed.
            VnsmailError: the network cannot have it; all is as before.
        """
        return await _to_its_end(self._unpack(request))

    # Packing ---------------------------------------------------------------------

    async def _pack(self, request: control.PackHost) -> control.Packed:
        name = host_name(request.name)
        # Who changes hosts would have it served again while it is copied.
        async with self._hosts.changing:
            host = self._packable(name)
            path = packing.target(request.to, name)
            if self._services.engines is not None:
                # What an engine has queued is its own, and does not go along.
                await self._services.engines.refuse_if_queued(host)
            # From here on it is suspended, also over a crash (Hosts.service).
            move = self._directory.begin_move(name, secrets.token_hex(16))
            try:
                await self._let_go(name)
                content = self._content(host, move.pack)
                manifest = await asyncio.to_thread(packing.write, content, path)
                self._directory.finish_move(name)
            except VnsmailError:
                self._directory.cancel_move(name)
                raise
            finally:
                await self._services.serve_or_note(self._hosts.service(host))
        log.info("host.packed", host=name, pack=move.pack, file=str(path))
        return control.Packed(str(path), move.pack, manifest.files, manifest.octets)

    def _packable(self, name: HostName) -> VirtualHost:
        host = self._directory.host(name)
        if name in self._directory.unfinished():
            remedy = f"it is half made or destroyed; run `vnsmail host destroy {name}`"
            raise NotFound("virtual host", name, remedy)
        move = self._directory.move(name)
        if move and move.finished:
            remedy = (
                f"it is packed already; `vnsmail host destroy {name}` once it is "
                f"unpacked, or `vnsmail host resume --force {name}` if it never will be"
            )
            raise BadInput("virtual host", name, remedy)
        return host

    async def _let_go(self, name: HostName) -> None:
        """Have its worker finish what is being said, and close its files.

        Raises:
            StateUnusable: it may write to them still.
        """
        try:
            await self._services.release(name)
        except VnsmailError as error:
            # It has let go all the same, and what it promised is in the files.
            log.warning("host.release_failed", host=name, reason=str(error))

    def _content(self, host: VirtualHost, pack: str) -> packing.Content:
        layout, name = self._layout, host.name
        users = tuple(user.local_part for user in self._directory.users(name))
        return packing.Content(
            host=name,
            pack=pack,
            facts=declaration.write([(host, users)]),
            people=self._directory.packed_people(name),
            folders=(
                ("owner", layout.owner_folder(Owner(name))),
                ("tls", layout.certificates / name),
                ("dkim", layout.dkim / name),
                ("relay", layout.relay / name),
            ),
        )

    # Unpacking -------------------------------------------------------------------

    async def _unpack(self, request: control.UnpackHost) -> control.Unpacked:
        stage = self._layout.state / STAGE
        async with self._reading:
            found = await asyncio.to_thread(unpacking.read, request.file, stage)
            try:
                async with self._hosts.changing:
                    return await self._become(found, request)
            finally:
                await asyncio.to_thread(shutil.rmtree, stage, ignore_errors=True)

    async def _become(
        self, found: Unpacked, request: control.UnpackHost
    ) -> control.Unpacked:
        name, pack = found.host.name, found.manifest.pack
        before = self._directory.unpacked(pack)
        if before and not request.force:
            remedy = (
                f"it became {before} here already, and its mail would go twice; "
                "--force, if you are sure that it did not go"
            )
            raise Taken("pack", request.file, remedy)
        actual = await self._network.observe(name)
        host = self._wanted(found, request, actual)
        self._directory.check_free(host)
        self._refuse_leftovers(name)
        if not request.no_probe:
            await self._network.refuse_in_use(host)
        wanted = [*self._directory.hosts(), host]
        guarded(wanted, self._layout.instance)
        steps = self._network.steps(wanted, actual, name)
        described = tuple(step.describe() for step in steps)
        own = tuple(str(each) for each in host.addresses)
        answer = control.Unpacked(name, own, described, changed=not request.dry_run)
        if request.dry_run:
            return answer
        self._directory.add_host(host)
        try:
            await self._network.fence(wanted)
            await self._network.apply(steps)
            await self._network.guard_host(host, wanted)
            await asyncio.to_thread(self._put_in_place, found)
            self._directory.settle(name, found.people, pack, again=request.force)
        except BaseException:
            await asyncio.shield(self._hosts.undo(name))
            raise
        await self._services.serve_or_note(self._hosts.service(host))
        self._network.remade(())
        log.info("host.unpacked", host=name, pack=pack)
        return answer

    def _wanted(
        self, found: Unpacked, request: control.UnpackHost, actual: Actual
    ) -> VirtualHost:
        """Return the host as this machine would have it.

        Links and routers are of the machine it comes from; here they are chosen anew,
        but for those that an alias or a tag cannot do without.
        """
        table = found.host.table
        context = request.context or table.context.value
        kept = not request.addresses and (
            context == Context.ALIAS.value or table.vlan is not None
        )
        gateways = tuple(str(each) for each in table.gateways or ()) if kept else ()
        addresses = request.addresses or tuple(str(each) for each in table.addresses)
        asked = control.CreateHost(
            name=found.host.name,
            addresses=addresses,
            context=context,
            link=request.link or (table.link if table.vlan is not None else None),
            gateways=request.gateways or gateways,
            domains=tuple(found.host.domains),
            uplink=request.uplink,
            mtu=table.mtu if context == Context.NAMESPACE.value else None,
            vlan=table.vlan if context == Context.NAMESPACE.value else None,
            engine=table.engine.value,
        )
        return replace(
            self._hosts.resolved(asked, actual),
            resolvers=table.resolvers,
            source_check=table.source_check,
            public_addresses=table.public_addresses,
            limits=table.limits.value,
            suspended=bool(table.suspended),
            helo=table.helo,
            authentication=table.authentication,
            relay=table.relay.value if table.relay else None,
        )

    def _refuse_leftovers(self, name: HostName) -> None:
        layout = self._layout
        for folder in (
            layout.owner_folder(Owner(name)),
            layout.certificates / name,
            layout.dkim / name,
            layout.relay / name,
        ):
            if os.path.lexists(folder):
                problem = "it is there, and no host's"
                raise StateUnusable(str(folder), problem, "move it away")

    def _put_in_place(self, found: Unpacked) -> None:
        """Give the folders of a pack to a host that is being made.

        Raises:
            StateUnusable: they cannot be.
        """
        layout, name = self._layout, found.host.name
        try:
            unpacking.give(found.area("owner"), self._account)
            for area, folder in (
                ("owner", layout.owner_folder(Owner(name))),
                ("tls", layout.certificates / name),
                ("dkim", layout.dkim / name),
                ("relay", layout.relay / name),
            ):
                if found.area(area).exists():
                    folder.parent.mkdir(mode=0o700, exist_ok=True)
                    os.rename(found.area(area), folder)
                    sync_folder(folder.parent)
                    sync_folder(folder.parent.parent)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise StateUnusable(str(found.folder), why, "mend it") from None


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do it whether or not somebody waits for it."""
    return await asyncio.shield(asyncio.ensure_future(work))
