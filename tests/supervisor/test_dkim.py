"""DKIM keys: from create to remove, on disk and to the worker."""

import base64
import stat

import pytest

from vnsmail.authentication.public_key import PublicKey, parse_key
from vnsmail.authentication.questions import Answer
from vnsmail.cli import dkim_records
from vnsmail.directory import Directory
from vnsmail.errors import BadInput, NotFound, StateUnusable
from vnsmail.inbound.signing import signing_key
from vnsmail.model import Context, HostName, Owner, SourceAddress, VirtualHost
from vnsmail.settings import layout
from vnsmail.supervisor.control import ChangeDkim, DkimFacts, ListDkim
from vnsmail.supervisor.dkim import Dkim, keys_to_tell
from vnsmail.supervisor.folders import remove_owner

ALPHA = HostName("alpha.example")
HOST = VirtualHost(
    name=ALPHA,
    context=Context.ALIAS,
    addresses=(SourceAddress.parse("10.77.0.11/24"),),
    domains=(ALPHA, HostName("shop.example")),
    link="lan0",
)


@pytest.fixture
def root(tmp_path):
    return layout(tmp_path)


@pytest.fixture
def dkim(root):
    directory = Directory(root.directory_db)
    directory.add_host(HOST)
    directory.activate(ALPHA)
    yield Dkim(root, directory)
    directory.close()


def states(dkim):
    keys = dkim.listed(ListDkim(ALPHA)).keys
    return {(key.domain, key.algorithm, key.state) for key in keys}


async def changed(dkim, action, **more):
    return (await dkim.change(ChangeDkim(ALPHA, action, **more))).keys


async def test_from_create_to_rotation(dkim, root):
    created = await changed(dkim, "create", algorithms=("ed25519",))

    assert {"alpha.example", "shop.example"} == {key.domain for key in created}
    assert () == keys_to_tell(root, HOST)

    await changed(dkim, "activate")
    before = keys_to_tell(root, HOST)
    (new,) = await changed(dkim, "rotate", domain="alpha.example")

    assert before == keys_to_tell(root, HOST), (
        "until it is activated, the old one signs"
    )
    await changed(dkim, "activate", selector=new.selector)
    told = {key.domain: key.selector for key in keys_to_tell(root, HOST)}
    assert told["alpha.example"] == new.selector != created[0].selector
    assert ("alpha.example", "ed25519", "retired") in states(dkim)
    text = (root.dkim / ALPHA / "keys.json").read_text()
    assert '"private":""' in text, "a retired key can sign nothing any more"


async def test_what_the_worker_gets_signs_what_the_record_verifies(dkim, root):
    shown = await changed(dkim, "create", domain="alpha.example", active=True)

    assert ["rsa", "ed25519"] == [key.algorithm for key in shown]
    for key, told in zip(shown, keys_to_tell(root, HOST), strict=True):
        made = signing_key(told.domain, told.selector, told.private)
        public = parse_key(dkim_records.text(key), key.algorithm)
        assert made is not None
        assert isinstance(public, PublicKey)
        assert public.verifies(made.sign(b"x" * 32), b"x" * 32)
        assert told.private.hex() not in repr(told)


async def test_the_files_are_roots_alone(dkim, root):
    await changed(dkim, "create", algorithms=("ed25519",))
    folder = root.dkim / ALPHA

    assert ["keys.json"] == [path.name for path in folder.iterdir()]
    assert 0o600 == stat.S_IMODE((folder / "keys.json").stat().st_mode)
    for each in (folder, folder.parent):
        assert 0o700 == stat.S_IMODE(each.stat().st_mode)
    remove_owner(root, Owner(ALPHA))
    assert not folder.exists()


async def test_a_domain_that_went_is_not_signed_for(dkim, root):
    await changed(dkim, "create", algorithms=("ed25519",), active=True)
    fewer = VirtualHost(ALPHA, HOST.context, HOST.addresses, (ALPHA,), "lan0")

    assert [ALPHA] == [key.domain for key in keys_to_tell(root, fewer)]


async def test_remove(dkim, root):
    (key,) = await changed(
        dkim, "create", domain="alpha.example", selector="S1", algorithms=("ed25519",)
    )

    assert "s1" == key.selector
    await changed(dkim, "remove", selector="s1")
    assert () == dkim.listed(ListDkim()).keys


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"action": "create", "domain": "beta.example"}, BadInput),
        ({"action": "create", "selector": "a b"}, BadInput),
        ({"action": "create", "algorithms": ("dsa",)}, BadInput),
        ({"action": "create", "domain": "alpha.example"}, BadInput),
        ({"action": "create", "algorithms": ("ed25519",)}, BadInput),
        ({"action": "rotate", "domain": "shop.example"}, BadInput),
        ({"action": "activate", "selector": "nosuch"}, NotFound),
        ({"action": "remove", "selector": "nosuch"}, NotFound),
    ],
)
async def test_what_cannot_be_changes_nothing(dkim, root, request_, error):
    await changed(dkim, "create", algorithms=("ed25519",))
    file = root.dkim / ALPHA / "keys.json"
    before = file.read_bytes()

    with pytest.raises(error):
        await changed(dkim, **request_)

    assert before == file.read_bytes()


async def test_rotation_needs_a_key_in_use(dkim):
    with pytest.raises(NotFound):
        await changed(dkim, "rotate")


async def test_selectors_are_never_used_twice(dkim):
    seen: set[str] = set()
    for _ in range(4):
        action = "rotate" if seen else "create"
        made = await changed(
            dkim, action, domain="alpha.example", algorithms=("ed25519",), active=True
        )
        seen |= {key.selector for key in made}

    assert 4 == len(seen)


async def test_a_damaged_file_is_told(dkim, root):
    await changed(dkim, "create", algorithms=("ed25519",), active=True)
    (root.dkim / ALPHA / "keys.json").write_text("{")

    assert () == keys_to_tell(root, HOST)
    with pytest.raises(StateUnusable):
        dkim.listed(ListDkim(ALPHA))


PUBLIC = base64.b64encode(b"k" * 300).decode()
KEY = DkimFacts(ALPHA, "alpha.example", "s", "rsa", "active", 0.0, PUBLIC)


def test_a_record_ready_to_paste():
    text = dkim_records.zone_line(KEY)
    strings = text.split('"')[1::2]

    assert text.startswith('s._domainkey.alpha.example. IN TXT ( "v=DKIM1; k=rsa; p=')
    assert all(len(string) <= 255 for string in strings)
    assert dkim_records.text(KEY) == "".join(strings)


@pytest.mark.parametrize(
    ("answer", "dns", "verdict"),
    [
        (Answer((dkim_records.text(KEY),)), "published", "ok"),
        (Answer(("v=spf1 -all", dkim_records.text(KEY))), "published", "ok"),
        (Answer(("v=DKIM1; k=rsa; p=AAAA",)), "another", "wrong"),
        (Answer(("v=DKIM1; p=",)), "another", "wrong"),
        (Answer(exists=False), "missing", "wrong"),
        (Answer(trouble="down"), "unknown", "unknown"),
    ],
)
def test_what_dns_shows(answer, dns, verdict):
    assert dns == dkim_records.judged(KEY, answer)
    assert verdict == dkim_records.finding(KEY, dns).verdict
