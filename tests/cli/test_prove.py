"""``vnsmail prove`` from its arguments to its screen and exit code."""

import ipaddress
import json
import sys

import msgspec
import pytest

from tests.capture.build import (
    ALPHA4,
    ALPHA6,
    BETA4,
    FROM_CLIENT,
    MACHINE4,
    NOBODY4,
    NORTH4,
    NORTH6,
    Connection,
    capture,
    mail,
)
from tests.capture.test_pcap import header, packet
from tests.cli.supervisor import FakeSupervisor
from vnsmail.cli import app, prove, prove_ground
from vnsmail.directory.store import Directory
from vnsmail.errors import NotPrivileged
from vnsmail.lab.facts import LabFacts, RemoteFacts, file_of
from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost
from vnsmail.net.facts import Actual, Link
from vnsmail.settings import layout
from vnsmail.supervisor import control

MACHINE_MAIL = mail(MACHINE4, "machine.example")
BETA_MAIL = mail(BETA4, "beta.example")
BOTH_FAMILIES = (mail(), mail(ALPHA6, server=NORTH6), BETA_MAIL, MACHINE_MAIL)
KNOWN = ("--machine", MACHINE4, "--other", NORTH4, "--other", NORTH6)


def host(name, context, *addresses):
    return VirtualHost(
        name=HostName(name),
        context=context,
        addresses=tuple(SourceAddress.parse(text) for text in addresses),
        domains=(HostName(name),),
        link="lan0",
        uplink=Uplink.BRIDGE if context is Context.NAMESPACE else None,
    )


@pytest.fixture
def root(tmp_path):
    """A root with two virtual hosts and a machine's name."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "vnsmail.toml").write_text('[machine]\nname = "machine.example"\n')
    directory = Directory(folder / "directory.db")
    for each in (
        host("alpha.example", Context.NAMESPACE, f"{ALPHA4}/24", f"{ALPHA6}/64"),
        host("beta.example", Context.ALIAS, f"{BETA4}/32"),
    ):
        directory.add_host(each)
        directory.activate(each.name)
    directory.close()
    return folder


@pytest.fixture
def run(root, monkeypatch, capsys):
    """Run the command line; return exit code, output and remarks."""

    def run(*words, columns="160"):
        monkeypatch.setenv("COLUMNS", columns)
        words = ("vnsmail", "--root", root, "prove", *words)
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def file(tmp_path):
    """Write connections into a capture file."""

    def file(*connections, **facts):
        path = tmp_path / "capture.pcapng"
        path.write_bytes(capture(*connections, **facts))
        return path

    return file


def deliver(folder, *clients, part="new"):
    """Put a message of each client (name, address) into a Maildir."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    for number, (name, address) in enumerate(clients):
        (folder / part / f"{number}.{name}").write_text(
            f"Return-Path: <>\nReceived: from {name} ({name} [{address}])\n"
            f"\tby mx1.north.example with ESMTP id {number};\n\ttoday\n"
            "Received: from earlier.example by elsewhere\n\nReceived: from body\n"
        )
    return folder


CLIENTS = (
    ("alpha.example", ALPHA4),
    ("alpha.example", f"IPv6:{ALPHA6}"),
    ("beta.example", BETA4),
    ("machine.example", MACHINE4),
)

SCREEN = """\
proof
sender           context    expected    seen        packets  wrong  HELO             received                                       verdict
───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
machine.example  machine    10.77.0.1   10.77.0.1         8      0  machine.example  machine.example (machine.example [10.77.0.1])  pass
alpha.example    namespace  10.77.0.11  10.77.0.11       16      0  alpha.example    alpha.example (alpha.example [10.77.0.11])     pass
                            fd77::11    fd77::11                                     alpha.example (alpha.example [IPv6:fd77::11])
beta.example     alias      10.77.0.12  10.77.0.12        8      0  beta.example     beta.example (beta.example [10.77.0.12])       pass
"""


def unpadded(screen):
    return "".join(line.rstrip() + "\n" for line in screen.splitlines())


def test_pass(run, file, tmp_path):
    """A row a sender; the verdict and where the packets lie; exit code 0."""
    north = deliver(tmp_path / "mail" / "bob", *CLIENTS)
    path = file(*BOTH_FAMILIES)
    code, out, err = run(path, "--mail", north.parent, *KNOWN)

    assert SCREEN == unpadded(out)
    assert f"pass; the packets are in {path}\n" == err
    assert 0 == code


NARROW = """\
sender    machine.example
context   machine
expected  10.77.0.1
seen      10.77.0.1
packets   8
wrong     0
HELO      machine.example
received
verdict   pass

sender    alpha.example
context   namespace
expected  10.77.0.11
          fd77::11
seen      10.77.0.11
packets   8
wrong     0
HELO      alpha.example
received
verdict   pass

sender    beta.example
context   alias
expected  10.77.0.12
seen      10.77.0.1
packets   8
wrong     8
HELO      beta.example
received
verdict   fail

machine.example: 1 connection (8 packets) of beta.example came from its address 10.77.0.1
beta.example: 1 connection (8 packets) came from 10.77.0.1, the address of the machine, and not from 10.77.0.12
1 connection (1 packet) came from 10.77.0.99, an address of nobody here, and had no EHLO
"""


def test_fail_on_a_narrow_screen(run, file):
    """A block a sender, then every reason, then what limits the verdict; exit code 1."""
    stray = Connection(NOBODY4)
    stray.from_client(2)
    path = file(mail(), mail(MACHINE4, "beta.example"), MACHINE_MAIL, stray)
    code, out, err = run(path, *KNOWN, columns="80")

    expected = NARROW.replace("verdict   pass\n", "verdict   fail\n", 1)
    assert expected == unpadded(out)
    assert (
        "Received lines are not compared: no --mail was given\n"
        f"fail; the packets are in {path}\n"
    ) == err
    assert 1 == code


UNGUARDED = {
    "source_check": "strict",
    "dropped_packets": None,
    "borrowed_packets": None,
}
"""What is said of each host where nobody can be asked what was stopped."""


def test_json(run, file, tmp_path):
    """The same value for programs, with these keys."""
    stray = mail(BETA4, "alpha.example")
    path = file(mail(), stray, MACHINE_MAIL)
    north = deliver(tmp_path / "mail", CLIENTS[0], CLIENTS[3])
    code, out, err = run(path, "--mail", north, "--json", *KNOWN)
    proof = json.loads(out)

    assert 1 == code
    assert "" == err
    connections, messages = proof.pop("connections"), proof.pop("messages")
    assert [("mail", "alpha.example", ALPHA4), ("wrong", "alpha.example", BETA4)] == [
        (each["kind"], each["sender"], each["client"]) for each in connections[:2]
    ]
    assert [[ALPHA4], [BETA4], [MACHINE4]] == [each["packets"] for each in messages]
    assert ("packets", "remote") == tuple(proof.pop("witnesses"))
    assert proof.pop("began") < proof.pop("ended")
    assert ["lan0"] == proof.pop("interfaces")
    alpha = "1 connection (8 packets)"
    whose = f"the address of beta.example, and not from {ALPHA4} or {ALPHA6}"
    assert {
        "verdict": "fail",
        "file": str(path),
        "problems": [],
        "drops": 0,
        "strangers": 0,
        "older": 0,
        "packets": 45,
        "hosts": [
            {
                "name": "machine.example",
                "context": "machine",
                "expected": [MACHINE4],
                "seen": [MACHINE4],
                "packets": FROM_CLIENT,
                "wrong": 0,
                "helo": ["machine.example"],
                "mail_from": ["machine.example"],
                "attempts": 0,
                "received": "from machine.example (machine.example [10.77.0.1]) "
                "by mx1.north.example with ESMTP id 1; today",
                **UNGUARDED,
                "verdict": "pass",
                "problems": [],
            },
            {
                "name": "alpha.example",
                "context": "namespace",
                "expected": [ALPHA4, ALPHA6],
                "seen": [ALPHA4, BETA4],
                "packets": 2 * FROM_CLIENT,
                "wrong": FROM_CLIENT,
                "helo": ["alpha.example"],
                "mail_from": ["alpha.example"],
                "attempts": 0,
                "received": "from alpha.example (alpha.example [10.77.0.11]) "
                "by mx1.north.example with ESMTP id 0; today",
                **UNGUARDED,
                "verdict": "fail",
                "problems": [f"{alpha} came from {BETA4}, {whose}"],
            },
            {
                "name": "beta.example",
                "context": "alias",
                "expected": [BETA4],
                "seen": [],
                "packets": 0,
                "wrong": 0,
                "helo": [],
                "mail_from": [],
                "attempts": 0,
                "received": "",
                **UNGUARDED,
                "verdict": "fail",
                "problems": [f"{alpha} of alpha.example came from its address {BETA4}"],
            },
        ],
    } == proof


def test_json_pass(run, file):
    code, out, _ = run(file(*BOTH_FAMILIES), "--json", *KNOWN)
    proof = json.loads(out)

    assert 0 == code
    assert "pass" == proof["verdict"]
    assert [None] * 3 == [each["received"] for each in proof["hosts"]]


def test_no_mail_is_no_pass(run, file):
    code, out, _ = run(file(mail(), MACHINE_MAIL), "--json", *KNOWN)
    proof = json.loads(out)

    assert 1 == code
    assert "fail" == proof["verdict"]
    assert ["pass", "pass", "no mail"] == [each["verdict"] for each in proof["hosts"]]


def test_drops(run, file):
    """Lost packets are said once on the screen, and nobody passes."""
    code, out, _ = run(file(*BOTH_FAMILIES, drops=7), *KNOWN)

    assert 1 == code
    assert 1 == out.count("the capture lost packets: 7 were dropped\n")
    assert "pass" not in out


def test_drops_that_nobody_counted(run, file):
    code, _, err = run(file(*BOTH_FAMILIES, drops=None), *KNOWN)

    assert 0 == code
    assert "the file does not say whether packets were dropped\n" in err


def test_pcap(run, tmp_path):
    """A classic pcap file will do."""
    path = tmp_path / "capture.pcap"
    frames = [frame for each in BOTH_FAMILIES for frame in each.frames]
    path.write_bytes(
        header() + b"".join(packet(frame, length=len(frame)) for frame in frames)
    )
    code, _, _ = run(path, *KNOWN)

    assert 0 == code


def test_a_file_that_is_being_written(run, file):
    """What is whole counts; the rest is mentioned."""
    path = file(*BOTH_FAMILIES)
    path.write_bytes(path.read_bytes() + capture(mail())[:-5])
    code, _, err = run(path, *KNOWN)

    assert 0 == code
    assert "the last packet of the file is not whole\n" in err


def test_refused_connections_are_mentioned(run, file):
    refused = Connection(client_port=50000)
    refused.from_client(2)
    code, _, err = run(file(*BOTH_FAMILIES, refused.reset()), *KNOWN)

    assert 0 == code
    assert (
        "alpha.example: 1 refused, unanswered or turned away before EHLO, so without "
        "mail\n"
    ) in err


def test_packets_recorded_too_short(run, tmp_path):
    """Where headers are cut off, anything may have been behind them."""
    path = tmp_path / "short.pcap"
    path.write_bytes(header() + packet(mail().frames[0][:40], length=54))
    code, out, _ = run(path, "--json", *KNOWN)

    assert 1 == code
    assert [
        "the capture lacks the headers of packets: 1 were recorded too short"
    ] == json.loads(out)["problems"]


@pytest.fixture
def lab(root, file, tmp_path):
    """What a running lab writes, with one remote that got mail."""
    path = file(*BOTH_FAMILIES, mail(NORTH4, "mx1.north.example", server=ALPHA4))
    north = deliver(tmp_path / "north" / "bob", *CLIENTS).parent
    where = file_of(layout(root))
    where.parent.mkdir()
    facts = LabFacts(
        pid=1,
        capture=str(path),
        machine_name="machine.example",
        machine_addresses=(MACHINE4,),
        nameserver="10.77.0.2",
        remotes=(
            RemoteFacts("mx1.north.example", "north.example", (NORTH4,), str(north)),
        ),
    )
    where.write_bytes(msgspec.json.encode(facts))
    return facts


def test_lab(run, lab):
    """Without a file, a running lab's capture and its remotes' mail are judged."""
    code, out, err = run("--json")
    proof = json.loads(out)

    assert "pass" == proof["verdict"], (out, err)
    assert lab.capture == proof["file"]
    assert 1 == proof["strangers"]
    assert "IPv6:fd77::11" in proof["hosts"][1]["received"]
    assert 0 == code


def test_lab_with_a_file(run, lab, tmp_path):
    """Another capture of the lab is judged with the lab's machine, and its own mail."""
    path = tmp_path / "other.pcapng"
    path.write_bytes(capture(mail(), BETA_MAIL, MACHINE_MAIL))
    code, out, _ = run(path, "--json")
    proof = json.loads(out)

    assert 0 == code
    assert str(path) == proof["file"]
    assert proof["hosts"][0]["received"] is None


def test_no_lab_and_no_file(run):
    code, out, err = run()

    assert 2 == code
    assert "" == out
    assert (
        "vnsmail: capture '': give a pcapng file, or --seconds N, or start a "
        "lab with `vnsmail lab up`\n" == err
    )


def test_the_machine_s_own_addresses(run, file, monkeypatch):
    """Without --machine they are those on its links, but for loopback and aliases."""
    own = (SourceAddress.parse(f"{MACHINE4}/24"), SourceAddress.parse(f"{BETA4}/32"))
    local = (SourceAddress(ipaddress.ip_address("127.0.0.1"), 8),)
    loopback = Link("lo", loopback=True, addresses=local)
    actual = Actual(links=(Link("lan0", addresses=own), loopback))
    monkeypatch.setattr(prove_ground, "observe", lambda instance: actual)
    code, out, _ = run(file(*BOTH_FAMILIES), "--json")

    assert 0 == code
    assert [MACHINE4] == json.loads(out)["hosts"][0]["expected"]


def test_without_privilege_to_look(run, file, monkeypatch):
    def refuse(instance):
        raise PermissionError(1, "no")

    monkeypatch.setattr(prove_ground, "observe", refuse)
    code, _, err = run(file(*BOTH_FAMILIES))

    assert NotPrivileged.exit_code == code
    assert "give --machine ADDRESS" in err


def test_a_host_named_like_the_machine(run, root, file):
    """Packets could not tell them apart: refused."""
    (root / "vnsmail.toml").write_text('[machine]\nname = "beta.example"\n')
    code, _, err = run(file(*BOTH_FAMILIES), *KNOWN)

    assert 2 == code
    assert err.startswith("vnsmail: machine name 'beta.example': ")


def test_settings_choose_a_port(run, root, file):
    with (root / "vnsmail.toml").open("a") as opened:
        opened.write("[smtp]\nport = 2525\n")
    moved = [
        mail(ends.client, name, ends.server, server_port=2525)
        for ends, name in zip(
            BOTH_FAMILIES,
            ["alpha.example", "alpha.example", "beta.example", "machine.example"],
            strict=True,
        )
    ]
    code, _, _ = run(file(*moved), *KNOWN)

    assert 0 == code


BROKEN = capture(mail())[:-4] + b"\0\0\0\1"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read it: no such file or directory"),
        ("folder", "cannot read it: is a directory"),
        (b"", "it is no pcapng or pcap file"),
        (b"GIF89a", "it is no pcapng or pcap file"),
        (BROKEN, "it is damaged: a block has two different sizes (octet "),
        (header(link_type=105) + packet(), "its link type 105 is none of Ethernet's"),
    ],
)
def test_bad_files(run, tmp_path, content, says):
    """One line says which file and what is wrong; exit code 2."""
    path = tmp_path / "file"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, out, err = run(path, *KNOWN)

    assert 2 == code
    assert "" == out
    assert err.startswith(f"vnsmail: capture '{path}': {says}")
    assert 1 == err.count("\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mail", "/none"), "mail '/none': cannot read it: no such file"),
        (("--machine", "10.77.0.1/24"), "machine "),
        (("--other", "north"), "other "),
    ],
)
def test_bad_options(run, file, words, says):
    code, _, err = run(file(*BOTH_FAMILIES), "--machine", MACHINE4, *words)

    assert 2 == code
    assert err.startswith(f"vnsmail: {says}")
    assert 1 == err.count("\n")


def test_long_captures_show_how_far_it_is(run, file, monkeypatch):
    monkeypatch.setattr(prove, "SHOW_PROGRESS_FROM", 0)
    many = [mail(client_port=1024 + number) for number in range(300)]
    code, _, err = run(file(*many, *BOTH_FAMILIES), *KNOWN)

    assert 0 == code
    assert err.startswith("prove: reading (")


def test_what_the_kernel_stopped(run, file, root):
    """It did not leave, so it is no part of the verdict; but it is said."""
    path = file(mail(), mail(BETA4, "beta.example"), MACHINE_MAIL)
    with FakeSupervisor(root) as supervisor:
        supervisor.answers[control.GetGuard] = control.Guarded("", 3, 180, 1)
        _, _, err = run(path, *KNOWN)
        _, out, _ = run(path, "--json", *KNOWN)

    words = "alpha.example: the kernel dropped 3 packets to mail ports from an address"
    assert words in err
    assert "beta.example: the kernel dropped 1 packets of others" in err
    assert "pass" in err
    dropped = [host["dropped_packets"] for host in json.loads(out)["hosts"]]
    assert [None, 3, 3] == dropped
