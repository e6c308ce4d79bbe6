import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.broker import policy as opened
from vnsmail.broker.policy import (
    Connectable,
    EngineSocket,
    Listener,
    Policy,
    Resolver,
)
from vnsmail.broker.protocol import (
    HostGrant,
    OpenConnectable,
    OpenEngine,
    OpenListener,
    OpenResolver,
    OpenStore,
    Refused,
    Store,
    Unavailable,
)
from vnsmail.errors import BrokerRefused
from vnsmail.model import MACHINE, Family

ALPHA = HostGrant(
    "alpha.example", "vns-alpha", ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2")
)
BETA = HostGrant("beta.example", "", ("10.0.0.9",))
STORES = [Store("", "/run/all"), Store("alpha.example", "/run/alpha")]
THE_MACHINE = HostGrant(MACHINE, "", ())


@pytest.fixture
def policy():
    policy = Policy()
    policy.configure([25], ["10.0.0.53", "fd00::53"], STORES)
    policy.grant("w0", [ALPHA, BETA])
    policy.grant("wm", [THE_MACHINE])
    return policy


def kind(answer):
    assert isinstance(answer, Refused)
    return answer.kind


def test_a_connectable_is_bound_to_the_first_address_of_the_family(policy):
    decisions = [
        policy.decide("w0", OpenConnectable(1, "alpha.example", family))
        for family in (4, 6)
    ]

    assert [
        Connectable("vns-alpha", Family.IPV4, "10.0.0.1"),
        Connectable("vns-alpha", Family.IPV6, "fd00::1"),
    ] == decisions


def test_a_family_the_host_has_not_is_unavailable(policy):
    """It is no fault of the worker's, and no reason to use another family."""
    answer = policy.decide("w0", OpenConnectable(7, "beta.example", 6))

    expected = Unavailable(7, errno.EAFNOSUPPORT, "it has no IPv6 address", None)
    assert expected == answer


def test_the_machine_is_not_bound(policy):
    decision = policy.decide("wm", OpenConnectable(1, MACHINE, 6))

    assert Connectable("", Family.IPV6, None) == decision


def test_any_address_of_a_host_may_be_listened_on_however_it_is_written(policy):
    request = OpenListener(1, "alpha.example", "FD00:0::2", 25)

    expected = Listener("vns-alpha", Family.IPV6, "fd00::2", 25)
    assert expected == policy.decide("w0", request)


def test_a_configured_name_server_may_be_asked_by_everyone(policy):
    request = OpenResolver(1, "tcp", "10.0.0.53")

    expected = Resolver("tcp", Family.IPV4, "10.0.0.53")
    assert expected == policy.decide("nobody", request)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (OpenConnectable(1, "gamma.example", 4), "not_owned"),
        (OpenConnectable(1, MACHINE, 4), "not_owned"),
        (OpenListener(1, "gamma.example", "10.0.0.1", 25), "not_owned"),
        (OpenListener(1, "alpha.example", "10.0.0.9", 25), "no_such_address"),
        (OpenListener(1, "alpha.example", "0.0.0.0", 25), "malformed"),
        (OpenListener(1, "alpha.example", "::", 25), "malformed"),
        (OpenListener(1, "alpha.example", "::ffff:10.0.0.1", 25), "malformed"),
        (OpenListener(1, "alpha.example", "fd00::1%eth0", 25), "malformed"),
        (OpenListener(1, "alpha.example", "alpha", 25), "malformed"),
        (OpenListener(1, "alpha.example", "10.0.0.1", 2525), "port"),
        (OpenResolver(1, "udp", "10.0.0.54"), "server"),
        (OpenResolver(1, "udp", "nonsense"), "malformed"),
    ],
    ids=repr,
)
def test_what_was_not_granted_is_refused(policy, request_, expected):
    assert expected == kind(policy.decide("w0", request_))


def test_before_it_is_configured_nothing_may_be_listened_on_or_asked():
    policy = Policy()
    policy.grant("w0", [ALPHA])
    refused = [
        policy.decide("w0", OpenListener(1, "alpha.example", "10.0.0.1", 25)),
        policy.decide("w0", OpenResolver(2, "udp", "10.0.0.53")),
    ]

    assert ["port", "server"] == [kind(answer) for answer in refused]


def test_a_name_server_that_nobody_can_ask_keeps_none_from_asking_another():
    policy = Policy()
    policy.configure([25], ["0.0.0.0", "fe80::1%eth0", "nonsense", "10.0.0.53"])
    asked = [OpenResolver(1, "udp", text) for text in ("0.0.0.0", "10.0.0.53")]
    no, yes = (policy.decide("w0", request) for request in asked)

    assert "malformed" == kind(no)
    assert Resolver("udp", Family.IPV4, "10.0.0.53") == yes


def test_a_host_granted_to_another_worker_is_taken_from_the_first(policy):
    policy.grant("w1", [ALPHA])
    request = OpenConnectable(1, "alpha.example", 4)

    assert "not_owned" == kind(policy.decide("w0", request))
    assert isinstance(policy.decide("w1", request), Connectable)


def test_a_grant_replaces_what_the_host_had_before(policy):
    policy.grant("w0", [HostGrant("alpha.example", "", ("10.0.0.7",))])

    expected = Connectable("", Family.IPV4, "10.0.0.7")
    assert expected == policy.decide("w0", OpenConnectable(1, "alpha.example", 4))


def test_a_revoked_host_is_gone_and_the_others_stay(policy):
    policy.revoke("w0", "alpha.example")
    policy.revoke("w0", "never.example")
    policy.revoke("w9", "beta.example")

    gone = policy.decide("w0", OpenConnectable(1, "alpha.example", 4))
    stays = policy.decide("w0", OpenConnectable(1, "beta.example", 4))
    assert "not_owned" == kind(gone)
    assert isinstance(stays, Connectable)


def test_a_worker_that_is_attached_begins_with_nothing(policy):
    policy.attach("w0")

    answer = policy.decide("w0", OpenConnectable(1, "beta.example", 4))
    assert "not_owned" == kind(answer)


@pytest.mark.parametrize(
    "host",
    [
        HostGrant("alpha.example", "", ()),
        HostGrant("alpha.example", "", ("0.0.0.0",)),
        HostGrant("alpha.example", "", ("::",)),
        HostGrant("alpha.example", "", ("ff02::1",)),
        HostGrant("alpha.example", "", ("10.0.0",)),
        HostGrant("alpha.example", "../1/ns/net", ("10.0.0.1",)),
        HostGrant("alpha.example", "..", ("10.0.0.1",)),
        HostGrant("alpha.example", "a\n", ("10.0.0.1",)),
        HostGrant(MACHINE, "", ("10.0.0.1",)),
        HostGrant(MACHINE, "vns-alpha", ()),
    ],
    ids=repr,
)
def test_a_grant_that_cannot_be_changes_nothing(policy, host):
    """Above all a virtual host without addresses, whose sockets would be unbound."""
    with pytest.raises(BrokerRefused):
        policy.grant("w5", [HostGrant("gamma.example", "", ("10.0.0.8",)), host])

    before = policy.decide("w0", OpenConnectable(1, "alpha.example", 4))
    assert Connectable("vns-alpha", Family.IPV4, "10.0.0.1") == before
    answer = policy.decide("w5", OpenConnectable(1, "gamma.example", 4))
    assert "not_owned" == kind(answer)


@pytest.mark.parametrize(("worker", "host"), [("wm", ALPHA), ("w0", THE_MACHINE)])
def test_the_machine_and_a_virtual_host_are_never_granted_to_one_worker(
    policy, worker, host
):
    with pytest.raises(BrokerRefused):
        policy.grant(worker, [host])


# Whatever was said before -----------------------------------------------------

WORKERS = st.sampled_from(["w0", "w1", "wm"])
HOSTS = st.sampled_from(["alpha.example", "beta.example", MACHINE])
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"])
NAMESPACES = st.sampled_from(["", "one", "two"])
GRANTS = st.builds(
    HostGrant, HOSTS, NAMESPACES, st.lists(ADDRESSES, max_size=3).map(tuple)
)
STEPS = st.one_of(
    st.tuples(st.just("grant"), WORKERS, st.lists(GRANTS, max_size=3)),
    st.tuples(st.just("revoke"), WORKERS, HOSTS),
    st.tuples(st.just("attach"), WORKERS),
)
REQUESTS = st.one_of(
    st.builds(OpenConnectable, st.just(1), HOSTS, st.sampled_from([4, 6])),
    st.builds(OpenListener, st.just(1), HOSTS, ADDRESSES, st.sampled_from([25, 26])),
)


@given(st.lists(STEPS, max_size=30), WORKERS, REQUESTS)
def test_nothing_is_opened_but_what_was_granted_last(steps, worker, request):
    """A list of all grants ever made, read backwards, says the same."""
    policy = Policy()
    policy.configure([25], [])
    said = []
    for verb, *arguments in steps:
        try:
            getattr(policy, verb)(*arguments)
        except BrokerRefused:
            continue
        said.append((verb, *arguments))

    decision = policy.decide(worker, request)
    grant = last_grant(said, worker, request.owner)
    assert expected_of(grant, request) == allowed(decision)


def last_grant(said, worker, owner):
    for verb, who, *what in reversed(said):
        if verb == "grant":
            for grant in reversed(what[0]):
                if grant.name == owner:
                    return grant if who == worker else None
        elif who == worker and (verb == "attach" or what == [owner]):
            return None
    return None


def expected_of(grant, request):
    if grant is None:
        return None
    if isinstance(request, OpenListener):
        if request.port == 25 and request.address in grant.addresses:
            return grant.namespace, request.address
        return None
    if grant.name == MACHINE:
        return "", None
    for address in grant.addresses:
        if (":" in address) == (request.family == 6):
            return grant.namespace, address
    return None


def allowed(decision):
    if not isinstance(decision, Connectable | Listener):
        return None
    return decision.namespace, decision.source


@given(st.lists(STEPS, max_size=30), WORKERS, REQUESTS)
def test_only_the_machines_sockets_are_unbound(steps, worker, request):
    policy = Policy()
    for verb, *arguments in steps:
        try:
            getattr(policy, verb)(*arguments)
        except BrokerRefused:
            continue

    decision = policy.decide(worker, request)
    if isinstance(decision, Connectable) and decision.source is None:
        assert (request.owner, decision.namespace) == (MACHINE, "")


# Name servers of a host ---------------------------------------------------------------

ASKING = HostGrant(
    "asking.example",
    "vns-asking",
    ("10.0.0.7", "fd00::7"),
    5,
    ("10.0.0.54", "fd00::54"),
)


@pytest.fixture
def asking(policy):
    policy.grant("w0", [ALPHA, BETA, ASKING])
    return policy


@pytest.mark.parametrize(
    ("server", "source", "family"),
    [("10.0.0.54", "10.0.0.7", Family.IPV4), ("fd00::54", "fd00::7", Family.IPV6)],
)
def test_a_host_asks_its_own_servers_from_its_own_address(
    asking, server, source, family
):
    request = OpenResolver(1, "udp", server, "asking.example")

    expected = Resolver("udp", family, server, "vns-asking", source, 5)
    assert expected == asking.decide("w0", request)


@pytest.mark.parametrize(
    ("worker", "server", "owner", "why"),
    [
        ("w0", "10.0.0.53", "asking.example", "server"),
        ("w0", "10.0.0.54", "", "server"),
        ("w0", "10.0.0.54", "alpha.example", "server"),
        ("w1", "10.0.0.54", "asking.example", "not_owned"),
        ("w0", "10.0.0.54", "nobody.example", "not_owned"),
        ("wm", "10.0.0.54", MACHINE, "server"),
    ],
)
def test_nobody_elses_servers(asking, worker, server, owner, why):
    """Neither those of the machine as a host, nor those of a host as another."""
    assert why == kind(asking.decide(worker, OpenResolver(1, "tcp", server, owner)))


def test_a_server_of_a_family_the_host_has_not(policy):
    """It is not asked from elsewhere."""
    policy.grant("w0", [HostGrant("b.example", "", ("10.0.0.8",), 0, ("fd00::54",))])
    answer = policy.decide("w0", OpenResolver(3, "udp", "fd00::54", "b.example"))

    expected = Unavailable(3, errno.EAFNOSUPPORT, "it has no IPv6 address", None)
    assert expected == answer


def test_the_machine_has_no_servers_of_its_own(policy):
    with pytest.raises(BrokerRefused):
        policy.grant("wm", [HostGrant(MACHINE, "", (), 0, ("10.0.0.54",))])


def test_which_namespace_it_is_goes_along():
    """Every socket of a host is opened in the namespace that was made for it."""
    policy = Policy()
    policy.configure([25], ["192.0.2.53"])
    grant = HostGrant("a.example", "vns-a", ("10.0.0.1",), 0, ("10.0.0.53",), 77)
    policy.grant("w", [grant])
    found = [
        policy.decide("w", OpenConnectable(1, "a.example", 4)),
        policy.decide("w", OpenListener(2, "a.example", "10.0.0.1", 25)),
    ]

    opened = [each for each in found if isinstance(each, Connectable | Listener)]
    assert [77, 77] == [opening.identity for opening in opened]


def test_an_engine_is_reached_by_who_owns_its_host(policy):
    """Where it is, the grant says; the worker does not."""
    engine = HostGrant("gamma.example", "", ("10.0.0.7",), engine="/run/vnsmail/e/1")
    policy.grant("w0", [engine])
    request = OpenEngine(1, "gamma.example")

    assert EngineSocket("/run/vnsmail/e/1") == policy.decide("w0", request)
    assert kind(policy.decide("wm", request)) == "not_owned"
    assert kind(policy.decide("w0", OpenEngine(2, "beta.example"))) == "server"


def test_the_machine_has_no_engine(policy):
    with pytest.raises(BrokerRefused):
        policy.grant("wm", [HostGrant(MACHINE, "", (), engine="/run/x")])


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        ("alpha.example", "/run/alpha"),
        ("alpha.example", "/run/all"),
        ("beta.example", "/run/all"),
    ],
)
def test_a_store_of_the_settings(policy, owner, path):
    assert policy.decide("w0", OpenStore(1, owner, path)) == opened.Store(path)


@pytest.mark.parametrize(
    ("worker", "owner", "path", "expected"),
    [
        ("w0", "beta.example", "/run/alpha", "store"),
        ("w0", "alpha.example", "/run/../run/alpha", "store"),
        ("w0", "alpha.example", "/run/docker.sock", "store"),
        ("wm", "alpha.example", "/run/alpha", "not_owned"),
    ],
)
def test_no_other_socket_of_the_machine(policy, worker, owner, path, expected):
    """A path is one of the settings, letter by letter, or it is nobody's."""
    assert kind(policy.decide(worker, OpenStore(1, owner, path))) == expected
