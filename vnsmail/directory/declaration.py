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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from vnsmail import model
from vnsmail.directory.toml_lines import Path, dotted, find_lines, nearest, quoted
from vnsmail.errors import BadInput, VnsmailError
from vnsmail.model import (
    Context,
    HostName,
    IPAddress,
    SourceAddress,
    Uplink,
    VirtualHost,
)

SCHEMA_FILE = "hosts.schema.json"
"""Where an editor looks for the schema: beside the file."""

T = TypeVar("T")


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


# The format ---------------------------------------------------------------------


def _words(
    parse: Callable[[str], T], description: str, *examples: str
) -> tuple[PlainValidator, WithJsonSchema]:
    """Return how a word of the file becomes a value, and what the schema says of it."""

    def understood(value: object) -> T:
        if not isinstance(value, str):
            message = "put it in quotes"
            raise ValueError(message)  # noqa: TRY004  what pydantic collects
        try:
            return parse(value)
        except BadInput as error:
            raise ValueError(error.remedy) from None

    schema = {"type": "string", "description": description, "examples": [*examples]}
    return PlainValidator(understood), WithJsonSchema(schema)


def _user(text: str) -> str:
    return model.local_part(text.lower())


def _link(text: str) -> str:
    if not text or len(text.encode()) > 15 or re.search(r"[\s/]", text):  # IFNAMSIZ
        raise BadInput("link", text, "write the name that `ip link` shows")
    return text


_Address = Annotated[
    SourceAddress,
    *_words(
        SourceAddress.parse,
        "An address with the prefix length of its network.",
        "10.77.0.11/24",
        "fd77::11/64",
    ),
]
_Domain = Annotated[
    HostName, *_words(model.domain_name, "A domain name.", "mail.alpha.example")
]
_Gateway = Annotated[
    IPAddress, *_words(model.ip_address, "An address of a router.", "10.77.0.1")
]
_User = Annotated[str, *_words(_user, "What stands before the @.", "ann")]
_Link = Annotated[str, *_words(_link, "The name of a link.", "eth0")]


class HostTable(BaseModel):
    """A virtual host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    addresses: tuple[_Address, ...] = Field(
        min_length=1,
        description="Its own addresses, IPv4 or IPv6. The first of each family is the "
        "one its mail leaves from.",
    )
    context: Context = Field(
        Context.NAMESPACE,
        description="Where its sockets live: namespace, a network namespace of its "
        "own; alias, an address on a link of the machine.",
    )
    domains: tuple[_Domain, ...] = Field(
        (), description="Further domains whose mail it takes; its name is the first."
    )
    link: _Link | None = Field(
        None, description="Link of the machine; without it the one in its network."
    )
    uplink: Uplink | None = Field(
        None,
        description="How its namespace reaches the network; without it as fits the "
        "link.",
    )
    gateways: tuple[_Gateway, ...] | None = Field(
        None,
        max_length=2,
        description="Routers of its namespace, at most one a family; without it the "
        "machine's, where they fit. [] is none.",
    )
    users: tuple[_User, ...] | None = Field(
        None,
        description="Who has a mailbox. Without it, users are left as they are. [] is "
        "nobody.",
    )


class HostsFile(BaseModel):
    """All virtual hosts of a vnsmail installation."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="vnsmail hosts")

    host: dict[str, HostTable] = Field(
        default_factory=dict,
        description="A table for each virtual host, by its full name.",
    )


def schema() -> dict[str, Any]:
    """Return the JSON schema of the format, for editors."""
    made: dict[str, Any] = _without_null(HostsFile.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _without_null(part: Any) -> Any:  # noqa: ANN401  any JSON
    """Return a schema without the null that TOML does not have."""
    if isinstance(part, list):
        return [_without_null(each) for each in part]
    if not isinstance(part, dict):
        return part
    rest = {key: _without_null(value) for key, value in part.items()}
    if rest.get("default", "") is None:
        del rest["default"]
    choices = [each for each in rest.get("anyOf", ()) if each != {"type": "null"}]
    if len(choices) == 1:
        del rest["anyOf"]
        rest = {**choices[0], **rest}
    return rest


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
            known = HostTable.model_fields if len(path) > 1 else HostsFile.model_fields
            text = f"there is no such key; there is {', '.join(known)}"
        elif each["type"] in _IN_OUR_WORDS:
            text = _IN_OUR_WORDS[each["type"]].format(**each.get("ctx", {}))
        if isinstance(given, str):
            text = f"{given!r}: {text}"
        yield Problem(nearest(lines, path), dotted(path), text)


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
    for number, gateway in enumerate(gateways):
        if gateway.version in {each.version for each in gateways[:number]}:
            text = f"'{gateway}': give one of each family"
            yield declaration.problem(host, text, "gateways", number)
        elif gateway in {each.address for each in table.addresses}:
            text = f"'{gateway}': it is the host's own address"
            yield declaration.problem(host, text, "gateways", number)
    if table.context is Context.ALIAS:
        if table.uplink is not None:
            text = "an alias has no uplink; leave it out"
            yield declaration.problem(host, text, "uplink")
        if gateways:
            text = "an alias has no routers of its own; leave them out"
            yield declaration.problem(host, text, "gateways")


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


def entries(host: VirtualHost, users: tuple[str, ...]) -> dict[str, str | list[str]]:
    """Return the keys and values of a host's table; those that mean nothing are not."""
    found: dict[str, str | list[str]] = {
        "context": host.context.value,
        "addresses": [str(address) for address in host.addresses],
    }
    if len(host.domains) > 1:
        found["domains"] = list(host.domains[1:])
    found["link"] = host.link
    if host.uplink is not None:
        found["uplink"] = host.uplink.value
    if host.context is Context.NAMESPACE:
        found["gateways"] = [str(gateway) for gateway in host.gateways]
    found["users"] = list(users)
    return found


def _table(host: VirtualHost, users: tuple[str, ...]) -> str:
    lines = [f"\n[host.{quoted(host.name)}]"]
    for key, value in entries(host, users).items():
        written = quoted(value) if isinstance(value, str) else _array(value)
        lines.append(f"{key} = {written}")
    return "".join(f"{line}\n" for line in lines)


def _array(values: list[str]) -> str:
    line = f"[{', '.join(map(quoted, values))}]"
    if len(line) <= 72:
        return line
    return "[\n" + "".join(f"    {quoted(value)},\n" for value in values) + "]"
