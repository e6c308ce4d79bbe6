"""Records of DKIM keys: as a zone file has them, and whether DNS shows them.

Rules of this file: the questions go out as any of this machine's; what nobody can say
now is not said to be wrong.
"""

import asyncio
import base64
from collections.abc import Iterator, Sequence

from vnsmail.authentication.questions import Answer, Question
from vnsmail.authentication.tags import decoded, parse_tags
from vnsmail.supervisor.control import DkimFacts
from vnsmail.supervisor.examine import Finding

STRING = 255
"""Octets of one string of a TXT record (RFC 1035 section 3.3.14)."""

PUBLISHED, MISSING, OTHER, UNKNOWN = "published", "missing", "another", "unknown"


def name(key: DkimFacts) -> str:
    """Return where DNS has to have a key."""
    return f"{key.selector}._domainkey.{key.domain}"


def text(key: DkimFacts) -> str:
    """Return what the TXT record of a key says (RFC 6376 section 3.6.1)."""
    return f"v=DKIM1; k={key.algorithm}; p={key.public}"


def zone_line(key: DkimFacts) -> str:
    """Return the record as a zone file has it, in strings that are short enough."""
    whole = text(key)
    strings = [whole[at : at + STRING] for at in range(0, len(whole), STRING)]
    quoted = " ".join(f'"{string}"' for string in strings)
    value = f"( {quoted} )" if len(strings) > 1 else quoted
    return f"{name(key)}. IN TXT {value}"


def shown(keys: Sequence[DkimFacts], servers: Sequence[str]) -> list[str]:
    """Return of each key what DNS shows: published, missing, another or unknown."""
    return asyncio.run(_ask(keys, servers))


async def _ask(keys: Sequence[DkimFacts], servers: Sequence[str]) -> list[str]:
    # Listing keys asks nobody, and dnspython takes long to import.
    from vnsmail.cli.doctor_names import PATIENCE, connected  # noqa: PLC0415
    from vnsmail.resolve.resolver import Resolver  # noqa: PLC0415

    resolver = Resolver(connected, servers, PATIENCE)
    room = asyncio.Semaphore(20)

    async def one(key: DkimFacts) -> str:
        async with room:
            answer = await resolver.answer(Question(name(key), "TXT"))
        return judged(key, answer)

    return await asyncio.gather(*map(one, keys))


def judged(key: DkimFacts, answer: Answer) -> str:
    """Return what an answer says of a key."""
    if answer.trouble:
        return UNKNOWN
    if not answer.values:
        return MISSING
    own = base64.b64decode(key.public)
    for record in answer.values:
        tags = parse_tags(record) or {}
        same = decoded(tags.get("p", "")) == own
        if same and tags.get("k", "rsa") == key.algorithm:
            return PUBLISHED
    return OTHER


def findings(keys: Sequence[DkimFacts], servers: Sequence[str]) -> Iterator[Finding]:
    """Give what `vnsmail doctor` says of keys: those in use, and those that wait."""
    looked_at = [key for key in keys if key.state != "retired"]
    if not looked_at:
        return
    for key, dns in zip(looked_at, shown(looked_at, servers), strict=True):
        yield finding(key, dns)


def finding(key: DkimFacts, dns: str) -> Finding:
    """Return what is to be said of a key that DNS shows, or does not."""
    where = name(key)
    if dns == UNKNOWN:
        return Finding("dkim", where, "unknown", "no name server answers", "ask again")
    record = f"publish what `vnsmail dkim list {key.host} --records` prints"
    if key.state == "active" and dns != PUBLISHED:
        text = f"mail is signed with it, and its record is {dns}"
        return Finding("dkim", where, "wrong", text, record)
    if key.state == "active":
        return Finding("dkim", where, "ok", "in use and published")
    if dns == PUBLISHED:
        remedy = f"vnsmail dkim activate {key.host}"
        return Finding("dkim", where, "ok", "published, and not in use yet", remedy)
    return Finding("dkim", where, "ok", f"not in use yet; its record is {dns}")
