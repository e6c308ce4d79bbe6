"""Authentication-Results: what we found, and the removal of forgeries (RFC 8601). Pure.

Rules of this file: nothing that a stranger says becomes structure: what does not fit a
token is left out. A field that claims to be ours and came from outside goes (section 5),
whatever its spelling and whatever else is wrong in its header block.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vnsmail.authentication.arc import Arc
from vnsmail.authentication.author import without_quotes
from vnsmail.authentication.dkim import Dkim
from vnsmail.authentication.dmarc import Disposition, Dmarc, DmarcResult
from vnsmail.authentication.spf import Spf

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
_LOCAL_PART = re.compile(r"[A-Za-z0-9._+-]+")
_WIDTH = 78
_NAME = b"authentication-results"
_FORGED = re.compile(rb"authentication-results[ \t]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Iprev:
    """What the client's name is worth (RFC 8601 section 2.7.3)."""

    result: str
    """``pass``, ``fail``, ``temperror`` or ``permerror``."""
    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found of a message."""

    iprev: Iprev
    spf: Spf
    sender: str
    """Reverse-path; empty for the null one."""
    dkim: tuple[Dkim, ...]
    dmarc: Dmarc
    arc: Arc
    overridden: str = ""
    """The sealer whose word counts more than a failure of DMARC."""

    @property
    def disposition(self) -> Disposition:
        """What is to be done with the message, if policies are followed."""
        return Disposition.NONE if self.overridden else self.dmarc.disposition


def authentication_results(host: str, findings: Findings) -> bytes:
    """Return the field with all results, ended with CRLF.

    Args:
        host: the authserv-id: name of the virtual host.
        findings: what was found.
    """
    parts = [_iprev(findings.iprev), _spf(findings.spf, findings.sender)]
    parts += [_dkim(each) for each in findings.dkim] or ["dkim=none"]
    parts += [
        _dmarc(findings),
        f"arc={findings.arc.result}{_reason(findings.arc.reason)}",
    ]
    lines = [f"Authentication-Results: {host};"]
    for number, part in enumerate(parts):
        end = ";" if number < len(parts) - 1 else ""
        lines += _folded(part + end)
    return "".join(f"{line}\r\n" for line in lines).encode("ascii", "replace")


def _folded(text: str) -> Iterable[str]:
    """Give a result in lines; spaces within quotes stay where they are."""
    line = "\t"
    for word in re.findall(r'(?:[^ "]|"[^"]*")+', text):
        if len(line) + len(word) >= _WIDTH and line != "\t":
            yield line
            line = "\t "
        line += word if line.endswith(("\t", " ")) else f" {word}"
    yield line


def _property(name: str, value: str, pattern: re.Pattern[str] = _TOKEN) -> str:
    if pattern is _BASE64 and _BASE64.fullmatch(value):
        return f' {name}="{value}"'
    return f" {name}={value}" if _TOKEN.fullmatch(value) else ""


def _reason(text: str) -> str:
    words = re.sub(r"[^A-Za-z0-9 ,.:=()'_/-]", "?", text)[:200]
    return f' reason="{words}"' if words else ""


def _iprev(iprev: Iprev) -> str:
    # An IPv6 address has colons, which no token has.
    value = iprev.address if "." in iprev.address else f'"{iprev.address}"'
    name = iprev.name if _TOKEN.fullmatch(iprev.name) else ""
    return f"iprev={iprev.result}{f' ({name})' if name else ''} policy.iprev={value}"


def _spf(spf: Spf, sender: str) -> str:
    text = f"spf={spf.result}{_reason(spf.reason)}"
    if not sender:
        return text + _property("smtp.helo", spf.domain)
    local_part, _, domain = sender.rpartition("@")
    if not _TOKEN.fullmatch(domain):
        return text
    whole = f"{local_part}@{domain}" if _LOCAL_PART.fullmatch(local_part) else domain
    return f"{text} smtp.mailfrom={whole}"


def _dkim(dkim: Dkim) -> str:
    words = "the key is for tests" if dkim.testing else dkim.reason
    if dkim.testing and dkim.reason:
        words = f"{dkim.reason}; {words}".replace(";", ",")
    return (
        f"dkim={dkim.result}{_reason(words)}"
        + _property("header.d", dkim.domain)
        + _property("header.s", dkim.selector)
        + _property("header.a", dkim.algorithm)
        + _property("header.b", dkim.short, _BASE64)
    )


def _dmarc(findings: Findings) -> str:
    dmarc = findings.dmarc
    text = f"dmarc={dmarc.result}{_reason(dmarc.reason)}"
    if dmarc.result in {DmarcResult.PASS, DmarcResult.FAIL}:
        notes = f"p={dmarc.policy.word} dis={findings.disposition.word}"
        if _TOKEN.fullmatch(findings.overridden):
            notes += f" arc={findings.overridden}"
        text += f" ({notes})"
    return text + _property("header.from", dmarc.domain)


# Forgeries --------------------------------------------------------------------------


def forged(front: bytes, own: Collection[str]) -> tuple[tuple[int, int], ...]:
    """Return where fields stand that claim to be ours, as (start, end) in octets.

    The header block is read line by line to the first empty one, so that a line that
    is no field hides nothing behind it.

    Args:
        front: the message, or enough of its front to hold its header block.
        own: our names, in lower case.
    """
    # Most messages have no such field at all, and the look at each line is not free.
    blank = front.find(b"\r\n\r\n")
    if _NAME not in (front if blank < 0 else front[:blank]).lower():
        return ()
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(front) and not front.startswith(b"\r\n", at):
        end = _line_end(front, at)
        field = _FORGED.match(front, at)
        if field is not None:
            while front.startswith((b" ", b"\t"), end):
                end = _line_end(front, end)
            if authserv_id(front[field.end() : end]) in own:
                found.append((at, end))
        at = end
    return tuple(found)


def _line_end(front: bytes, at: int) -> int:
    end = front.find(b"\n", at)
    return len(front) if end < 0 else end + 1


def authserv_id(value: bytes) -> str:
    """Return whom a field's value claims to be from (section 2.2), in lower case."""
    text = value.decode("utf-8", "replace").replace("\r\n", "")
    at, depth, kept = 0, 0, ""
    quoted = False
    while at < len(text):
        each = text[at]
        at += 1
        if each == "\\" and (depth or quoted):
            kept += "" if depth else text[at : at + 1]
            at += 1
        elif depth or (each == "(" and not quoted):
            depth += (each == "(") - (each == ")")
        elif each == '"':
            quoted = not quoted
        elif quoted or each not in " \t;/=":
            kept += each
        elif kept or each == ";":
            break
    kept = kept.lower().strip().removesuffix(".")
    if not kept.isascii():
        try:
            kept = kept.encode("idna").decode("ascii")
        except UnicodeError:
            return kept
    return kept


def cut(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    """Return data without the octets of some spans."""
    kept, at = [], 0
    for start, end in spans:
        kept.append(data[at:start])
        at = end
    return b"".join((*kept, data[at:]))


def vouches(results: str, domain: str) -> bool:
    """Say whether somebody's results have DMARC pass for a domain in From.

    Args:
        results: behind the authserv-id, of ARC-Authentication-Results.
        domain: in lower case.
    """
    for part in without_quotes(results).lower().split(";"):
        words = part.split()
        if words[:1] == ["dmarc=pass"] and f"header.from={domain}" in words:
            return True
    return False
