"""The lab's name server, question in and answer out."""

import dns.flags
import dns.message
import dns.rcode
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.directory import Directory
from vnsmail.lab.nameserver import MAX_UDP, NameServer
from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost
from vnsmail.settings import layout


@pytest.fixture(scope="module")
def directory_file(tmp_path_factory):
    """A directory with one host of two domains."""
    path = tmp_path_factory.mktemp("lab") / "directory.db"
    directory = Directory(path)
    host = VirtualHost(
        name=HostName("alpha.example"),
        context=Context.NAMESPACE,
        addresses=(
            SourceAddress.parse("10.77.0.11/24"),
            SourceAddress.parse("fd77::11/64"),
        ),
        domains=(HostName("alpha.example"), HostName("shop.example")),
        link="lan0",
        uplink=Uplink.BRIDGE,
    )
    directory.add_host(host)
    directory.activate(host.name)
    directory.close()
    return path


@pytest.fixture(scope="module")
def server(directory_file):
    return NameServer(layout(directory_file.parent))


def ask(server, name, record, limit=MAX_UDP):
    question = dns.message.make_query(name, record)
    wire = server.respond(question.to_wire(), limit=limit)
    answer = dns.message.from_wire(wire)
    assert question.is_response(answer)
    return answer


def values(server, name, record):
    return [str(value) for rrset in ask(server, name, record).answer for value in rrset]


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("alpha.example", "A", ["10.77.0.11"]),
        ("ALPHA.example", "AAAA", ["fd77::11"]),
        ("alpha.example", "MX", ["10 alpha.example."]),
        ("shop.example", "MX", ["10 alpha.example."]),
        ("shop.example", "TXT", ['"v=spf1 ip4:10.77.0.11 ip6:fd77::11 -all"']),
        ("11.0.77.10.in-addr.arpa", "PTR", ["alpha.example."]),
        ("north.example", "MX", ["10 mx1.north.example."]),
        ("mx1.north.example", "A", ["10.77.0.3"]),
        ("mx2.south.example", "AAAA", []),
        ("machine.example", "A", ["10.77.0.1"]),
        ("1.0.77.10.in-addr.arpa", "PTR", ["machine.example."]),
    ],
)
def test_records(server, name, record, expected):
    """Nodes are known from the topology, virtual hosts from the directory."""
    assert expected == values(server, name, record)


def test_forward_and_reverse_agree(server):
    """The name of each address of a host is the host's, in both families."""
    for address, record in (("10.77.0.11", "A"), ("fd77::11", "AAAA")):
        pointer = dns.reversename.from_address(address).to_text()
        (name,) = values(server, pointer, "PTR")

        assert [address] == values(server, name, record)


def test_a_name_that_is_not_there(server):
    """It does not exist, and the answer may be kept for a short time only."""
    answer = ask(server, "nobody.example", "A")

    assert dns.rcode.NXDOMAIN == answer.rcode()
    assert answer.flags & dns.flags.AA
    assert answer.authority[0].ttl <= 5


def test_a_name_with_other_records(server):
    """It exists: no answer is not the same as no such name (RFC 2308)."""
    answer = ask(server, "alpha.example", "SRV")

    assert dns.rcode.NOERROR == answer.rcode()
    assert not answer.answer
    assert dns.rcode.NOERROR == ask(server, "example", "MX").rcode()


def test_hosts_made_later_are_known(tmp_path):
    """The directory is read anew: nobody restarts a name server for a new host."""
    server = NameServer(layout(tmp_path))
    before = ask(server, "beta.example", "A")
    directory = Directory(tmp_path / "directory.db")
    host = VirtualHost(
        name=HostName("beta.example"),
        context=Context.ALIAS,
        addresses=(SourceAddress.parse("10.77.0.12/24"),),
        domains=(HostName("beta.example"),),
        link="lan0",
    )
    directory.add_host(host)
    directory.activate(host.name)
    directory.close()

    assert dns.rcode.NXDOMAIN == before.rcode()
    assert ["10.77.0.12"] == values(server, "beta.example", "A")


def test_long_answers_are_truncated(tmp_path):
    """An answer that does not fit says so, and the client asks over TCP."""
    addresses = tuple(SourceAddress.parse(f"10.77.0.{n}/24") for n in range(11, 71))
    directory = Directory(tmp_path / "directory.db")
    name = HostName("many.example")
    host = VirtualHost(name, Context.ALIAS, addresses, (name,), "lan0")
    directory.add_host(host)
    directory.activate(name)
    directory.close()
    server = NameServer(layout(tmp_path))
    answer = ask(server, "many.example", "A", limit=512)

    assert answer.flags & dns.flags.TC
    assert not answer.answer
    assert 60 == len(values(server, "many.example", "A"))
    assert "ip4:10.77.0.70 -all" in "".join(values(server, "many.example", "TXT"))


def test_a_damaged_directory(tmp_path):
    """Nothing can be said for now, which is not that a name does not exist."""
    path = tmp_path / "directory.db"
    path.write_bytes(b"not a database" * 100)

    assert (
        dns.rcode.SERVFAIL
        == ask(NameServer(layout(path.parent)), "alpha.example", "A").rcode()
    )


def test_answers_are_not_answered(server):
    """Two servers must not go on answering each other."""
    question = dns.message.make_query("alpha.example", "A")
    wire = dns.message.make_response(question).to_wire()

    assert server.respond(wire, limit=MAX_UDP) is None


@given(wire=st.binary(max_size=200))
def test_any_bytes(directory_file, wire):
    """What is no question gets no answer, and ends nothing."""
    answer = NameServer(layout(directory_file.parent)).respond(wire, limit=MAX_UDP)

    assert answer is None or dns.message.from_wire(answer).id is not None
