"""Virtual hosts: from a request to directory, network and service, and back.

Rules of this file: the directory is the journal. A host is written there as
``creating`` before the first change to the system and becomes ``active`` after the
last, just before it is served, for from then on it may have mail; one to be destroyed
is marked ``destroying`` first and leaves last. Whatever dies in between, ``recover``
finishes: what was being created goes, for nobody was told that it exists; what was
being destroyed goes too. One change at a time.
"""

import asyncio

from vnsmail.channel import ChannelClosed
from vnsmail.directory import Directory
from vnsmail.directory.declaration import Misfits
from vnsmail.engines.protocol import OwnerFacts
from vnsmail.errors import BadInput, StateUnusable, Taken, VnsmailError
from vnsmail.log import logger
from vnsmail.model import (
    MACHINE,
    Context,
    Engine,
    HostName,
    Owner,
    SourceAddress,
    Uplink,
    VirtualHost,
    domain_name,
    host_name,
    ip_address,
)
from vnsmail.net import names
from vnsmail.net.fit import check
from vnsmail.net.guard_rules import desired as guarded
from vnsmail.net.guard_rules import socket_mark
from vnsmail.net.plan import Actual, choose_gateways, choose_link
from vnsmail.settings import Layout, MachineSettings
from vnsmail.supervisor import control, relay
from vnsmail.supervisor.applying import Applying, misfit
from vnsmail.supervisor.certificates import Certificates
from vnsmail.supervisor.dkim import Dkim, keys_to_tell
from vnsmail.supervisor.drain import Drain
from vnsmail.supervisor.engines import check_installed, socket_of
from vnsmail.supervisor.folders import (
    Account,
    move_owner,
    prepare_owner,
    remove_owner,
)
from vnsmail.supervisor.mending import Ward
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.peer import NoAnswer
from vnsmail.supervisor.people import accounts
from vnsmail.supervisor.services import Service, Services

SERVED_AT_ONCE = 32
"""Hosts being assigned at a time: a worker opens their queues side by side."""

MEND_AFTER = 10.0
"""Seconds until a network that could not be made is tried again."""

log = logger("hosts")


class Hosts:
    """The virtual hosts of one root."""

    def __init__(
        self,
        layout: Layout,
        directory: Directory,
        services: Services,
        network: Network,
        account: Account | None,
    ) -> None:
        self._layout = layout
        self._directory = directory
        self._services = services
        self._network = network
        self._account = account
        self.changing = asyncio.Lock()
        """Whoever changes hosts holds it meanwhile."""
        self._certificates = Certificates(layout)
        self.dkim = Dkim(layout, directory)
        self.broken: dict[HostName, str] = {}
        """Hosts whose network could not be made or removed, and why."""
        self._applying = Applying(
            layout,
            directory,
            services,
            network,
            self._serve,
            self._release,
            lambda name: Drain(directory, services, network, self.changing).run(name),
        )

    async def recover(self) -> None:
        """Finish what was cut off, bring the network to what the directory says.

        What cannot be done now is noted in ``broken``, and keeps nobody from starting.
        """
        async with self.changing:
            await self._bring_about()
            self._network.remade(())

    async def mend(self) -> None:
        """Try what could not be done again and again: a link may come, or come back."""
        while True:
            await asyncio.sleep(MEND_AFTER)
            if self.broken:
                async with self.changing:
                    await self._try_again()

    def ward(self) -> Ward:
        """Return what it takes to put back what others change (mending.py)."""
        return Ward(
            self._directory,
            self._network,
            self.changing,
            lambda: self.broken,
            self._try_again,
            self._reopen,
        )

    async def serve_all(self) -> None:
        """Assign every host of the directory to a worker."""
        room = asyncio.Semaphore(SERVED_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for host in self._directory.hosts():
                tasks.create_task(self._serve_in(room, host))

    async def create(self, request: control.CreateHost) -> control.Planned:
        """Create a virtual host, wholly or not at all.

        Raises:
            BadInput: a name or address that cannot be, or is taken.
            NetworkStepFailed: the kernel refused; all is as before.
            VnsmailError: it cannot be served (port in use); all is as before.
        """
        async with self.changing:
            actual = await self._network.observe(host_name(request.name))
            host = self.resolved(request, actual)
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
            if not request.no_probe:
                await self._network.refuse_in_use(host)
            wanted = [*existing.values(), host]
            guarded(
                wanted, self._layout.instance
            )  # two whose marks are one are refused
            steps = self._network.steps(wanted, actual, host.name)
            described = tuple(step.describe() for step in steps)
            if request.dry_run:
                return control.Planned(described, changed=False)
            self._directory.add_host(host)
            try:
                await self._network.fence(wanted)
                await self._network.apply(steps)
                await self._network.guard_host(host, wanted)
                prepare_owner(self._layout, Owner(host.name), self._account)
                # Before it is served: mail that it takes must outlive our own end.
                self._directory.activate(host.name)
                await self._serve_new(host)
                self._network.remade(())
            except BaseException:
                await asyncio.shield(self.undo(host.name))
                raise
            log.info("host.created", host=host.name, context=host.context.value)
            return control.Planned(described, changed=True)

    async def destroy(self, request: control.DestroyHost) -> control.Planned:
        """Destroy a virtual host and everything that is its own.

        Raises:
            NotFound: there is none of that name.
            BadInput: mail is still queued, and it was not said to discard it.
        """
        async with self.changing:
            host = self._directory.host(host_name(request.name))
            existing = self._directory.hosts()
            actual = await self._network.observe(host.name)
            rest = [each for each in existing if each.name != host.name]
            steps = self._network.steps(rest, actual, host.name)
            described = tuple(step.describe() for step in steps)
            if request.dry_run:
                return control.Planned(described, changed=False)
            # One half made or half destroyed has no mail that anybody waits for.
            move = self._directory.move(host.name)
            elsewhere = move is not None and move.finished
            if host in existing and not request.discard_queue and not elsewhere:
                await self._refuse_if_queued(host.name)
            self._directory.begin_destroy(host.name)
            await self._release(host.name)
            await self._remove(host.name)
            log.info("host.destroyed", host=host.name)
            return control.Planned(described, changed=True)

    async def apply(self, request: control.ApplyHosts) -> control.Applied:
        """Make the hosts of a file all there are; see supervisor/applying.py.

        Raises:
            BadInput: mail is queued for a host that is to go; nothing is changed.
            NetworkStepFailed: the network cannot be seen; nothing is changed.
        """
        async with self.changing:
            try:
                actual = await self._network.observe()
                decision, planned = await self._applying.decided(request, actual)
            except Misfits as error:
                return misfit(error)
            if request.dry_run:
                return planned
            done, self.broken = await self._applying.carry_out(decision, planned)
            return done

    @property
    def progress(self) -> control.Progress:
        """How far an ``apply`` that is under way has come."""
        return self._applying.progress

    async def refresh(self, name: HostName) -> None:
        """Tell the worker of a host about changed users or domains.

        They are in the directory already: a worker that cannot be told now is told
        when it can.
        """
        async with self.changing:
            for host in self._directory.hosts():
                if host.name == name:
                    await self._services.serve_or_note(self.service(host))

    async def certificate(
        self,
        request: control.SetCertificate
        | control.RemoveCertificate
        | control.GetCertificates,
    ) -> control.Certificates:
        """Change or list a host's certificates; running sessions keep what they have.

        Raises:
            NotFound: no such host, or no such certificate.
            BadInput: the certificate cannot be used; nothing is changed.
        """
        host = self._directory.host(host_name(request.host))
        match request:
            case control.SetCertificate(certificate=certificate, key=key, names=names):
                self._certificates.put(host.name, certificate, key, names)
                await self.refresh(host.name)
            case control.RemoveCertificate(name=name):
                self._certificates.remove(host.name, name)
                await self.refresh(host.name)
            case _:
                pass
        return control.Certificates(
            tuple(
                control.CertificateFacts(
                    name,
                    facts.names,
                    facts.issuer,
                    facts.expires,
                    facts.fingerprint,
                    facts.self_signed,
                )
                if facts
                else control.CertificateFacts(name)
                for name, facts in self._certificates.listed(host.name)
            )
        )

    async def change_keys(self, request: control.ChangeDkim) -> control.DkimKeys:
        """Change the DKIM keys of a host, and tell its worker.

        Raises:
            NotFound, BadInput: it cannot be; nothing is changed.
            StateUnusable: the keys cannot be read or written.
        """
        async with self.changing:
            done = await self.dkim.change(request)
        await self.refresh(host_name(request.name))
        return done

    async def guard(self, request: control.GetGuard) -> control.Guarded:
        """Return how a host's source addresses are guarded, and what was stopped.

        Raises:
            NotFound: there is none of that name.
        """
        return await self._network.guarded(
            self._directory.host(host_name(request.name))
        )

    # Within ------------------------------------------------------------------

    async def _try_again(self) -> None:
        """Try to bring about what is broken; what others changed beside it stays."""
        await self._bring_about(frozenset(self.broken))
        await self._reopen()

    async def _reopen(self) -> None:
        """Open the sockets anew of hosts whose namespace was made anew."""
        remade = set(self._network.remade(self._services.owners()))
        if not remade:
            return
        hosts = [h for h in self._directory.hosts() if h.name in remade]
        for host in hosts:
            await self._release(host.name)
            await self._serve(host)

    async def _bring_about(self, only: frozenset[HostName] | None = None) -> None:
        broken: dict[HostName, str] = {}
        await self._finish_renames()
        for name in self._directory.unfinished():
            log.info("host.unfinished", host=name)
            try:
                await self._remove(name)
            except VnsmailError as error:
                broken[name] = f"half made or destroyed: {error}"
                log.warning("host.not_removed", host=name, reason=str(error))
        hosts = self._directory.hosts()
        self.broken = broken | await self._network.converge(hosts, only=only)

    async def _finish_renames(self) -> None:
        """Give the folders of hosts that were being renamed their new names."""
        for old, new in self._directory.renamed():
            log.info("host.renaming", host=new, before=old)
            try:
                await asyncio.to_thread(
                    move_owner, self._layout, Owner(old), Owner(new)
                )
                self._directory.finish_rename(new)
            except StateUnusable as error:
                self._services.problems[new] = str(error)
                log.warning("host.not_renamed", host=new, reason=str(error))

    async def _serve_in(self, room: asyncio.Semaphore, host: VirtualHost) -> None:
        async with room:
            await self._serve(host)

    async def _serve(self, host: VirtualHost) -> None:
        if host.name in {new for _, new in self._directory.renamed()}:
            return  # its folder still has another name; a new one would be empty
        try:
            prepare_owner(self._layout, Owner(host.name), self._account)
        except StateUnusable as error:
            self._services.problems[host.name] = str(error)
            log.warning("host.unserved", host=host.name, reason=str(error))
        else:
            await self._services.serve_or_note(self.service(host))

    async def _serve_new(self, host: VirtualHost) -> None:
        """Serve a new host; it stays if its worker fell silent, for it may have mail.

        Raises:
            VnsmailError: the worker will not have it, and has opened nothing.
        """
        try:
            await self._services.serve(self.service(host))
        except (ChannelClosed, NoAnswer):
            await self._services.serve_or_note(self.service(host))

    async def undo(self, name: HostName) -> None:
        """Take back a creation that failed; the first failure is the one to report."""
        try:
            self._directory.begin_destroy(name)
            await self._release(name)
            await self._remove(name)
        except VnsmailError as error:
            log.warning("host.undo_failed", host=name, reason=str(error))

    async def _release(self, name: HostName) -> None:
        """Let go of a host that goes away: how cleanly is of no matter any more."""
        try:
            await self._services.release(name)
        except VnsmailError as error:
            log.warning("host.release_failed", host=name, reason=str(error))

    async def _remove(self, name: HostName) -> None:
        """Remove what nobody serves any more: network, files, and the name at last."""
        hosts = [each for each in self._directory.hosts() if each.name != name]
        actual = await self._network.observe(name)
        await self._network.apply(self._network.steps(hosts, actual, name))
        await self._network.unguard(name, hosts)
        await asyncio.to_thread(remove_owner, self._layout, Owner(name))
        self._directory.remove_host(name)
        self.broken.pop(name, None)

    async def _refuse_if_queued(self, name: HostName) -> None:
        try:
            entries = await self._services.list_queue(name, 1)
        except VnsmailError as error:
            remedy = (
                f"its queue cannot be read ({error}); give --discard-queue to destroy "
                "it with whatever is in it"
            )
            raise BadInput("virtual host", name, remedy) from None
        if self._services.engines is not None:
            await self._services.engines.refuse_if_queued(self._directory.host(name))
        if entries:
            raise BadInput(
                "virtual host",
                name,
                "mail is still in its queue (`vnsmail queue list`); wait for it, or "
                "give --discard-queue",
            )

    def resolved(self, request: control.CreateHost, actual: Actual) -> VirtualHost:
        """Return the host asked for, with the link of the machine it will use.

        Raises:
            BadInput: there cannot be such a host.
        """
        name = host_name(request.name)
        addresses = tuple(SourceAddress.parse(text) for text in request.addresses)
        if not addresses:
            raise BadInput("virtual host", name, "give it at least one --address")
        if len({a.address for a in addresses}) != len(addresses):
            raise BadInput("virtual host", name, "an address is given twice")
        context = Context.parse(request.context)
        uplink = None if request.uplink is None else Uplink.parse(request.uplink)
        gateways = tuple(ip_address(text) for text in request.gateways)
        existing = self._directory.find(name)
        same = existing and (existing.addresses, existing.context) == (
            addresses,
            context,
        )
        link, chosen = self._link(
            request, addresses, context, uplink, actual, existing if same else None
        )
        own = context is Context.NAMESPACE and chosen is not Uplink.ROUTED
        if own and request.vlan is None:
            gateways = gateways or choose_gateways(addresses, actual, link)
        extra = tuple(domain_name(text) for text in request.domains)
        host = VirtualHost(
            name=name,
            context=context,
            addresses=addresses,
            domains=(name, *(d for d in dict.fromkeys(extra) if d != name)),
            link=link,
            uplink=chosen,
            gateways=gateways,
            mtu=request.mtu,
            vlan=request.vlan,
            engine=Engine.parse(request.engine),
        )
        check(host, actual, existing)
        check_installed(host.engine)
        return host

    def _link(
        self,
        request: control.CreateHost,
        addresses: tuple[SourceAddress, ...],
        context: Context,
        uplink: Uplink | None,
        actual: Actual,
        same: VirtualHost | None,
    ) -> tuple[str, Uplink | None]:
        """Return the link of a host, and how it is used; ``same`` has it already."""
        if (
            same is not None
            and request.link in {None, same.link}
            and uplink in {None, same.uplink}
        ):
            return same.link, same.uplink
        return choose_link(
            addresses,
            actual,
            context,
            request.link,
            uplink,
            tagged=request.vlan is not None,
        )

    def service(self, host: VirtualHost) -> Service:
        """Return how a host is served."""
        users = self._directory.users(host.name)
        facts = OwnerFacts(
            owner=host.name,
            name=host.says,
            folder=str(self._layout.owner_folder(Owner(host.name))),
            addresses=tuple(str(a.address) for a in host.addresses),
            domains=tuple(host.domains),
            users=tuple(user.local_part for user in users),
            accounts=accounts(self._directory, host.name),
            aliases=tuple(
                (alias.local_part, alias.targets)
                for alias in self._directory.aliases(host.name)
            ),
            secret=self._directory.secret(host.name),
            authentication=host.authentication.value,
            # What was packed may be somewhere else by now, whatever else is said.
            suspended=host.suspended or self._directory.move(host.name) is not None,
            limits=host.limits,
            resolvers=tuple(map(str, host.resolvers)),
            certificates=self._certificates.serve(host),
            dkim=keys_to_tell(self._layout, host),
            engine="" if host.engine is Engine.NATIVE else host.engine.value,
            relay=relay.to_tell(self._layout, host.name, host.relay),
        )
        instance = self._layout.instance
        engine = str(socket_of(self._layout, host.name)) if facts.engine else ""
        kept = host if facts.engine else None
        if host.context is Context.NAMESPACE:
            return Service(
                facts,
                names.namespace(instance, host.name),
                identity=self._network.identity(host.name),
                host=kept,
                engine=engine,
            )
        mark = socket_mark(instance, host.name)
        return Service(facts, "", mark, host=kept, engine=engine)


def machine_service(layout: Layout, machine: MachineSettings) -> Service:
    """Return how the machine itself is served: unbound, and not listening."""
    facts = OwnerFacts(
        owner=MACHINE,
        name=machine.name,
        folder=str(layout.owner_folder(Owner(MACHINE))),
        addresses=(),
        domains=(machine.name,),
        users=(),
        any_user=True,
        listen=False,
        relay=relay.to_tell(
            layout, MACHINE, machine.relay.value if machine.relay else None
        ),
    )
    return Service(facts, "")
