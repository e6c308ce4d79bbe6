"""What a worker knows of the path a message would take."""

from vnsmail.delivery.explain import explain
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.route import AS_DNS_SAYS, Questions, RouteRules
from vnsmail.engines.protocol import Explained, Target
from vnsmail.errors import BadInput
from vnsmail.inbound.accept import AcceptPolicy, Aliased
from vnsmail.settings import store_path
from vnsmail.smtp.address import parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply


async def explained(
    number: int,
    address: str,
    facts: AgentFacts,
    local: AcceptPolicy,
    resolver: Questions,
    servers: tuple[str, ...],
    rules: RouteRules = AS_DNS_SAYS,
) -> Explained:
    """Say where a message of an owner for an address would go; nothing is sent.

    Args:
        number: of the request that this answers.
        address: who it would be for.
        facts: of the owner.
        local: who has a mailbox here.
        resolver: who is asked where mail goes.
        servers: those that the resolver asks, to be told.
        rules: what the settings say of its routes.

    Raises:
        BadInput: it is no address.
    """
    try:
        mailbox = parse_mailbox(address, smtputf8=True)
    except SmtpSyntaxError as error:
        raise BadInput("address", address, str(error)) from None
    domain = mailbox.domain.lower()
    if domain in facts.domains:
        meant = local.expand(mailbox)
        if isinstance(meant, Reply):
            refusal = f"{meant.code} {meant.enhanced} {meant.text}"
            return Explained(number, (), (), refusal, servers, "")
        whose = meant.addresses if isinstance(meant, Aliased) else (meant.user,)
        return Explained(number, whose, (), "", servers, "")
    if store := store_path(rules.relay(domain) or ""):
        whose = (f"{mailbox} in the store at {store}",)
        return Explained(number, whose, (), "", servers, "")
    path = await explain(domain, facts, resolver, rules)
    targets = tuple(
        Target(t.exchanger, t.preference, str(t.address or ""), t.turn, t.why)
        for t in path.targets
    )
    said = path.refusal
    refusal = f"{said.reply_code} {said.enhanced} {said.text}" if said else ""
    return Explained(number, (), targets, refusal, servers, "")
