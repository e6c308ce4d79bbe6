"""The values of parameters behind MAIL FROM and RCPT TO: checked, and kept as they came.

Rules of this file: a value is kept in the form it has on the wire (xtext, RFC 3461
section 4), so that it goes on to the next host as it came; whoever shows it decodes it
with ``from_xtext``. What would not be decoded to printable text is refused here.
"""

import re
from typing import NoReturn

from vnsmail.model import Notify, Ret
from vnsmail.smtp.address import parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply

MAX_ENVID = 100
"""Characters of an envelope id (RFC 3461 section 4.4)."""

MAX_ORCPT = 500
"""Characters of an original recipient (RFC 3461 section 4.2)."""

_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")
_AUTH = re.compile(r"(AUTH)=(<>)", re.IGNORECASE)
_SIZE = re.compile(r"[0-9]{1,20}")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEX = re.compile(r"\+([0-9A-F]{2})")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*/?^_`{|}~-]+")


def refuse(code: int, enhanced: str, text: str) -> NoReturn:
    """Raise the error that carries this reply."""
    raise SmtpSyntaxError(Reply(code, (text,), enhanced))


def parameters(text: str) -> dict[str, str | None]:
    """Return names in upper case with their values; None for a name alone.

    Args:
        text: what stands behind the path, with the space before it.

    Raises:
        SmtpSyntaxError: not parameters, or one of them twice.
    """
    found: dict[str, str | None] = {}
    for word in text[1:].split(" "):
        parameter = _PARAMETER.fullmatch(word) or _AUTH.fullmatch(word)
        if parameter is None:
            refuse(501, "5.5.4", "a parameter is a name, or a name = a value")
        name = parameter[1].upper()
        if name in found:
            refuse(501, "5.5.4", f"parameter {name} is given twice")
        found[name] = parameter[2]
    return found


def refuse_unknown(name: str) -> NoReturn:
    """Refuse a parameter (RFC 5321 section 4.1.1.11)."""
    # Registered names are shorter than what is cut here.
    refuse(555, "5.5.4", f"parameter {name[:20]} is not known")


def size(value: str | None) -> int:
    """Return the octets that SIZE= says (RFC 1870)."""
    if value is None or not _SIZE.fullmatch(value):
        refuse(501, "5.5.4", "SIZE is a number of octets")
    return int(value)


def ret(value: str | None) -> Ret:
    """Return what a notification is to carry (RFC 3461 section 4.3)."""
    try:
        return Ret((value or "").upper())
    except ValueError:
        refuse(501, "5.5.4", "RET is FULL or HDRS")


def envid(value: str | None) -> str:
    """Return an envelope id (RFC 3461 section 4.4), as xtext."""
    if not value or len(value) > MAX_ENVID or from_xtext(value) is None:
        refuse(501, "5.5.4", f"ENVID is xtext of at most {MAX_ENVID} characters")
    return value


def notify(value: str | None) -> tuple[Notify, ...]:
    """Return when the sender wants to be told, in one order (RFC 3461 section 4.1)."""
    words = (value or "").upper().split(",")
    try:
        wanted = {Notify(word) for word in words}
    except ValueError:
        refuse(501, "5.5.4", "NOTIFY is NEVER, or of SUCCESS, FAILURE, DELAY")
    if len(wanted) != len(words) or (Notify.NEVER in wanted and len(wanted) > 1):
        refuse(501, "5.5.4", "NOTIFY has NEVER alone, and each word once")
    return tuple(each for each in Notify if each in wanted)


def orcpt(value: str | None) -> str:
    """Return an original recipient, ``type;xtext`` (RFC 3461 section 4.2)."""
    kind, mark, address = (value or "").partition(";")
    sound = mark and address and len(value or "") <= MAX_ORCPT
    if not sound or not _ADDRESS_TYPE.fullmatch(kind) or from_xtext(address) is None:
        refuse(501, "5.5.4", "ORCPT is a type of address, a semicolon, and xtext")
    return f"{kind.lower()};{address}"


def auth(value: str | None) -> str:
    """Return who submitted a message, as another server says (RFC 4954 section 5).

    ``<>`` is nobody that is known; else it is a mailbox as xtext.
    """
    if value != "<>":
        mailbox = from_xtext(value) if value else None
        if mailbox is None:
            refuse(501, "5.5.4", "AUTH is <>, or a mailbox as xtext")
        parse_mailbox(mailbox, smtputf8=True)
    return value or ""


def to_xtext(text: str) -> str:
    """Return printable ASCII text as xtext."""
    return "".join(
        character
        if "!" <= character <= "~" and character not in "+="
        else f"+{ord(character):02X}"
        for character in text
    )


def from_xtext(text: str) -> str | None:
    """Return what xtext says; None if it is none, or says what cannot be printed."""
    if not _XTEXT.fullmatch(text):
        return None
    said = _HEX.sub(lambda match: chr(int(match[1], 16)), text)
    return said if said.isascii() and said.isprintable() else None
