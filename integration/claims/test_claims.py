"""Each claim of the invention, one test each, on what one running system showed.

Nothing here is asked of the product: packets, what the remotes wrote, system calls and
files decide. Claim 5, which is about Sendmail, is in test_engines.py, real MTAs as the
remotes of claim 2 in test_mtas.py, the load of claim 33 in test_claim_33.py.
"""

import json
import re
from ipaddress import ip_address

from integration.claims.scene import (
    ACCOUNT_UID,
    HOSTS,
    MACHINE,
    NORTH,
    NORTH_ADDRESSES,
    OTHER_SOURCE,
    SOUTH,
    SOUTH_ADDRESSES,
    STRANGER_UID,
)

ALL_OF_HOSTS = {address for own in HOSTS.values() for address in own} | {"10.77.0.16"}


def syns(seen, targets):
    """Return the connection requests to some addresses."""
    return [p for p in seen.packets if p.syn and p.port == 25 and p.target in targets]


def data(seen, source):
    """Return the segments with something in them from an address to port 25."""
    return [p for p in seen.packets if p.source == source and p.port == 25 and p.length]


def connects(seen):
    """Return, for each connect to port 25, its target and what was bound before."""
    bound: dict[str, str] = {}
    found = []
    for call in seen.calls:
        address = re.search(
            r'sin_addr=inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', call.text
        )
        where = (address[1] or address[2]) if address else ""
        if call.name == "bind":
            bound[call.inode] = where
        elif "htons(25)" in call.text:
            found.append((where, bound.get(call.inode, ""), call))
    return found


def of_machine(seen):
    return [c for c in connects(seen) if c[1] == ""]


def of_hosts(seen):
    return [c for c in connects(seen) if c[1]]


def peers(seen, subject, domain=""):
    """Return HELO, reverse name and address that remotes wrote down."""
    found = [letter.peer for letter in seen.letter(subject, domain)]
    assert found, f"no message {subject!r} came"
    return found


def named_after(seen, host, domain=SOUTH):
    """Say whether the remote wrote the host's own name, twice, and address."""
    return all(
        helo == host and reverse == host and address in HOSTS[host]
        for helo, reverse, address in peers(seen, f"from {host}", domain)
    )


def shows_of_each_host(seen, shows):
    for host, own in HOSTS.items():
        first = next(p for p in syns(seen, SOUTH_ADDRESSES) if p.source in own)
        shows(f"{host}: {first}")


# 1 to 11: a host of virtual computer systems ----------------------------------------


def test_claim_01_machine(seen, shows):
    """The machine's socket was not bound, and its packets carry the machine's address."""
    mine = of_machine(seen)
    sources = {
        p.source for p in syns(seen, NORTH_ADDRESSES | SOUTH_ADDRESSES)
    } - ALL_OF_HOSTS

    assert mine
    assert set(MACHINE) | {*OTHER_SOURCE} >= sources
    assert data(seen, MACHINE[0])
    assert len(mine) == len(
        [
            p
            for p in syns(seen, NORTH_ADDRESSES | SOUTH_ADDRESSES)
            if p.source in MACHINE
        ]
    )
    first = next(p for p in syns(seen, SOUTH_ADDRESSES) if p.source in MACHINE)
    shows(f"not bound, then connected to [{mine[0][0]}]:25", str(first))


def test_claim_01_hosts(seen, shows):
    """Each host's socket was bound to its address before connect, and carries it."""
    bound = {address for _, address, _ in of_hosts(seen)}

    for host, own in HOSTS.items():
        assert bound & set(own), host
        assert [p for p in syns(seen, SOUTH_ADDRESSES) if p.source == own[0]], host
        assert data(seen, own[0]), host
    for target, address, call in of_hosts(seen):
        assert address in ALL_OF_HOSTS, call
        assert ip_address(target).version == ip_address(address).version
    target, address, call = of_hosts(seen)[0]
    shows(f"bound to {address}, then connected to [{target}]:25")
    shows_of_each_host(seen, shows)


def test_claim_02(seen, shows):
    """The remote added that each message came from the virtual host."""
    for host in HOSTS:
        assert named_after(seen, host)
        shows(seen.letter(f"from {host}", SOUTH)[0].received)


def test_claim_03(seen, shows):
    """The remote added that the machine's message came from the machine."""
    for helo, reverse, address in peers(seen, "from the machine"):
        assert (helo, reverse) == ("machine.example", "machine.example")
        assert address in MACHINE
    shows(seen.letter("from the machine")[0].received)


def test_claim_04(seen, shows):
    """What was sent is e-mail (RFC 5322), to domains found by their MX records."""
    for host in HOSTS:
        for letter in seen.letter(f"from {host}"):
            assert letter.message["From"].addresses[0].domain == host
            assert letter.message["Date"].datetime
            assert re.fullmatch(r"<[^<>@\s]+@[^<>@\s]+>", letter.message["Message-ID"])
            assert letter.message["To"].addresses[0].username == "bob"
            assert not letter.message.defects
    letter = seen.letter("from alpha.example", SOUTH)[0]
    shows(*(f"{name}: {letter.message[name]}" for name in ("From", "To", "Message-ID")))


def test_claim_06(seen, shows):
    """Addresses are Internet Protocol addresses, of both versions."""
    sources = {p.source for p in syns(seen, NORTH_ADDRESSES | SOUTH_ADDRESSES)}
    versions = {ip_address(source).version for source in sources}

    assert versions == {4, 6}
    for host, own in HOSTS.items():
        assert set(own) <= sources, host
        first = next(p for p in syns(seen, NORTH_ADDRESSES) if p.source == own[1])
        shows(f"{host}: {first}")


def test_claim_07(seen, shows):
    """Each is known by its domain name: forward, reverse and HELO agree."""
    for host in HOSTS:
        for domain in (NORTH, SOUTH):
            assert named_after(seen, host, domain)
        helo, reverse, address = seen.letter(f"from {host}")[0].peer
        shows(f"HELO {helo}; {address} is {reverse}")


def test_claim_08(seen, shows):
    """They share the machine: one process serves all of them."""
    assert set(HOSTS) <= set(seen.owners["worker-0"])
    assert len([name for name in seen.owners if name != "worker-machine"]) == 2
    shows(f"worker-0 serves {', '.join(seen.owners['worker-0'])}")


def test_claim_09(seen, shows):
    """A user signs in to the host and makes a message; it goes out from the host."""
    for host, own in HOSTS.items():
        said = seen.replies[host]
        assert [said[s][:3] for s in ("auth", "mail", "rcpt", "data")] == [
            *("235", "250", "250", "250")
        ]
        (letter,) = [
            each
            for each in seen.letter("smtplib", SOUTH)
            if each.message["From"] == f"user@{host}"
        ]
        helo, reverse, address = letter.peer
        assert (helo, reverse) == (host, host)
        assert address in own
        assert letter.message["Message-ID"].endswith(f"@{host}>")
        shows(f"signed in ({said['auth']}); {letter.received}")


def test_claim_09_refused(seen, shows):
    """Nobody but a defined user of that host is let in, and nothing is sent for them."""
    for what in (
        "a password of another host's user",
        "no user of this host",
        "nobody",
    ):
        said = seen.replies[what]
        assert said["auth"].startswith("535"), said
        assert not said["data"].startswith("250"), said
        shows(f"{what}: {said['auth']}")
    said = seen.replies["a sender of another host"]
    assert said["auth"].startswith("235")
    assert said["mail"].startswith("55") or said["rcpt"].startswith("55"), said
    assert [] == [each for each in seen.letters if each.user == "mallory"]


def test_claim_10(seen, shows):
    """Before it was sent, each message was in its own host's queue, on disk."""
    for host in HOSTS:
        file, subjects = seen.waiting[host]
        assert f"hosts/{host}/queue.db" == file
        assert [f"from {host}"] * 2 == subjects
        shows(f"{file}: {subjects[0]}")
    assert 0 == seen.letters_while_waiting
    for host in HOSTS:
        assert 2 == len(seen.letter(f"from {host}"))


def test_claim_11(seen, shows):
    """The operating system answers for the unbound socket: it follows the route."""
    for _, _, address in peers(seen, "by another route"):
        assert address in OTHER_SOURCE
    for label in ("alpha", "delta"):
        for helo, _, address in peers(seen, f"{label} by another route"):
            assert helo == f"{label}.example"
            assert address in HOSTS[helo]
    shows(*(each.received for each in seen.letter("by another route")))


# 12 to 23: a device with virtual addresses ------------------------------------------


def test_claim_12(seen, shows):
    """Several virtual addresses, each bound before anything is sent, each seen."""
    used = {address for _, address, _ in of_hosts(seen)}

    assert len(used) >= len(HOSTS)
    for _, address, call in of_hosts(seen):
        bind = next(c for c in seen.calls if c.inode == call.inode and c.name == "bind")
        assert float(bind.time) < float(call.time)
        assert data(seen, address)
    shows_of_each_host(seen, shows)


def test_claim_13(seen, shows):
    """Beside them, a socket that is not bound, with the assigned address."""
    assert of_machine(seen)
    assert {p.source for p in syns(seen, SOUTH_ADDRESSES)} >= {MACHINE[0]}
    shows(str(next(p for p in data(seen, MACHINE[0]))))


def test_claim_14(seen, shows):
    """The remote found the assigned address to be the source."""
    addresses = {address for _, _, address in peers(seen, "from the machine")}

    assert addresses
    assert addresses <= set(MACHINE)
    shows(seen.letter("from the machine")[0].received)


def test_claim_15(seen, shows):
    """The remote found the virtual address to be the source."""
    for host, own in HOSTS.items():
        for _, _, address in peers(seen, f"from {host}"):
            assert address in own
            shows(f"{host}: {address}")


def test_claim_16(seen, shows):
    """Virtual network addresses are IP addresses."""
    test_claim_06(seen, shows)


def test_claim_17(seen, shows):
    """Virtual network addresses are domain names."""
    test_claim_07(seen, shows)


def test_claim_18(seen, shows):
    """A customer's host is made, limited, measured, suspended and destroyed."""
    refused, stats, suspended, hosts, namespaces = seen.life
    (letter,) = seen.letter("first of zeta")

    assert ("zeta.example", "10.77.0.16") == (letter.peer[0], letter.peer[2])
    assert refused[:2] != "0:"
    assert "second of zeta" not in {each.message["Subject"] for each in seen.letters}
    assert json.loads(stats)["sent"] >= 1, stats
    assert "suspended" in suspended
    assert "zeta.example" not in hosts
    assert "zeta" not in namespaces
    shows(refused.strip(), letter.received)


def test_claim_19(seen, shows):
    """The user's message says the host, and goes from the host's address."""
    test_claim_09(seen, shows)


def test_claim_20(seen, shows):
    """The message waits in the queue of its virtual address."""
    test_claim_10(seen, shows)


def test_claim_21(seen, shows):
    """The connection request has the virtual address, and is accepted to it."""
    for host, own in HOSTS.items():
        for address, targets in zip(
            own, (SOUTH_ADDRESSES, NORTH_ADDRESSES), strict=True
        ):
            request = next(p for p in syns(seen, targets) if p.source == address)
            answer = next(
                p
                for p in seen.packets
                if p.accepted
                and (p.source, p.source_port) == (request.target, 25)
                and (p.target, p.port) == (address, request.source_port)
            )
            shows(f"{host}: {request}; {answer}")


def test_claim_22(seen, shows):
    """The receiver's Received line says the virtual address."""
    test_claim_02(seen, shows)


def test_claim_23(seen, shows):
    """What is sent is e-mail."""
    test_claim_04(seen, shows)


# 24 to 29: two modules --------------------------------------------------------------


def two_modules(seen, shows):
    """One process makes and binds sockets; the one that sends could not do it."""
    assert "net_admin" in seen.processes["broker"]
    assert "no capabilities" in seen.processes["worker-0"]
    assert "a network namespace apart" in seen.processes["worker-0"]
    # No address of anybody is where the worker is, so no socket of its own has one.
    assert not [a for a in ALL_OF_HOSTS | {*MACHINE} if a in seen.alone["addresses"]]
    effective = re.search(r"^CapEff:\s+(\w+)$", seen.alone["status"], re.MULTILINE)
    assert effective
    assert 0 == int(effective[1], 16)
    assert re.search(r"^NoNewPrivs:\s+1$", seen.alone["status"], re.MULTILINE)
    shows(
        f"broker: {seen.processes['broker']}",
        f"worker-0: {seen.processes['worker-0']}",
    )


def test_claim_24(seen, shows):
    two_modules(seen, shows)
    test_claim_12(seen, shows)


def test_claim_25(seen, shows):
    """The program is in the memory of the machine: it runs."""
    two_modules(seen, shows)


def test_claim_26(seen, shows):
    """What a medium carries is what ran here."""
    two_modules(seen, shows)


def test_claim_27(seen, shows):
    """The broker creates and binds; the worker sends over what it is given."""
    two_modules(seen, shows)
    assert of_hosts(seen)


def test_claim_28(seen, shows):
    """Both are running processes."""
    two_modules(seen, shows)


def test_claim_29(seen, shows):
    """Means for each of the three: socket, binding, sending."""
    two_modules(seen, shows)
    test_claim_12(seen, shows)


# 30 to 35: virtual domains -----------------------------------------------------------


def test_claim_30(seen, shows):
    """E-mail of users of virtual domains, each by its own address."""
    test_claim_04(seen, shows)
    test_claim_01_hosts(seen, shows)


def test_claim_31(seen, shows):
    """The remote domain adds that it is from the virtual domain."""
    test_claim_02(seen, shows)


def test_claim_32(seen, shows):
    """The mail is taken from the queue of its virtual domain."""
    test_claim_10(seen, shows)


def test_claim_33(seen, shows):
    """Beside them the machine's own domain, unbound."""
    test_claim_01_machine(seen, shows)


def test_claim_34(seen, shows):
    test_claim_30(seen, shows)


def test_claim_35(seen, shows):
    """Broker and worker, for virtual domains."""
    two_modules(seen, shows)
    test_claim_30(seen, shows)


# 36 to 41: virtual users -------------------------------------------------------------


def test_claim_36(seen, shows):
    """Who asks is found to be a user of one host; then its address is bound."""
    mine, stranger = seen.refused
    (letter,) = seen.letter("from an account")

    assert mine.startswith(f"{ACCOUNT_UID}: 0:"), mine
    assert ("beta.example", "beta.example") == letter.peer[:2]
    assert letter.peer[2] in HOSTS["beta.example"]
    assert not stranger.startswith(f"{STRANGER_UID}: 0:"), stranger
    shows(f"uid {ACCOUNT_UID}: {letter.received}", f"uid {stranger.strip()}")
    test_claim_09(seen, shows)


def test_claim_37(seen, shows):
    """The remote finds the bound address to be the source."""
    (letter,) = seen.letter("from an account")

    assert letter.peer[2] in HOSTS["beta.example"]
    shows(letter.received)
    test_claim_15(seen, shows)


def test_claim_38(seen, shows):
    """The user made the message; it has the user as sender and names the host."""
    test_claim_09(seen, shows)


def test_claim_39(seen, shows):
    """It waits in the queue of the user's host."""
    test_claim_10(seen, shows)


def test_claim_40(seen, shows):
    test_claim_36(seen, shows)


def test_claim_41(seen, shows):
    """One module takes the request and finds the user; the other binds and sends."""
    two_modules(seen, shows)
    test_claim_36(seen, shows)
