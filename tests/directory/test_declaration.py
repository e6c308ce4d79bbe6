import dataclasses
import json
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnsmail.directory import declaration
from vnsmail.directory.declaration import HostTable, Misfits, Problem, parse, write
from vnsmail.errors import BadInput
from vnsmail.model import (
    Authentication,
    Context,
    HostName,
    Limits,
    SourceAddress,
    SourceCheck,
    Uplink,
    VirtualHost,
    local_part,
)

ALPHA = HostName("alpha.example")
SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "hosts.schema.json"


def problems(text):
    with pytest.raises(Misfits) as refused:
        parse(text)
    return [(p.line, p.key, p.text) for p in refused.value.problems]


# Reading -------------------------------------------------------------------------


def test_all_that_can_be_said():
    """Each key becomes the value it stands for."""
    (host,) = parse(
        """
        [host."Alpha.Example."]
        context = "namespace"
        addresses = ["10.77.0.11/24", "FD77::11/64"]
        domains = ["Mail.Alpha.Example", "alpha.example"]
        link = "br0"
        uplink = "bridge"
        gateways = ["10.77.0.1", "fd77::1"]
        users = ["Ann", "bob"]
        """
    ).hosts

    assert (ALPHA, "Alpha.Example.") == (host.name, host.written)
    assert (ALPHA, "mail.alpha.example") == host.domains
    assert ["10.77.0.11/24", "fd77::11/64"] == [str(a) for a in host.table.addresses]
    assert (ip_address("10.77.0.1"), ip_address("fd77::1")) == host.table.gateways
    assert ("ann", "bob") == host.table.users
    assert (Context.NAMESPACE, Uplink.BRIDGE) == (host.table.context, host.table.uplink)


def test_what_is_not_said():
    """A table that says nothing but addresses is a namespace; the rest is left open."""
    (host,) = parse('host."alpha.example" = {addresses = ["10.77.0.11/24"]}').hosts
    table = host.table

    assert Context.NAMESPACE is table.context
    assert (ALPHA,) == host.domains
    assert {None} == {table.link, table.uplink, table.gateways, table.users}


def test_a_file_without_hosts():
    """Nothing is said, and there is nothing wrong with that."""
    assert () == parse("# all gone\n").hosts == parse("[host]\n").hosts


def table(*lines):
    return "\n".join(['[host."alpha.example"]', 'addresses = ["10.0.0.1/24"]', *lines])


TWO = """\
[host."alpha.example"]
addresses = ["10.0.0.1/24"]
domains = ["one.example"]
[host."beta.example"]
"""

A, B = 'host."alpha.example"', 'host."beta.example"'

WRONG = {
    "no TOML": ("a =\n", 1, "", "this is not TOML: invalid value"),
    "no end": ("# x\na = [1,\n", 3, "", "this is not TOML: "),
    "twice the same table": (
        '[host."a.b"]\n[host."a.b"]\n',
        2,
        "",
        "this is not TOML: cannot declare",
    ),
    "another table": ("[hosts]\n", 1, "hosts", "there is no such key; there is host"),
    "a list of hosts": ("[[host]]\n", 1, "host", "write tables such as"),
    "no table": ('[host]\n"a.b" = 3\n', 2, 'host."a.b"', "write it as a table"),
    "a bare name": (
        '[host.a]\naddresses=["10.0.0.1"]',
        1,
        "host.a",
        "give a full name",
    ),
    "no address": ('[host."a.b"]', 1, 'host."a.b".addresses', "give at least one"),
    "an empty list": (
        '[host."a.b"]\n\naddresses = []',
        3,
        'host."a.b".addresses',
        "give at least one",
    ),
    "no list": (
        '[host."a.b"]\naddresses = "10.0.0.1"',
        2,
        'host."a.b".addresses',
        "'10.0.0.1': write it as a list",
    ),
    "an unknown key": (table("adress = 1"), 3, f"{A}.adress", "there is no such key"),
    "a bad address": (
        '[host."alpha.example"]\naddresses = [\n "10.0.0.1/24",\n "10.0.0.300"\n]',
        4,
        f"{A}.addresses[1]",
        "'10.0.0.300': write it as 10.77.0.11/24",
    ),
    "a number": (table("link = 3"), 3, f"{A}.link", "put it in quotes"),
    "a bad link": (table('link = "a b"'), 3, f"{A}.link", "'a b': write the name"),
    "a bad context": (
        table('context = "jail"'),
        3,
        f"{A}.context",
        "'jail': choose 'namespace' or 'alias'",
    ),
    "a bad user": (table('users = ["a b"]'), 3, f"{A}.users[0]", "'a b': before the @"),
    "a user twice": (
        table('users = ["Ann", "ann"]'),
        3,
        f"{A}.users[1]",
        "'ann': it is given twice",
    ),
    "an address twice": (
        '[host."alpha.example"]\naddresses = ["10.0.0.1/24", "10.0.0.1/16"]',
        2,
        f"{A}.addresses[1]",
        "'10.0.0.1': it is given twice",
    ),
    "a domain twice": (
        table('domains = ["x.example", "X.example"]'),
        3,
        f"{A}.domains[1]",
        "'x.example': it is given twice",
    ),
    "an address of another": (
        TWO + 'addresses = ["10.0.0.2/24", "10.0.0.1/24"]',
        5,
        f"{B}.addresses[1]",
        "'10.0.0.1': alpha.example has it",
    ),
    "a domain of another": (
        TWO + 'addresses = ["10.0.0.2"]\ndomains = ["one.example"]',
        6,
        f"{B}.domains[0]",
        "'one.example': alpha.example has it",
    ),
    "the name of another as domain": (
        TWO + 'addresses = ["10.0.0.2"]\ndomains = ["alpha.example"]',
        6,
        f"{B}.domains[0]",
        "'alpha.example': alpha.example has it",
    ),
    "a name in two spellings": (
        TWO
        + 'addresses = ["10.0.0.2"]\n[host."ALPHA.example"]\naddresses=["10.0.0.3"]',
        6,
        'host."ALPHA.example"',
        '"alpha.example" is the same host',
    ),
    "two routers": (
        table('gateways = ["10.0.0.8", "10.0.0.9"]'),
        3,
        f"{A}.gateways[1]",
        "'10.0.0.9': give one of each family",
    ),
    "itself as router": (
        table('gateways = ["10.0.0.1"]'),
        3,
        f"{A}.gateways[0]",
        "'10.0.0.1': it is the host's own address",
    ),
    "an alias with an uplink": (
        table('context = "alias"', 'uplink = "bridge"'),
        4,
        f"{A}.uplink",
        "an alias has no uplink",
    ),
    "an alias with a tag": (
        table('context = "alias"', "vlan = 7"),
        4,
        f"{A}.vlan",
        "an alias has no vlan",
    ),
    "a tag that is none": (table("vlan = 4095"), 3, f"{A}.vlan", "Input should be"),
    "packets too small for IPv6": (
        table("mtu = 1000"),
        3,
        f"{A}.mtu",
        "Input should be",
    ),
    "a routed uplink with a router": (
        table('uplink = "routed"', 'gateways = ["10.0.0.9"]'),
        4,
        f"{A}.gateways",
        "the machine is the router",
    ),
    "nat without a public address": (
        table('source_check = "nat"'),
        3,
        f"{A}.source_check",
        "with nat, give the public_addresses",
    ),
    "a public address without nat": (
        table('public_addresses = ["192.0.2.1"]'),
        3,
        f"{A}.public_addresses",
        "they are seen behind NAT only",
    ),
    "two public addresses": (
        table('source_check = "nat"', 'public_addresses = ["192.0.2.1", "192.0.2.2"]'),
        4,
        f"{A}.public_addresses[1]",
        "'192.0.2.2': give one of each family",
    ),
    "a limit that nobody knows": (
        table("limits = { messages = 5 }"),
        3,
        f"{A}.limits.messages",
        "there is no such key; there is messages_per_hour, connections, queue_bytes",
    ),
    "a limit of nothing": (
        table("limits = { connections = 0 }"),
        3,
        f"{A}.limits.connections",
        "Input should be",
    ),
    "a name server twice": (
        table('resolvers = ["10.0.0.5", "10.0.0.5"]'),
        3,
        f"{A}.resolvers[1]",
        "'10.0.0.5': it is given twice",
    ),
    "suspended in words": (
        table('suspended = "yes"'),
        3,
        f"{A}.suspended",
        "'yes': Input should be a valid boolean",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case):
    """Whatever is wrong has its line and key, and words for it."""
    text, line, key, said = WRONG[case]
    ((found_line, found_key, found_text),) = problems(text)

    assert (line, key) == (found_line, found_key)
    assert found_text.startswith(said)
    assert "\n" not in found_text


@pytest.mark.parametrize("depth", [50, 300, 100_000])
def test_nested_deeply(depth):
    """However deep it is, it is told in words."""
    (_, key, said) = problems(f"a = {'[' * depth}{']' * depth}")[0]

    assert (key, said) in {
        ("a", "there is no such key; there is host"),
        ("", "it is nested too deeply"),
    }


def test_all_at_once():
    """What is wrong in several places is told of each, from the top."""
    found = problems(
        '[host."b.example"]\naddresses = ["x", 3]\n'
        '[host."a.example"]\nlink = ""\naddresses = ["10.0.0.1"]\nfoo = 1\n'
    )

    assert [2, 2, 4, 6] == [line for line, _, _ in found]


@given(st.text('[]="{}., \nhost"ab1\\', max_size=40))
def test_any_text(text):
    """Any text is a declaration or a list of problems."""
    found: tuple[Problem, ...] = (Problem(1, "", ""),)
    try:
        parse(text)
    except Misfits as error:
        found = error.problems
    assert found
    assert all(problem.line >= 1 for problem in found)


# Writing -------------------------------------------------------------------------

LABELS = st.from_regex("[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
NAMES = st.builds("{}.{}.example".format, LABELS, LABELS).map(HostName)
IPV4 = st.integers(0x0A000001, 0x0AFFFFFE).map(IPv4Address)
IPV6 = st.integers(0xFD << 120, (0xFE << 120) - 1).map(IPv6Address)
LOCAL_PARTS = st.text("abz09!#$%&'*+=?^_`{|}~-.", min_size=1, max_size=9)


def is_local_part(text):
    try:
        return bool(local_part(text))
    except BadInput:
        return False


@st.composite
def hosts(draw):
    """Draw hosts as a directory can have them: nothing is claimed twice."""
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    owners = names[: len(names) // 3 + 1]
    addresses = iter(draw(st.lists(IPV4 | IPV6, min_size=12, max_size=12, unique=True)))
    found: list[tuple[VirtualHost, tuple[str, ...]]] = []
    for name in owners:
        context = draw(st.sampled_from(Context))
        inside = context is Context.NAMESPACE
        domains = names[len(owners) :][len(found) :: len(owners)]
        users = draw(
            st.lists(LOCAL_PARTS.filter(is_local_part), max_size=3, unique=True)
        )
        gateway = draw(st.sampled_from([(), (ip_address("192.0.2.1"),)]))
        count = draw(st.integers(1, 3))
        host = VirtualHost(
            name=name,
            context=context,
            addresses=tuple(
                SourceAddress(address, address.max_prefixlen)
                for address, _ in zip(addresses, range(count), strict=False)
            ),
            domains=(name, *domains),
            link=draw(st.sampled_from(["eth0", "br-lan", "wan.7", "b\u00fcro"])),
            uplink=draw(st.sampled_from(Uplink)) if inside else None,
            gateways=gateway,
            mtu=draw(st.none() | st.integers(1280, 65535)) if inside else None,
            resolvers=draw(st.sampled_from([(), (ip_address("192.0.2.2"),)])),
            limits=draw(st.builds(Limits, *[st.none() | st.integers(1, 2**53)] * 3)),
            suspended=draw(st.booleans()),
            helo=draw(st.sampled_from([None, name, *domains])),
            authentication=draw(st.sampled_from(Authentication)),
        )
        if host.uplink is Uplink.ROUTED:
            host = replace(host, gateways=())
        elif inside:
            host = replace(host, vlan=draw(st.none() | st.integers(1, 4094)))
        if draw(st.booleans()):
            host = replace(
                host,
                source_check=SourceCheck.NAT,
                public_addresses=(ip_address("203.0.113.7"),),
            )
        found.append((host, tuple(sorted(users))))
    return sorted(found, key=lambda pair: pair[0].name)


@settings(max_examples=20)
@given(hosts())
def test_round_trip(listed):
    """What is written is read back as it was, every fact of it."""
    declared = parse(write(listed)).hosts
    read = [
        (
            VirtualHost(
                name=host.name,
                context=host.table.context,
                addresses=host.table.addresses,
                domains=host.domains,
                link=host.table.link or "",
                uplink=host.table.uplink,
                gateways=host.table.gateways or (),
                mtu=host.table.mtu,
                vlan=host.table.vlan,
                resolvers=host.table.resolvers,
                source_check=host.table.source_check,
                public_addresses=host.table.public_addresses,
                limits=host.table.limits.value,
                suspended=host.table.suspended or False,
                helo=host.table.helo,
                authentication=host.table.authentication,
            ),
            host.table.users,
        )
        for host in declared
    ]

    assert listed == read


@settings(max_examples=10)
@given(hosts(), st.randoms())
def test_the_order_is_stable(listed, random):
    """The same hosts are the same file, in whatever order they come."""
    mixed = list(listed)
    random.shuffle(mixed)

    assert write(listed) == write(mixed)


def test_written():
    """The file says what it is and what can be done with it."""
    host = VirtualHost(
        ALPHA,
        Context.NAMESPACE,
        (SourceAddress.parse("10.77.0.11/24"),),
        (ALPHA, HostName("mail.alpha.example")),
        "br0",
        Uplink.BRIDGE,
        (),
    )
    text = write([(host, tuple(f"user{n:03}" for n in range(9)))])

    assert text.startswith("#:schema ./hosts.schema.json\n#\n# The virtual hosts of ")
    assert (
        """

[host."alpha.example"]
context = "namespace"
addresses = ["10.77.0.11/24"]
domains = ["mail.alpha.example"]
link = "br0"
uplink = "bridge"
gateways = []
users = [
    "user000",
    "user001","""
        in text
    )


# The format ----------------------------------------------------------------------


def test_the_published_schema():
    """The schema in the documentation is that of the code."""
    assert declaration.schema() == json.loads(SCHEMA.read_text())


def test_the_schema_knows_every_key():
    """An editor is told each key, that nothing else is one, and what a file may lack."""
    schema = declaration.schema()
    tables = schema["$defs"]["HostTable"]

    assert set(HostTable.model_fields) == set(tables["properties"])
    assert tables["additionalProperties"] is schema["additionalProperties"] is False
    assert ["addresses"] == tables["required"]
    assert "null" not in json.dumps(schema)


def test_no_fact_of_a_host_is_missing():
    """Whatever a virtual host has, a file can say."""
    facts = {field.name for field in dataclasses.fields(VirtualHost)}

    assert facts - {"name"} | {"users"} == set(HostTable.model_fields)


def test_misfits_in_one_line():
    """The error itself has words too."""
    error = Misfits((Problem(3, "host", "no"), Problem(4, "host.x", "never")))

    assert "line 3: host: no; line 4: host.x: never" == str(error)
    assert tomllib.loads(declaration.HEAD) == {}


@pytest.mark.parametrize("helo", ["beta.example", "b.example", "mx.b.example"])
def test_a_name_to_say_that_is_anothers(helo):
    """Nobody could tell the two apart by what they say."""
    text = (
        '[host."beta.example"]\naddresses = ["10.77.0.12"]\ndomains = ["b.example"]\n'
        'helo = "mx.b.example"\n[host."alpha.example"]\naddresses = ["10.77.0.11"]\n'
        f'helo = "{helo}"\n'
    )
    with pytest.raises(Misfits) as caught:
        parse(text)

    (problem,) = caught.value.problems
    assert (7, 'host."alpha.example".helo') == (problem.line, problem.key)
    assert f"{helo!r}: beta.example has it" == problem.text
