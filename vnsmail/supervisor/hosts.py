"""Virtual hosts: from a request to directory, network and service, and back.

Rules of this file: the directory is the journal. A host is written there as
``creating`` before the first change to the system and becomes ``active`` after the
last; one to be destroyed is marked ``destroying`` first and leaves last. Whatever dies
in between, ``recover`` finishes: what was being created goes, for nobody was told that
it exists; what was being destroyed goes too. One change at a time.
"""

import asyncio
from collections.abc import Sequence

from vnsmail.directory import Directory
from vnsmail.engines.protocol import OwnerFacts
from vnsmail.errors import BadInput, NetworkStepFailed, Taken, VnsmailError
from vnsmail.log import logger
from vnsmail.model import (
    MACHINE,
    Context,
    HostName,
    IPAddress,
    Owner,
    SourceAddress,
    VirtualHost,
    domain_name,
    host_name,
    ip_address,
)
from vnsmail.net import names
from vnsmail.net.apply import apply
from vnsmail.net.observe import observe
from vnsmail.net.plan import Actual, Desired, Step, choose_gateways, choose_link, plan
from vnsmail.settings import Layout
from vnsmail.supervisor import control
from vnsmail.supervisor.folders import Account, prepare_owner, remove_owner
from vnsmail.supervisor.services import Service, Services

log = logger("hosts")


class Hosts:
    """The virtual hosts of one root."""

    def __init__(
        self,
        layout: Layout,
        directory: Directory,
        services: Services,
        account: Account | None,
    ) -> None:
        self._layout = layout
        self._directory = directory
        self._services = services
        self._account = account
        self._changing = asyncio.Lock()

    async def recover(self) -> None:
        """Finish what was cut off, bring the network to what the directory says."""
        async with self._changing:
            for name in self._directory.unfinished():
                log.info("host.unfinished", host=name)
                await self._remove(name)
            hosts = self._directory.hosts()
            try:
                await self._converge(hosts)
            except NetworkStepFailed as error:
                log.warning("network.incomplete", reason=str(error))
                await self._converge_one_by_one(hosts)

    async def serve_all(self) -> None:
        """Assign every host of the directory to a worker."""
        for host in self._directory.hosts():
            prepare_owner(self._layout, Owner(host.name), self._account)
            await self._services.serve_or_note(self._service(host))

    async def create(self, request: control.CreateHost) -> control.Planned:
        """Create a virtual host, wholly or not at all.

        Raises:
            BadInput: a name or address that cannot be, or is taken.
            NetworkStepFailed: the kernel refused; all is as before.
            VnsmailError: it cannot be served (port in use); all is as before.
        """
        async with self._changing:
            actual = await self._observed()
            host = self._resolved(request, actual)
            existing = {h.name: h for h in self._directory.hosts()}
            if existing.get(host.name) == host:
                return control.Planned((), changed=False)
            if host.name in existing:
                raise Taken(
                    "virtual host",
                    host.name,
                    "it exists with other facts; see `vnsmail host show`, "
                    "or destroy it first",
                )
            self._directory.check_free(host)
            steps = self._steps([*existing.values(), host], actual)
            described = tuple(step.describe() for step in steps)
            if request.dry_run:
                return control.Planned(described, changed=False)
            self._directory.add_host(host)
            try:
                await asyncio.to_thread(apply, steps, self._layout.instance)
                prepare_owner(self._layout, Owner(host.name), self._account)
                await self._services.serve(self._service(host))
                self._directory.activate(host.name)
            except BaseException:
                await asyncio.shield(self._undo(host.name))
                raise
            log.info("host.created", host=host.name, context=host.context.value)
            return control.Planned(described, changed=True)

    async def destroy(self, request: control.DestroyHost) -> control.Planned:
        """Destroy a virtual host and everything that is its own.

        Raises:
            NotFound: there is none of that name.
            BadInput: mail is still queued, and it was not said to discard it.
        """
        async with self._changing:
            host = self._directory.host(host_name(request.name))
            actual = await self._observed()
            rest = [h for h in self._directory.hosts() if h.name != host.name]
            described = tuple(s.describe() for s in self._steps(rest, actual))
            if request.dry_run:
                return control.Planned(described, changed=False)
            if not request.discard_queue:
                await self._refuse_if_queued(host.name)
            self._directory.begin_destroy(host.name)
            await self._services.release(host.name)
            await self._remove(host.name)
            log.info("host.destroyed", host=host.name)
            return control.Planned(described, changed=True)

    async def refresh(self, name: HostName) -> None:
        """Tell the worker of a host about changed users or domains."""
        await self._services.serve(self._service(self._directory.host(name)))

    # Within ------------------------------------------------------------------

    async def _undo(self, name: HostName) -> None:
        """Take back a creation that failed; the first failure is the one to report."""
        try:
            await self._services.release(name)
            await self._remove(name)
        except VnsmailError as error:
            log.warning("host.undo_failed", host=name, reason=str(error))

    async def _remove(self, name: HostName) -> None:
        hosts = [h for h in self._directory.hosts() if h.name != name]
        actual = await self._observed()
        steps = self._steps(hosts, actual)
        await asyncio.to_thread(apply, steps, self._layout.instance)
        await asyncio.to_thread(remove_owner, self._layout, Owner(name))
        self._directory.remove_host(name)

    async def _refuse_if_queued(self, name: HostName) -> None:
        entries = await self._services.list_queue(name, 1)
        if entries:
            raise BadInput(
                "virtual host",
                name,
                "mail is still in its queue (`vnsmail queue list`); wait for it, or "
                "give --discard-queue",
            )

    async def _converge(self, hosts: Sequence[VirtualHost]) -> None:
        steps = self._steps(hosts, await self._observed())
        await asyncio.to_thread(apply, steps, self._layout.instance)

    async def _converge_one_by_one(self, hosts: Sequence[VirtualHost]) -> None:
        """Let a host whose network cannot be made stand in nobody else's way."""
        good: list[VirtualHost] = []
        for host in hosts:
            try:
                await self._converge([*good, host])
            except NetworkStepFailed as error:
                self._services.problems[host.name] = str(error)
                log.warning("host.network_failed", host=host.name, reason=str(error))
            else:
                good.append(host)

    async def _observed(self) -> Actual:
        return await asyncio.to_thread(observe, self._layout.instance)

    def _steps(self, hosts: Sequence[VirtualHost], actual: Actual) -> tuple[Step, ...]:
        return plan(Desired(tuple(hosts)), actual, self._layout.instance)

    def _resolved(self, request: control.CreateHost, actual: Actual) -> VirtualHost:
        """Return the host asked for, with the link of the machine it will use."""
        name = host_name(request.name)
        addresses = tuple(SourceAddress.parse(text) for text in request.addresses)
        if not addresses:
            raise BadInput("virtual host", name, "give it at least one --address")
        if len({a.address for a in addresses}) != len(addresses):
            raise BadInput("virtual host", name, "an address is given twice")
        context = Context.parse(request.context)
        existing = self._directory.find(name)
        if existing and (existing.addresses, existing.context) == (addresses, context):
            link, uplink = existing.link, existing.uplink
            if request.link and request.link != link:
                link, uplink = choose_link(addresses, actual, context, request.link)
        else:
            link, uplink = choose_link(addresses, actual, context, request.link)
        gateways: tuple[IPAddress, ...] = ()
        if context is Context.NAMESPACE:
            gateways = tuple(ip_address(text) for text in request.gateways)
            gateways = gateways or choose_gateways(addresses, actual, link)
        extra = tuple(domain_name(text) for text in request.domains)
        domains = (name, *(d for d in dict.fromkeys(extra) if d != name))
        return VirtualHost(name, context, addresses, domains, link, uplink, gateways)

    def _service(self, host: VirtualHost) -> Service:
        users = self._directory.users(host.name)
        facts = OwnerFacts(
            owner=host.name,
            name=host.name,
            folder=str(self._layout.owner_folder(Owner(host.name))),
            addresses=tuple(str(a.address) for a in host.addresses),
            domains=tuple(host.domains),
            users=tuple(user.local_part for user in users),
        )
        inside = host.context is Context.NAMESPACE
        namespace = names.namespace(self._layout.instance, host.name) if inside else ""
        return Service(facts, namespace)


def machine_service(layout: Layout, name: str) -> Service:
    """Return how the machine itself is served: unbound, and not listening."""
    facts = OwnerFacts(
        owner=MACHINE,
        name=name,
        folder=str(layout.owner_folder(Owner(MACHINE))),
        addresses=(),
        domains=(name,),
        users=(),
        any_user=True,
        listen=False,
    )
    return Service(facts, "")
