"""What a message of a host would meet on its way: its worker's word, and the kernel's.

Rules of this file: nothing is sent and nothing is changed; whatever would keep the
message is told, all of it.
"""

import asyncio
from dataclasses import asdict

from vnsmail.engines import protocol as engine
from vnsmail.model import Family, SourceCheck, VirtualHost, ip_address
from vnsmail.net.lookup import Way, look_up
from vnsmail.supervisor import control
from vnsmail.supervisor.services import Service, Services, WorkerRefused


async def explained(
    host: VirtualHost, service: Service, address: str, services: Services
) -> control.PathOf:
    """Return the path that a message of a host for an address would take.

    Raises:
        BadInput: it is no address.
        WorkerRefused, NotFound: nobody serves the host.
    """
    answer = await services.asked(
        host.name, lambda n: engine.Explain(n, host.name, address)
    )
    if not isinstance(answer, engine.Explained):
        message = "its worker has no answer"
        raise WorkerRefused(message, 1)
    refusals = [answer.refusal] if answer.refusal else []
    if host.suspended:
        refusals.insert(0, f"{host.name} is suspended: nothing is sent or received")
    targets = tuple(
        [await _way(host, service.namespace, target) for target in answer.targets]
    )
    tried = [each for each in targets if each.turn]
    if tried and all(each.why for each in tried):
        refusals.append("no target can be reached from here; mail for them would wait")
    sources = [host.source(family) for family in sorted(Family, reverse=True)]
    return control.PathOf(
        context=host.context.value,
        namespace=service.namespace,
        sources=tuple(
            str(each.address) + _public(host, each.family) for each in sources if each
        ),
        helo=host.says,
        engine="native",
        servers=answer.servers,
        mailboxes=answer.mailboxes,
        targets=targets,
        refusals=tuple(refusals),
        tls=answer.tls,
        limits={k: n for k, n in asdict(host.limits).items() if n is not None},
    )


def _public(host: VirtualHost, family: Family) -> str:
    """Return what is added to a source that others see as another address."""
    if host.source_check is not SourceCheck.NAT:
        return ""
    seen = [str(a) for a in host.public_addresses if a.version == family]
    return f" (seen as {seen[0]})" if seen else ""


async def _way(
    host: VirtualHost, namespace: str, target: engine.Target
) -> control.WayTo:
    known = (target.exchanger, target.preference, target.address, target.turn)
    if not target.turn:
        return control.WayTo(*known, target.why)
    destination = ip_address(target.address)
    source = host.source(Family(destination.version))
    if source is None:
        return control.WayTo(*known, "it has no address of that family")
    way: Way = await asyncio.to_thread(look_up, namespace, destination, source.address)
    return control.WayTo(
        *known, way.problem, str(source.address), way.link, way.gateway
    )
