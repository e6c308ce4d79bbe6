"""A name server of a host's own: who asks it, judged by packets."""

import subprocess

import pytest

from integration.labs import VNSMAIL, eventually

SERVER = {4: "10.77.0.2", 6: "fd77::2"}
NAMESERVER = "ns.example"
HOSTS = {
    "alpha.example": {4: "10.77.0.11", 6: "fd77::11"},  # a namespace
    "delta.example": {4: "10.77.0.14", 6: "fd77::14"},  # an alias
}


class Questions:
    """What comes to port 53 of the lab's name server: names, and who asked."""

    def __init__(self, lab, folder):
        self.file = folder / "questions.pcap"
        self._lab = lab
        record = f"tshark -q -l -i eth0 -f 'port 53' -w {self.file} & cat; kill $!"
        self.process = lab.beside(NAMESERVER, "sh", "-c", record)
        eventually(
            lambda: self.file.exists() and self.file.stat().st_size, "it listens"
        )

    def asked(self):
        """Return pairs of source and name, as tshark reads them."""
        done = subprocess.run(
            [
                *("tshark", "-r", str(self.file), "-T", "fields", "-e", "ip.src"),
                *(
                    "-e",
                    "ipv6.src",
                    "-e",
                    "dns.qry.name",
                    "-Y",
                    "dns.flags.response==0",
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return {
            (words[0] or words[1], words[2])
            for words in (line.split("\t") for line in done.stdout.splitlines())
        }

    def sources(self, name):
        """Return who asked for a name, once somebody has."""
        return eventually(
            lambda: {source for source, asked in self.asked() if asked == name}, name
        )


@pytest.fixture(scope="module")
def questions(lab, tmp_path_factory):
    found = Questions(lab, tmp_path_factory.mktemp("questions"))
    yield found
    found.process.communicate()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("family", SERVER)
def test_mail(lab, questions, host, family):
    """Where mail goes is asked from the host's own address, once it has a server."""
    domain = f"{host.partition('.')[0]}{family}.example"
    lab.vnsmail("host", "set", host, "--resolver", SERVER[family])
    lab.send(f"user@{host}", f"ann@{domain}")
    lab.settle()

    assert {HOSTS[host][family]} == questions.sources(domain)
    lab.vnsmail("host", "set", host, "--resolver", "none")
    lab.send(f"user@{host}", f"ann@again.{domain}")
    lab.settle()
    assert {"10.77.0.1"} == questions.sources(f"again.{domain}")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("family", SERVER)
def test_an_unmodified_program(lab, questions, host, family):
    """getent sees the host's own resolv.conf, and asks from the host's address."""
    name = f"getent-{host.partition('.')[0]}{family}.example"
    lab.vnsmail("host", "set", host, "--resolver", SERVER[family])
    words = (*VNSMAIL, "--root", str(lab.root), "exec", host, "--")
    seen = lab.inside("machine", *words, "cat", "/etc/resolv.conf").stdout
    found = lab.inside("machine", *words, "getent", "ahosts", "mx1.north.example")
    lab.inside("machine", *words, "getent", "ahosts", name, check=False)
    lab.vnsmail("host", "set", host, "--resolver", "none")

    assert f"nameserver {SERVER[family]}\n" == seen
    assert "10.77.0.3" in found.stdout
    assert {HOSTS[host][family]} == questions.sources(name)


def test_a_server_that_is_not_there(lab):
    """Nobody else is asked instead: the mail waits, and says why."""
    lab.vnsmail("host", "set", "beta.example", "--resolver", "10.77.0.99")
    lab.send("user@beta.example", "ann@north.example")
    (entry,) = eventually(
        lambda: [
            each
            for each in lab.json("queue", "list", "--host", "beta.example")
            if each["recipients"][0][3]
        ],
        "it is deferred",
    )
    assert "no name server answered" in str(entry)
    lab.vnsmail("host", "set", "beta.example", "--resolver", "none")
