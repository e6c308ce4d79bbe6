"""hosts.toml: all virtual hosts that should exist, as a file. Pure.

    [host."alpha.example"]
    addresses = ["10.77.0.11/24", "fd77::11/64"]
    users = ["ann"]

What a table does not say is as ``vnsmail host create`` would have it, but for what it
would choose (link, uplink, gateways) and for the users: those of a host that exists
stay as they are.

Rules of this file: everything wrong that can be seen in the file alone is found, and
found at once, each with its line and key; what is written is read back as it was.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from pydantic import ValidationError

from vnsmail import model
from vnsmail.directory.hosts_table import (
    HostsFile,
    HostTable,
    LimitsTable,
    RelayTable,
    schema,
)
from vnsmail.directory.toml_lines import Path, dotted, find_lines, nearest, quoted
from vnsmail.errors import BadInput, VnsmailError
from vnsmail.model import (
    Authentication,
    Context,
    Engine,
    HostName,
    SourceCheck,
    Uplink,
    VirtualHost,
)

__all__ = ["HostTable", "HostsFile", "schema"]

SCHEMA_FILE = "hosts.schema.json"
"""Where an editor looks for the schema: beside the file."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file."""

    line: int
    key: str
    """As one writes it; empty where the text is not TOML."""
    text: str
    """What is wrong, and what to do."""


class Misfits(VnsmailError):
    """A file of hosts says what cannot be."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(f"line {p.line}: {p.key}: {p.text}" for p in self.problems)


# Reading ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeclaredHost:
    """A virtual host as the file has it; None where it says nothing."""

    name: HostName
    written: str
    """The name as it is spelt in the file."""
    table: HostTable

    @property
    def domains(self) -> tuple[HostName, ...]:
        """Its domains, its name first."""
        return (self.name, *(d for d in self.table.domains if d != self.name))


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a file says."""

    hosts: tuple[DeclaredHost, ...]
    lines: Mapping[Path, int]

    def problem(self, host: DeclaredHost, text: str, *keys: str | int) -> Problem:
        """Return a problem with a key of a host, at its line."""
        path = ("host", host.written, *keys)
        return Problem(nearest(self.lines, path), dotted(path), text)


def parse(text: str) -> Declaration:
    """Return what a file says.

    Raises:
        Misfits: it is not TOML, or what it says cannot be.
    """
    try:
        document = tomllib.loads(text)
        lines = find_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise Misfits((_not_toml(text, str(error)),)) from None
    except RecursionError:
        raise Misfits((Problem(1, "", "it is nested too deeply"),)) from None
    return understood(document, lines)


def understood(document: object, lines: Mapping[Path, int]) -> Declaration:
    """Return what a file says, once it is no text any more.

    Raises:
        Misfits: what it says cannot be.
    """
    try:
        tables = HostsFile.model_validate(document).host
    except ValidationError as error:
        raise Misfits(tuple(_invalid(error, lines))) from None
    hosts: list[DeclaredHost] = []
    problems: list[Problem] = []
    for written, table in tables.items():
        try:
            hosts.append(DeclaredHost(model.host_name(written), written, table))
        except BadInput as error:
            path = ("host", written)
            problems.append(Problem(nearest(lines, path), dotted(path), error.remedy))
    declaration = Declaration(tuple(hosts), lines)
    problems += _conflicts(declaration)
    if problems:
        raise Misfits(tuple(sorted(problems, key=lambda problem: problem.line)))
    return declaration


def _not_toml(text: str, reason: str) -> Problem:
    where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", reason)
    line = int(where[1]) if where and where[1] else text.count("\n") + 1
    words = reason[: where.start()] if where else reason
    return Problem(line, "", f"this is not TOML: {words[:1].lower()}{words[1:]}")


_IN_OUR_WORDS = {
    "missing": "give at least one",
    "too_short": "give at least one",
    "too_long": "give {max_length} at most",
    "enum": "choose {expected}",
    "tuple_type": 'write it as a list, such as ["…", "…"]',
    "dict_type": 'write tables such as [host."alpha.example"]',
    "model_type": "write it as a table of keys and values",
    "model_attributes_type": "write it as a table of keys and values",
}
"""What pydantic finds, by its name for it."""


def _invalid(error: ValidationError, lines: Mapping[Path, int]) -> Iterator[Problem]:
    found = error.errors(include_url=False)
    # A list whose elements are wrong is called too short besides.
    inner = {each["loc"][:-1] for each in found}
    found = [e for e in found if e["type"] != "too_short" or e["loc"] not in inner]
    for each in sorted(found, key=lambda fault: nearest(lines, fault["loc"])):
        path, given = each["loc"], each["input"]
        text = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            text = f"there is no such key; there is {', '.join(_known(path))}"
        elif each["type"] in _IN_OUR_WORDS:
            text = _IN_OUR_WORDS[each["type"]].format(**each.get("ctx", {}))
        if isinstance(given, str):
            text = f"{given!r}: {text}"
        yield Problem(nearest(lines, path), dotted(path), text)


def _known(path: tuple[int | str, ...]) -> Iterable[str]:
    if len(path) == 1:
        return HostsFile.model_fields
    for key, table in (("limits", LimitsTable), ("relay", RelayTable)):
        if key in path[2:-1]:
            return table.model_fields
    return HostTable.model_fields


def _conflicts(declaration: Declaration) -> Iterator[Problem]:
    """Find what two tables, or two places of one, both claim."""
    named: dict[str, str] = {}
    holders: dict[object, str] = {host.name: host.name for host in declaration.hosts}
    for host in declaration.hosts:
        holder = named.setdefault(host.name, host.written)
        if holder != host.written:
            yield declaration.problem(host, f"{quoted(holder)} is the same host")
            continue
        addresses = [each.address for each in host.table.addresses]
        yield from _claimed(declaration, host, "addresses", addresses, holders)
        yield from _claimed(
            declaration, host, "domains", host.table.domains, holders, own=(host.name,)
        )
        yield from _conflicts_within(declaration, host)
    yield from _claimed_names(declaration)


def _claimed_names(declaration: Declaration) -> Iterator[Problem]:
    """Find hosts that say the name of another, from which nobody could tell them."""
    holders = {domain: h.name for h in declaration.hosts for domain in h.domains}
    for host in declaration.hosts:
        helo = host.table.helo
        if helo is None:
            continue
        holder = holders.setdefault(helo, host.name)
        if holder != host.name:
            yield declaration.problem(host, f"{helo!r}: {holder} has it", "helo")


def _claimed(
    declaration: Declaration,
    host: DeclaredHost,
    key: str,
    things: Sequence[object],
    holders: dict[object, str],
    own: tuple[object, ...] = (),
) -> Iterator[Problem]:
    """Note who has a thing; find those that somebody has, or this host twice."""
    for number, thing in enumerate(things):
        if thing in own and thing not in things[:number]:
            continue
        holder = holders.setdefault(thing, "")
        if holder:
            has_it = "it is given twice" if holder == host.name else f"{holder} has it"
            yield declaration.problem(host, f"'{thing}': {has_it}", key, number)
        else:
            holders[thing] = host.name


def _conflicts_within(
    declaration: Declaration, host: DeclaredHost
) -> Iterator[Problem]:
    table = host.table
    users = table.users or ()
    for number, user in enumerate(users):
        if user in users[:number]:
            text = f"{user!r}: it is given twice"
            yield declaration.problem(host, text, "users", number)
    gateways = table.gateways or ()
    own = {each.address for each in table.addresses}
    for key, things in (
        ("gateways", gateways),
        ("public_addresses", table.public_addresses),
    ):
        for number, each in enumerate(things):
            if each.version in {other.version for other in things[:number]}:
                text = f"'{each}': give one of each family"
                yield declaration.problem(host, text, key, number)
            elif key == "gateways" and each in own:
                text = f"'{each}': it is the host's own address"
                yield declaration.problem(host, text, key, number)
    for number, resolver in enumerate(table.resolvers):
        if resolver in table.resolvers[:number]:
            text = f"'{resolver}': it is given twice"
            yield declaration.problem(host, text, "resolvers", number)
    if table.relay is not None and table.engine is not Engine.NATIVE:
        text = "an engine sends by itself; a relay is of the native one"
        yield declaration.problem(host, text, "relay")
    yield from _misfits_of_context(declaration, host)
    yield from _misfits_of_nat(declaration, host)


def _misfits_of_context(
    declaration: Declaration, host: DeclaredHost
) -> Iterator[Problem]:
    table = host.table
    if table.context is Context.ALIAS:
        for key in ("uplink", "mtu", "vlan"):
            if getattr(table, key) is not None:
                text = f"an alias has no {key} of its own; leave it out"
                yield declaration.problem(host, text, key)
    elif table.uplink is Uplink.ROUTED:
        if table.vlan is not None:
            text = "nothing is tagged on a routed uplink; leave it out"
            yield declaration.problem(host, text, "vlan")
        if table.gateways:
            text = "the machine is the router of a routed uplink; leave them out"
            yield declaration.problem(host, text, "gateways")


def _misfits_of_nat(declaration: Declaration, host: DeclaredHost) -> Iterator[Problem]:
    table = host.table
    nat = table.source_check is SourceCheck.NAT
    if nat and not table.public_addresses:
        text = "with nat, give the public_addresses that remotes see"
        yield declaration.problem(host, text, "source_check")
    elif table.public_addresses and not nat:
        text = 'they are seen behind NAT only; give source_check = "nat"'
        yield declaration.problem(host, text, "public_addresses")


# Writing ------------------------------------------------------------------------

HEAD = f"""\
#:schema ./{SCHEMA_FILE}
#
# The virtual hosts of this machine. Change what should be otherwise, then:
#     vnsmail apply --dry-run FILE    to see what would be done
#     vnsmail apply FILE              to have it done
# A host that is not in the file is destroyed. For an editor to know the keys:
#     vnsmail export --schema > {SCHEMA_FILE}
"""


def write(hosts: Iterable[tuple[VirtualHost, tuple[str, ...]]]) -> str:
    """Return a file that says that there are these hosts, with these users."""
    ordered = sorted(hosts, key=lambda each: each[0].name)
    return HEAD + "".join(_table(host, users) for host, users in ordered)


Value: TypeAlias = str | int | bool | list[str] | Mapping[str, int | str]
"""What a key of the file can have, as we write it."""


def entries(host: VirtualHost, users: tuple[str, ...]) -> dict[str, Value]:
    """Return the keys and values of a host's table; those that mean nothing are not."""
    found: dict[str, Value] = {
        "context": host.context.value,
        "addresses": [str(address) for address in host.addresses],
    }
    if len(host.domains) > 1:
        found["domains"] = list(host.domains[1:])
    if host.helo is not None:
        found["helo"] = host.helo
    found["link"] = host.link
    if host.uplink is not None:
        found["uplink"] = host.uplink.value
    if host.context is Context.NAMESPACE or host.gateways:
        found["gateways"] = [str(gateway) for gateway in host.gateways]
    if host.engine is not Engine.NATIVE:
        found["engine"] = host.engine.value
    check = host.source_check
    authentication = host.authentication
    limits = {key: n for key, n in asdict(host.limits).items() if n is not None}
    relay = {} if host.relay is None else asdict(host.relay)
    optional: dict[str, Value | None] = {
        "mtu": host.mtu,
        "vlan": host.vlan,
        "resolvers": [str(each) for each in host.resolvers],
        "source_check": None if check is SourceCheck.STRICT else check.value,
        "public_addresses": [str(each) for each in host.public_addresses],
        "authentication": (
            None if authentication is Authentication.MARK else authentication.value
        ),
        "limits": limits,
        # The password is never in the file.
        "relay": {key: text for key, text in relay.items() if text},
        "suspended": host.suspended,
    }
    found |= {key: value for key, value in optional.items() if value}
    found["users"] = list(users)
    return found


def _table(host: VirtualHost, users: tuple[str, ...]) -> str:
    lines = [f"\n[host.{quoted(host.name)}]"]
    lines += [f"{key} = {_written(v)}" for key, v in entries(host, users).items()]
    return "".join(f"{line}\n" for line in lines)


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return _array(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        pairs = (f"{key} = {_written(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return str(value)


def _array(values: list[str]) -> str:
    line = f"[{', '.join(map(quoted, values))}]"
    if len(line) <= 72:
        return line
    return "[\n" + "".join(f"    {quoted(value)},\n" for value in values) + "]"
