"""Which mail server an engine is. Pure."""

from vnsmail.engines import mta_exim, mta_postfix, mta_sendmail
from vnsmail.engines.mta import Mta, MtaFacts
from vnsmail.model import Context, Engine, Family, VirtualHost

MTAS = {each.engine: each for each in (mta_sendmail.MTA, mta_postfix.MTA, mta_exim.MTA)}


def mta_of(engine: Engine) -> Mta | None:
    """Return the server of an engine; None: ours."""
    return MTAS.get(engine)


def facts_of(host: VirtualHost, port: int, max_size: int) -> MtaFacts:
    """Return what the engine of a host must know."""
    ipv4, ipv6 = host.source(Family.IPV4), host.source(Family.IPV6)
    return MtaFacts(
        owner=host.name,
        says=host.says,
        domains=tuple(host.domains),
        ipv4=ipv4.address if ipv4 else None,
        ipv6=ipv6.address if ipv6 else None,
        binds=host.context is Context.ALIAS,
        port=port,
        max_size=max_size,
    )
