"""The format of hosts.toml, as pydantic checks it and editors know it. Pure.

Rules of this file: what a single key can have is checked here, in words that say what
to write; what two keys or two hosts have to do with each other is in declaration.py.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from vnsmail import model
from vnsmail.errors import BadInput
from vnsmail.model import (
    Authentication,
    Context,
    Engine,
    HostName,
    IPAddress,
    Limits,
    Relay,
    SourceAddress,
    SourceCheck,
    Uplink,
)

T = TypeVar("T")


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
_Helo = Annotated[
    HostName, *_words(model.domain_name, "A full host name.", "mx1.alpha.example")
]
_Gateway = Annotated[
    IPAddress, *_words(model.ip_address, "An address of a router.", "10.77.0.1")
]
_User = Annotated[str, *_words(_user, "What stands before the @.", "ann")]
_Link = Annotated[str, *_words(_link, "The name of a link.", "eth0")]
_Resolver = Annotated[
    IPAddress, *_words(model.ip_address, "An address of a name server.", "10.77.0.2")
]
_Public = Annotated[
    IPAddress, *_words(model.ip_address, "What remotes see.", "203.0.113.7")
]
_Count = Annotated[int, Field(strict=True, ge=1, le=2**53)]


class LimitsTable(BaseModel):
    """What a virtual host may use of the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages_per_hour: _Count | None = Field(
        default=None, description="Messages taken for sending in any hour."
    )
    connections: _Count | None = Field(
        default=None,
        description="Connections open at a time: those that come in, and those that "
        "go out.",
    )
    queue_bytes: _Count | None = Field(
        default=None, description="Octets of all the messages in its queue together."
    )

    @property
    def value(self) -> Limits:
        return Limits(self.messages_per_hour, self.connections, self.queue_bytes)


class RelayTable(BaseModel):
    """The server that all mail for others leaves by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: Annotated[
        str,
        *_words(
            model.server,
            "Name or [address] of the relay, with its port unless it is that of the "
            "settings. At port 465 TLS is spoken from the beginning.",
            "smtp.relay.example:587",
            "smtp.relay.example:465",
        ),
    ]
    user: str = Field(
        "",
        strict=True,
        description="Who signs in there; only within TLS, at a server that has proven "
        "who it is. The password is given with `vnsmail host relay`, or in a file.",
    )
    password_file: str = Field(
        "",
        strict=True,
        description="Absolute path of a file with the password, which nobody but root "
        "may read; without it vnsmail keeps the password.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            _ = self.value
        except BadInput as error:
            raise ValueError(error.remedy) from None
        return self

    @property
    def value(self) -> Relay:
        return model.relay(self.server, self.user, self.password_file)


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
    authentication: Authentication = Field(
        Authentication.MARK,
        description="What becomes of mail from strangers that may not be from whom it "
        "says: none, nothing is checked; mark, what was found is written on it; "
        "reject, and what its author's domain wants refused (DMARC) is refused.",
    )
    engine: Engine = Field(
        Engine.NATIVE,
        description="What sends its mail to other servers: native, ours; sendmail, "
        "postfix or exim, that mail server, run in its context.",
    )
    helo: _Helo | None = Field(
        None,
        description="What it calls itself in EHLO, greetings and trace headers; "
        "without it its name. The name its address has in DNS is best.",
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
        description="Routers for what leaves from its addresses, at most one a "
        "family. Without it a namespace has the machine's, where they fit, and an "
        "alias the machine's routes. [] is none.",
    )
    mtu: Annotated[int, Field(strict=True, ge=1280, le=65535)] | None = Field(
        None,
        description="Octets of the largest packet on the link of its namespace; "
        "without it as its uplink.",
    )
    vlan: Annotated[int, Field(strict=True, ge=1, le=4094)] | None = Field(
        None,
        description="Tag of its packets on the uplink (IEEE 802.1Q); without it none.",
    )
    resolvers: tuple[_Resolver, ...] = Field(
        (),
        max_length=8,
        description="Name servers that it asks from its own address; without it those "
        "of vnsmail.",
    )
    source_check: SourceCheck = Field(
        SourceCheck.STRICT,
        description="What is proven of the address its mail leaves from: strict, it "
        "is its own; nat, it is its own up to the uplink and a public one behind it; "
        "off, nothing.",
    )
    public_addresses: tuple[_Public, ...] = Field(
        (),
        max_length=2,
        description="What remotes see behind NAT, at most one a family.",
    )
    limits: LimitsTable = Field(
        default_factory=LimitsTable,
        description="What it may use; without it as much as there is.",
    )
    relay: RelayTable | None = Field(
        None,
        description="The server that its mail for others leaves by (a smart host); "
        "without it where DNS and the settings say.",
    )
    suspended: bool | None = Field(
        None,
        strict=True,
        description="Whether it neither sends nor receives. Without it that stays as "
        "it is.",
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
