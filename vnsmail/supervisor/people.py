"""Users and aliases: from a request to the directory.

Rules of this file: whatever cannot be is refused before anything is written; an address
may be at any domain of its host; what an alias points at here is kept by its local part,
so that it holds when domains change.
"""

from vnsmail import model
from vnsmail.directory import Directory
from vnsmail.engines.protocol import UserFacts
from vnsmail.errors import BadInput, NotFound
from vnsmail.log import logger
from vnsmail.model import (
    CATCH_ALL,
    Alias,
    Credentials,
    HostName,
    User,
    domain_name,
)
from vnsmail.supervisor import control

log = logger("people")


class People:
    """The users and aliases of all hosts."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def change(self, request: control.PeopleRequest) -> HostName:
        """Do what is asked; return the host whose worker has to be told.

        Raises:
            BadInput, NotFound, Taken: it cannot be; nothing is changed.
        """
        if isinstance(request, control.AddAlias | control.RemoveAlias):
            host, local_part = self._split(request.address, "alias")
            self._change_alias(host, local_part, request)
        else:
            host, local_part = self._split(request.address, "user")
            self._change_user(User(host, local_part), request)
        kind = type(request).__name__
        log.info("people.changed", host=host, local_part=local_part, change=kind)
        return host

    def sender(self, address: str) -> User:
        """Return the user who sends as an address.

        Raises:
            NotFound: there is no such user.
            BadInput: it is suspended.
        """
        user = self._directory.find_user(address)
        if user is None:
            raise NotFound(
                "sender",
                address,
                "no user of a virtual host has this address; see `vnsmail user list`",
            )
        if user.suspended:
            remedy = f"this user is suspended; `vnsmail user resume {address}`"
            raise BadInput("sender", address, remedy)
        return user

    def user(self, address: str) -> User:
        """Return the user meant by an address at any domain of a host.

        Raises:
            BadInput, NotFound: it is no address of a host; there may be no such user.
        """
        return User(*self._split(address, "user"))

    # Users ------------------------------------------------------------------------

    def _change_user(
        self,
        user: User,
        request: control.AddUser
        | control.RemoveUser
        | control.SetPassword
        | control.SuspendUser
        | control.SetQuota
        | control.AllowSender,
    ) -> None:
        directory = self._directory
        match request:
            case control.AddUser() if user.local_part == CATCH_ALL:
                remedy = "this is the catch-all; see `vnsmail alias add`"
                raise BadInput("user", request.address, remedy)
            case control.AddUser(proofs=proofs, quota=quota):
                new = User(user.host, user.local_part, quota=_room(quota))
                directory.add_user(new, _credentials(proofs))
            case control.RemoveUser():
                directory.remove_user(user)
            case control.SetPassword(proofs=proofs):
                directory.set_credentials(user, _credentials(proofs))
            case control.SuspendUser(suspended=suspended):
                directory.set_suspended(user, suspended)
            case control.SetQuota(quota=quota):
                directory.set_quota(user, _room(quota))
            case control.AllowSender(sender=sender, allowed=True):
                directory.allow_sender(user, model.mail_address(sender, "sender"))
            case control.AllowSender(sender=sender):
                directory.forbid_sender(user, model.mail_address(sender, "sender"))

    # Aliases ----------------------------------------------------------------------

    def _change_alias(
        self,
        host: HostName,
        local_part: str,
        request: control.AddAlias | control.RemoveAlias,
    ) -> None:
        targets = tuple(self._target(host, each) for each in request.targets)
        if isinstance(request, control.RemoveAlias):
            self._directory.remove_alias(host, local_part, targets)
            return
        if not targets:
            raise BadInput("alias", request.address, "give at least one target")
        if len(set(targets)) < len(targets):
            raise BadInput("alias", request.address, "a target is given twice")
        self._check_targets(host, local_part, targets)
        self._directory.add_alias(Alias(host, local_part, targets))

    def _target(self, host: HostName, text: str) -> str:
        """Return a target as it is kept: a local part if it is the host's own."""
        local_part, at, domain = text.rpartition("@")
        if not at:
            return model.local_part(text.lower())
        if self._directory.domain_owner(domain_name(domain)) == host:
            return model.local_part(local_part.lower())
        return model.mail_address(text, "target")

    def _check_targets(
        self, host: HostName, local_part: str, targets: tuple[str, ...]
    ) -> None:
        users = {user.local_part for user in self._directory.users(host)}
        aliases = {a.local_part: a.targets for a in self._directory.aliases(host)}
        for target in targets:
            name = target.partition("+")[0]
            if "@" in target or users & {target, name}:
                continue
            if not aliases.keys() & {target, name}:
                remedy = f"{host} has no such user or alias; `vnsmail user add` first"
                raise NotFound("target", target, remedy)
            alias = target if target in aliases else name
            if local_part in _reached(alias, aliases):
                remedy = f"it goes back to {local_part}; mail would go in a circle"
                raise BadInput("target", target, remedy)

    # Addresses --------------------------------------------------------------------

    def _split(self, address: str, what: str) -> tuple[HostName, str]:
        """Return the host an address belongs to, and its local part."""
        local_part, at, domain = address.rpartition("@")
        if not at:
            example = "user@alpha.example" if what == "user" else "sales@alpha.example"
            raise BadInput(what, address, f"write it as {example}")
        name = domain_name(domain)
        owner = self._directory.domain_owner(name)
        if owner is None:
            raise NotFound(
                "domain", name, "no virtual host has it; see `vnsmail host list`"
            )
        check = model.alias_local_part if what == "alias" else str
        return owner, check(local_part.lower())


def accounts(directory: Directory, host: HostName) -> tuple[UserFacts, ...]:
    """Return what a host's worker, and no other, has to know of its users."""
    credentials = directory.credentials(host)
    senders = directory.senders(host)
    nothing = Credentials("", "")
    every = (
        UserFacts(
            user.local_part,
            credentials.get(user.local_part, nothing).password,
            credentials.get(user.local_part, nothing).scram,
            user.suspended,
            user.quota,
            senders.get(user.local_part, ()),
        )
        for user in directory.users(host)
    )
    return tuple(each for each in every if each != UserFacts(each.local_part))


def _reached(name: str, aliases: dict[str, tuple[str, ...]]) -> set[str]:
    """Return all aliases that mail for one comes through, itself among them."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each in aliases and each not in reached:
            reached.add(each)
            waiting += [t.partition("+")[0] for t in aliases[each]]
    return reached - {CATCH_ALL}


def _credentials(proofs: control.Proofs) -> Credentials:
    return Credentials(proofs.password, proofs.scram)


def _room(quota: int | None) -> int | None:
    if quota is not None and quota < 1:
        raise BadInput("quota", str(quota), "give bytes, one at least, or none")
    return quota
