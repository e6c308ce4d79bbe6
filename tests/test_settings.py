import ipaddress
import os
import socket
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail import settings as module
from vnsmail.errors import SettingsError, StateUnusable
from vnsmail.model import MACHINE, Owner
from vnsmail.settings import Settings, checked, from_json, layout, load, to_json

DOCUMENT = """\
[machine]
name = "Box.Example"
[worker]
count = 4
user = "mail"
[smtp]
port = 2525
max_message_size = 1000000
max_recipients = 200
command_timeout = 10
connect_timeout = 2.5
data_timeout = 20
[users]
messages_per_hour = 50
recipients_per_hour = 60
address_messages_per_hour = 70
[queue]
first_retry = 1
longest_retry = 2
lifetime = 3
[dns]
servers = ["192.0.2.53", "fd00::53"]
timeout = 4
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "vnsmail.toml"


def problem(file, text):
    """Return file, key, value and problem of settings that cannot be."""
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    error = caught.value
    assert str(file) == error.file
    assert str(error).startswith(f"{file}: {error.key}")
    assert 1 == len(str(error).splitlines())
    return error.key, error.value, error.problem


# The file --------------------------------------------------------------------------


def test_no_file(file):
    """Without a file all is as documented."""
    assert Settings() == load(file)


def test_the_defaults_are_the_documented_ones():
    """docs/reference/settings.md tells each key with its default."""
    document = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"
    rows = [
        line.split("|") for line in document.read_text().splitlines() if "`" in line
    ]
    told = {row[1].strip(" `"): row[2].strip(" `") for row in rows if len(row) > 3}
    found = {
        f"{table}.{key}": value
        for table, values in asdict(Settings()).items()
        for key, value in values.items()
    }

    assert set(found) == set(told)
    for key, value in told.items():
        if key not in {
            "machine.name",
            "delivery.tls",
            "worker.count",
            "dns.servers",
            "dns.trusted",
            "authentication.trusted_sealers",
            "smtp.proxy_from",
        }:
            assert (
                value == f"{found[key]:g}"
                if value.isdigit() and len(value) < 7
                else (value == str(found[key]).lower())
            ), key


def test_all_keys(file):
    """Every key is read."""
    file.write_text(DOCUMENT)
    found = load(file)

    assert ("box.example", 4, "mail") == (
        found.machine.name,
        found.worker.count,
        found.worker.user,
    )
    assert (2525, 1_000_000, 200, 10, 2.5, 20) == (
        found.smtp.port,
        found.smtp.max_message_size,
        found.smtp.max_recipients,
        found.smtp.command_timeout,
        found.smtp.connect_timeout,
        found.smtp.data_timeout,
    )
    assert (50, 60, 70) == (
        found.users.messages_per_hour,
        found.users.recipients_per_hour,
        found.users.address_messages_per_hour,
    )
    assert (1, 2, 3, 4) == (
        found.queue.first_retry,
        found.queue.longest_retry,
        found.queue.lifetime,
        found.dns.timeout,
    )
    assert ("192.0.2.53", "fd00::53") == tuple(map(str, found.dns.servers))


def test_what_a_worker_is_told(file):
    """Settings go to the workers as JSON, and come out the same."""
    file.write_text(DOCUMENT)
    found = load(file)

    assert found == from_json(to_json(found))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"port = \n", "this is not TOML: Invalid value (at line 1, column 8)"),
        (b"\xff", "this is not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"a = 1\na = 2\n", "this is not TOML: "),
    ],
)
def test_no_toml(file, data, words):
    """What is no TOML is told with the place."""
    file.write_bytes(data)
    with pytest.raises(SettingsError) as caught:
        load(file)

    assert caught.value.problem.startswith(words)
    assert 2 == caught.value.exit_code


def test_unreadable(file):
    """So is what cannot be read."""
    file.mkdir()
    with pytest.raises(SettingsError) as caught:
        load(file)

    assert f"{file}: cannot read it: is a directory" == str(caught.value)


# Keys and values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("prot = 25", "prot", "25"),
        ("[smtp]\nprot = 25", "smtp.prot", "25"),
        ("[stmp]\nport = 25", "stmp", "{'port': 25}"),
        ("[smtp.port]\nx = 1", "smtp.port", "{'x': 1}"),
    ],
)
def test_unknown_keys(file, text, key, value):
    """A typing error does not become a default."""
    found = problem(file, text)

    assert (key, value) == found[:2]
    if key != "smtp.port":
        assert "there is no such key" == found[2]


def names(table):
    return {each.name for each in fields(table)}


@given(st.text(st.characters(categories=["L", "N"], max_codepoint=127), min_size=1))
def test_any_unknown_key(tmp_path_factory, key):
    """Whatever it is called, it is refused by its name."""
    if key in names(Settings):
        return
    file = tmp_path_factory.getbasetemp() / "unknown.toml"

    assert (key, "1", "there is no such key") == problem(file, f"{key} = 1\n")
    if key not in names(module.SmtpSettings):
        found = problem(file, f"[smtp]\n{key} = 1\n")
        assert (f"smtp.{key}", "1") == found[:2]


@pytest.mark.parametrize(
    ("line", "key", "value", "words"),
    [
        ("smtp.port = 0", "smtp.port", "0", "greater than or equal to 1"),
        ("smtp.port = 65536", "smtp.port", "65536", "less than or equal to 65535"),
        ('smtp.port = "25"', "smtp.port", "'25'", "valid integer"),
        ("smtp.port = true", "smtp.port", "True", "valid integer"),
        ("smtp.port = 25.0", "smtp.port", "25.0", "valid integer"),
        ("worker.count = 0", "worker.count", "0", "greater than or equal to 1"),
        ("worker.user = 99", "worker.user", "99", "valid string"),
        ("smtp.max_recipients = 99", "smtp.max_recipients", "99", "100"),
        ("dns.timeout = 0", "dns.timeout", "0", "greater than 0"),
        ("dns.timeout = -1.5", "dns.timeout", "-1.5", "greater than 0"),
        ("dns.timeout = inf", "dns.timeout", "inf", "finite number"),
        ("dns.timeout = nan", "dns.timeout", "nan", "finite number"),
        ('dns.timeout = "1 s"', "dns.timeout", "'1 s'", "valid number"),
        ("dns.timeout = true", "dns.timeout", "True", "valid number"),
        ('dns.servers = ["x"]', "dns.servers.0", "'x'", "write it as 10.77.0.1"),
        ('dns.servers = "192.0.2.1"', "dns.servers", "'192.0.2.1'", "valid tuple"),
        ("smtp = 25", "smtp", "25", "this is a table: write [smtp] and keys below it"),
        ('machine.name = ""', "machine.name", "''", "give a full name"),
        ('machine.name = "192.0.2.1"', "machine.name", "'192.0.2.1'", "an address"),
        ('machine.name = "a b.example"', "machine.name", "'a b.example'", "letters"),
    ],
)
def test_bad_values(file, line, key, value, words):
    """Key and value are named, with what would do."""
    found = problem(file, line)

    assert (key, value) == found[:2]
    assert words in found[2]


def test_a_long_value(file):
    """A whole table in the wrong place is not told whole."""
    _, value, _ = problem(file, f"[nonsense]\nx = {'9' * 200}\n")

    assert 81 == len(value)


_FLOATS = st.floats(min_value=1e-3, max_value=1e9)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "worker": st.fixed_dictionaries({"count": st.integers(1, 64)}),
            "smtp": st.fixed_dictionaries(
                {
                    "port": st.integers(1, 65535).filter(lambda n: n not in {465, 587}),
                    "data_timeout": _FLOATS,
                }
            ),
            "queue": st.fixed_dictionaries({"first_retry": _FLOATS}),
            "dns": st.fixed_dictionaries(
                {"servers": st.lists(st.ip_addresses().map(str), max_size=3)}
            ),
        },
    )
)
def test_good_values(table):
    """What is in range is taken as it is, and survives the way to a worker."""
    found = checked(Settings, table)

    assert found == from_json(to_json(found))
    for name, values in table.items():
        for key, value in values.items():
            read = getattr(getattr(found, name), key)
            if key == "servers":
                assert tuple(str(ipaddress.ip_address(each)) for each in value) == read
            else:
                assert value == read


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    st.sampled_from(["machine", "smtp", "dns", "x"]),
    st.sampled_from(["name", "port", "servers", "timeout", "y"]),
)
def test_any_value(value, table, key):
    """Whatever a file says is settings, or one error of one line."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        document = {table: {key: value}}
        monkeypatch.setattr("tomllib.loads", lambda _: document)
        try:
            found = load(Path("/dev/null"))
        except SettingsError as error:
            told = str(error)
        else:
            told = to_json(found)
    assert 1 == len(told.splitlines())


@pytest.mark.parametrize(
    ("says", "name"),
    [
        ("Box.Example.", "box.example"),
        ("box", "box"),
        ("my_box.example", "localhost"),
        ("", "localhost"),
        ("böx.example", "xn--bx-fka.example"),
    ],
)
def test_the_own_name(monkeypatch, says, name):
    """What the system calls itself, where that can be said in EHLO."""
    monkeypatch.setattr(socket, "getfqdn", lambda: says)

    assert name == Settings().machine.name


# Layout -----------------------------------------------------------------------------


def test_the_system_s_places():
    """The default root follows the Filesystem Hierarchy Standard."""
    found = layout(None)

    assert (
        "/etc/vnsmail/vnsmail.toml",
        "/var/lib/vnsmail/directory.db",
        "/var/lib/vnsmail/hosts/alpha.example",
        "/var/lib/vnsmail/machine",
        "/run/vnsmail/control.sock",
        "/run/vnsmail/supervisor.pid",
        "/run/vnsmail/vnsmail.log",
        "",
    ) == (
        *map(
            str,
            (
                found.settings_file,
                found.directory_db,
                found.owner_folder(Owner("alpha.example")),
                found.owner_folder(Owner(MACHINE)),
                found.control_socket,
                found.pid_file,
                found.log_file,
            ),
        ),
        found.instance,
    )


def test_another_root(tmp_path, monkeypatch):
    """All is below one folder, by whichever way it is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    found = layout(Path("root"))

    assert tmp_path / "root" / "vnsmail.toml" == found.settings_file
    assert tmp_path / "root" / "run" / "control.sock" == found.control_socket
    assert found == layout(tmp_path / "root")
    assert found.instance == layout(tmp_path / "link").instance
    assert found.instance != layout(tmp_path / "other").instance
    assert 6 == len(found.instance)
    assert int(found.instance, 16) >= 0


def test_a_root_that_is_too_long(tmp_path):
    """The longest root is the one whose control socket can be bound; no longer."""
    room = 107 - len("/run/control.sock") - len(os.fsencode(tmp_path)) - 1
    longest = layout(tmp_path / ("x" * room))
    longest.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(longest.control_socket))
    with pytest.raises(StateUnusable, match="use a root of at most 90 bytes"):
        layout(tmp_path / ("x" * (room + 1)))


# Where metrics are told --------------------------------------------------------------


@pytest.mark.parametrize("text", ["127.0.0.1:9925", "[::1]:9925", "unix:/run/m.sock"])
def test_where_metrics_are_told(file, text):
    """An address of this machine, or a path."""
    file.write_text(f'[metrics]\nlisten = "{text}"\n')

    assert text == str(load(file).metrics.where)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:9925",
        "10.0.0.1:80",
        "[::]:80",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:",
        "::1:80",
        "unix:m.sock",
        "localhost:80",
        "127.0.0.1:99999",
        "unix:/" + "x" * 200,
        "[127.0.0.1.1]:80",
        "[fe80::1%lo]:80",
    ],
)
def test_where_metrics_cannot_be_told(file, text):
    """Everybody's addresses above all."""
    assert "metrics.listen" == problem(file, f'[metrics]\nlisten = "{text}"\n')[0]


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (2, 2), (64, 8)])
def test_a_worker_for_each_processor(monkeypatch, processors, workers):
    """Unless the file says otherwise; many processors are no reason for any number."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))

    assert workers == Settings().worker.count


def test_smtp_of_one_host(tmp_path):
    """What is said of a host goes before what is said of all; of others it says nothing."""
    text = "[smtp]\nhide_clients = true\n"
    text += '[smtp.host."alpha.example"]\nhide_clients = false\nstrict_8bit = true\n'
    (tmp_path / "vnsmail.toml").write_text(text)
    smtp = load(tmp_path / "vnsmail.toml").smtp

    assert (False, True) == (
        smtp.hides_clients("alpha.example"),
        smtp.is_strict("alpha.example"),
    )
    assert (True, False) == (
        smtp.hides_clients("beta.example"),
        smtp.is_strict("beta.example"),
    )


def test_keys_of_tls_sessions_are_refused_outside_a_lab(file):
    """Process 1 is no lab's keeper here."""
    from vnsmail.supervisor.folders import check_keys

    file.write_text('[lab]\ntls_keys = "/tmp/keys"\n')
    with pytest.raises(SettingsError, match="told in a lab only; remove it"):
        check_keys(load(file), file)
