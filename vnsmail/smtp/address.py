"""Mailboxes, paths and host names: the grammar of RFC 5321 section 4.1.2, no more.

Rules of this file. What is not in the grammar is refused, never repaired. A mailbox is
kept in one spelling: local part without quotes, domain in lower case; ``str`` writes it
with the quotes it needs, and reading that gives the same mailbox again.

The lengths of RFC 5321 section 4.5.3.1 are what everybody must be able to take, so a
local part over 64 octets is taken (bounce addresses that carry the recipient's address
are often longer). Limits that others rely on are kept: 256 octets a path, and what DNS
can ask for (RFC 1035 section 2.3.4).
"""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply

MAX_PATH = 256
"""Octets with the angle brackets (RFC 5321 section 4.5.3.1.3)."""

MAX_DOMAIN = 253
"""Octets: 255 in DNS with the length bytes (RFC 1035 section 2.3.4)."""

MAX_LABEL = 63
MAX_LITERAL = 64
"""Octets; the longest IPv6 literal has 52."""

# RFC 6531 section 3.3 lets every character beyond ASCII into a local part. C1 controls
# and line separators are left out: they break lines in logs and terminals.
_BEYOND_ASCII = "\u00a0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"
_ATOM = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_BEYOND_ASCII}-]++"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*+")
_QUOTED_STRING = re.compile(rf'"((?:[ !#-\[\]-~{_BEYOND_ASCII}]|\\[ -~])*+)"')
_QUOTED_PAIR = re.compile(r"\\(.)")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ROUTE = re.compile(r"((?:@[^,:@<>]+,)*@[^,:@<>]+):")

# IDNA lets letters, marks and decimal digits into a label (RFC 5892 section 2.1).
_LABEL_CATEGORIES = {"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"}


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Who a path is about."""

    local_part: str
    """What stands before the @, without quotes; upper and lower case differ."""
    domain: str
    """Lower-case name, or address literal with brackets; empty: just "postmaster"."""

    @property
    def needs_smtputf8(self) -> bool:
        """It can travel only with SMTPUTF8 (RFC 6531)."""
        return not (self.local_part.isascii() and self.domain.isascii())

    def __str__(self) -> str:
        local = self.local_part
        if not self.domain:
            return local
        if not _DOT_STRING.fullmatch(local):
            local = '"{}"'.format(local.replace("\\", r"\\").replace('"', r"\""))
        return f"{local}@{self.domain}"


def needs_smtputf8(text: str) -> bool:
    """Say whether an address can travel only with SMTPUTF8 (RFC 6531)."""
    return not text.isascii()


def valid_helo(text: str) -> bool:
    """Say whether EHLO may have this argument: a domain or an address literal."""
    if text.startswith("["):
        return _literal(text) is not None
    return len(text) <= MAX_DOMAIN and _DOMAIN.fullmatch(text) is not None


def parse_mailbox(text: str, *, smtputf8: bool = False) -> Mailbox:
    """Return the mailbox that a text without angle brackets names.

    Raises:
        SmtpSyntaxError: it is none; or it needs SMTPUTF8, and that is not granted.
    """
    return _parse(text, "5.1.3", smtputf8=smtputf8)


def parse_reverse_path(text: str, *, smtputf8: bool = False) -> Mailbox | None:
    """Return who a path in angle brackets names as sender; None for ``<>``.

    Raises:
        SmtpSyntaxError: it is no path; or SMTPUTF8 is needed and not granted.
    """
    if text == "<>":
        return None
    return _parse(_inside(text, "5.1.7"), "5.1.7", smtputf8=smtputf8)


def parse_forward_path(text: str, *, smtputf8: bool = False) -> Mailbox:
    """Return who a path in angle brackets names as recipient.

    ``<postmaster>`` needs no domain (RFC 5321 section 4.5.1).

    Raises:
        SmtpSyntaxError: it is no path; or SMTPUTF8 is needed and not granted.
    """
    inside = _inside(text, "5.1.3")
    if inside.lower() == "postmaster":
        return Mailbox("postmaster", "")
    return _parse(inside, "5.1.3", smtputf8=smtputf8)


def _inside(text: str, enhanced: str) -> str:
    if not (text.startswith("<") and text.endswith(">")):
        raise _refused("a path stands in angle brackets", enhanced)
    inside = text[1:-1]
    if inside.startswith("@"):
        # RFC 5321 appendix C: a source route is taken, and ignored.
        route = _ROUTE.match(inside)
        if route is None or not all(
            _domain(hop.removeprefix("@")) for hop in route[1].split(",")
        ):
            raise _refused("bad source route", enhanced)
        inside = inside[route.end() :]
    return inside


def _parse(text: str, enhanced: str, *, smtputf8: bool) -> Mailbox:
    if not smtputf8 and needs_smtputf8(text):
        raise SmtpSyntaxError(Reply(553, ("the address needs SMTPUTF8",), "5.6.7"))
    mailbox = _mailbox(text)
    if isinstance(mailbox, str):
        raise _refused(mailbox, enhanced)
    return mailbox


def _refused(problem: str, enhanced: str) -> SmtpSyntaxError:
    return SmtpSyntaxError(Reply(501, (problem,), enhanced))


# The same senders and recipients come again and again; finding one here takes a tenth
# of the time that reading it takes. 4096 of them are about 1 MiB.
@lru_cache(maxsize=4096)
def _mailbox(text: str) -> Mailbox | str:
    """Return the mailbox, or what is wrong with the text."""
    quoted = _QUOTED_STRING.match(text)
    if quoted is not None:
        local = _QUOTED_PAIR.sub(r"\1", quoted[1])
        at, domain_text = (
            text[quoted.end() : quoted.end() + 1],
            text[quoted.end() + 1 :],
        )
    else:
        local, at, domain_text = text.partition("@")
        if not _DOT_STRING.fullmatch(local):
            return "bad local part in address"
    if at != "@":
        return "an address has an @ and a domain"
    domain = _domain(domain_text)
    if domain is None:
        return "bad domain in address"
    mailbox = Mailbox(local, domain)
    if len(str(mailbox).encode()) > MAX_PATH - len("<>"):
        return "path too long"
    return mailbox


def _domain(text: str) -> str | None:
    """Return a domain or address literal in its one spelling."""
    if text.startswith("["):
        return _literal(text)
    if text.isascii():
        if len(text) > MAX_DOMAIN or not _DOMAIN.fullmatch(text):
            return None
        return text.lower()
    name = text.lower()
    sizes = [_label_size(label) for label in name.split(".")]
    if 0 in sizes or sum(sizes) + len(sizes) - 1 > MAX_DOMAIN:
        return None
    return name


def _label_size(label: str) -> int:
    """Return the octets a label has in DNS; 0 if it cannot be one."""
    if label.isascii():
        return len(label) if re.fullmatch(_LABEL, label) else 0
    if label.startswith("-") or label.endswith("-"):
        return 0
    if unicodedata.category(label[0]).startswith("M"):
        return 0
    if not unicodedata.is_normalized("NFKC", label):
        return 0
    if not all(c == "-" or unicodedata.category(c) in _LABEL_CATEGORIES for c in label):
        return 0
    size = len("xn--") + len(label.encode("punycode"))
    return size if size <= MAX_LABEL else 0


def _literal(text: str) -> str | None:
    """Return an address literal in its one spelling (RFC 5321 section 4.1.3).

    No tag but IPv6 was ever standardised, so none is known.
    """
    if len(text) > MAX_LITERAL or not text.endswith("]"):
        return None
    inside = text[1:-1]
    try:
        if inside[:5].upper() == "IPV6:":
            # A zone names a link of one machine; the grammar has none.
            if "%" in inside:
                return None
            return f"[IPv6:{ipaddress.IPv6Address(inside[5:])}]"
        return f"[{ipaddress.IPv4Address(inside)}]"
    except ValueError:
        return None
