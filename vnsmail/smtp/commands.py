"""Commands: from a line to a value and back, in one grammar for both sides.

Rules of this file. ``parse(encode(command)) == command`` for every command that
``encode`` takes, and ``encode`` checks that before it lets a line out: so nothing that
we send is read by a strict server in another way than we meant, and no CR, LF or NUL
gets onto the wire by an address. What is not in the grammar (RFC 5321 section 4.1) is
refused. Whether a command comes at the right time is the session's business.
"""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias, assert_never

from vnsmail.model import Notify, Ret
from vnsmail.smtp import parameters as given_in
from vnsmail.smtp.address import (
    Mailbox,
    parse_forward_path,
    parse_reverse_path,
    valid_helo,
)
from vnsmail.smtp.parameters import parameters
from vnsmail.smtp.parameters import refuse as _refuse

MAX_COMMAND = 512
"""Octets of a command line with its CRLF (RFC 5321 section 4.5.3.1.4)."""

MAX_MAIL = MAX_COMMAND + 26 + 17 + 10 + 500 + 116 + 11
"""The same for MAIL: more for SIZE (RFC 1870 section 3), BODY (RFC 6152 section 2),
SMTPUTF8 (RFC 6531 section 3.1), AUTH (RFC 4954 section 3), RET and ENVID (RFC 3461),
REQUIRETLS (RFC 8689 section 2)."""

MAX_RCPT = MAX_COMMAND + 36 + 507
"""The same for RCPT: more for NOTIFY and ORCPT (RFC 3461 sections 4.1, 4.2)."""

MAX_AUTH = 12288
"""The same for AUTH, and for each line of its exchange (RFC 4954 section 4)."""

_LONGER = {b"MAIL ": MAX_MAIL, b"RCPT ": MAX_RCPT, b"AUTH ": MAX_AUTH}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_VERB = re.compile(r"[A-Za-z0-9-]+")
# The end of a path is the first ">" outside quotes.
_PATH = re.compile(r'<(?:[^"\\>]|"(?:[^"\\]|\\.)*+")*+>')
_CHUNK = re.compile(r"([0-9]{1,20})(?: (LAST))?", re.IGNORECASE)
_MECHANISM = re.compile(r"[A-Za-z0-9_-]{1,20}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")

BodyType: TypeAlias = Literal["7BIT", "8BITMIME"]
_BODY_TYPES: dict[str, BodyType] = {"7BIT": "7BIT", "8BITMIME": "8BITMIME"}


@dataclass(frozen=True, slots=True)
class Ehlo:
    """Hello, and which extensions are there (RFC 5321 section 4.1.1.1)."""

    name: str
    """Domain or address literal, as the client wrote it."""


@dataclass(frozen=True, slots=True)
class Helo:
    """Hello without extensions."""

    name: str


@dataclass(frozen=True, slots=True)
class Mail:
    """A transaction begins (RFC 5321 section 4.1.1.2)."""

    sender: Mailbox | None
    """None for the null reverse-path."""
    size: int | None = None
    """Octets the client says the message has (RFC 1870)."""
    body: BodyType | None = None
    smtputf8: bool = False
    ret: Ret | None = None
    """What notifications are to carry (RFC 3461 section 4.3)."""
    envid: str = ""
    """What the sender calls the transaction, as xtext; empty: not given."""
    auth: str = ""
    """Who submitted it, as the client says: xtext or ``<>``; empty: not given."""
    require_tls: bool = False
    """REQUIRETLS (RFC 8689 section 4)."""


@dataclass(frozen=True, slots=True)
class Rcpt:
    """One recipient of the transaction (RFC 5321 section 4.1.1.3)."""

    recipient: Mailbox
    notify: tuple[Notify, ...] = ()
    """When the sender wants to be told; empty: not given (RFC 3461 section 4.1)."""
    orcpt: str = ""
    """Who the recipient was at first, ``type;xtext``; empty: not given."""


@dataclass(frozen=True, slots=True)
class Data:
    """The body follows (RFC 5321 section 4.1.1.4)."""


@dataclass(frozen=True, slots=True)
class Bdat:
    """A piece of the body follows, of that many octets (RFC 3030 section 2)."""

    size: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Starttls:
    """What follows is TLS (RFC 3207)."""


@dataclass(frozen=True, slots=True)
class Auth:
    """Somebody signs in (RFC 4954 section 4)."""

    mechanism: str
    """In upper case."""
    initial: bytes | None = field(default=None, repr=False)
    """The first response, if it came with the command."""


@dataclass(frozen=True, slots=True)
class Rset:
    """Forget the transaction (RFC 5321 section 4.1.1.5)."""


@dataclass(frozen=True, slots=True)
class Noop:
    """Do nothing; an argument is ignored (RFC 5321 section 4.1.1.9)."""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the session (RFC 5321 section 4.1.1.10)."""


@dataclass(frozen=True, slots=True)
class Vrfy:
    """Is there such a user? (RFC 5321 section 4.1.1.6)."""

    argument: str


@dataclass(frozen=True, slots=True)
class Help:
    """What can be said here? An argument is ignored (RFC 5321 section 4.1.1.8)."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A command that has the form of one, and is not known here."""

    verb: str
    """In upper case."""


Command: TypeAlias = (
    Ehlo
    | Helo
    | Mail
    | Rcpt
    | Data
    | Bdat
    | Starttls
    | Auth
    | Rset
    | Noop
    | Quit
    | Vrfy
    | Help
    | Unknown
)


def parse(line: bytes) -> Command:
    """Return the command in a line without its CRLF.

    Raises:
        SmtpSyntaxError: it is none, with the reply that says why.
    """
    # The same short lines come again and again. None with a password is kept.
    if len(line) <= _SHORT and line[:4].upper() != b"AUTH":
        return _parse_again(line)
    return _parse(line)


def _parse(line: bytes) -> Command:
    if len(line) > MAX_COMMAND - len("\r\n") and (
        len(line) > _LONGER.get(line[:5].upper(), MAX_COMMAND) - len("\r\n")
    ):
        _refuse(500, "5.5.2", "line too long")
    try:
        # RFC 5321 section 4.1.1: white space before the CRLF is tolerated.
        text = line.decode("utf-8").rstrip(" \t")
    except UnicodeDecodeError:
        _refuse(500, "5.5.2", "the command is not UTF-8")
    if not text.isprintable() and _CONTROL.search(text):
        _refuse(500, "5.5.2", "the command has a control character")
    verb, _, argument = text.partition(" ")
    verb = verb.upper()
    known = _PARSERS.get(verb)
    if known is not None:
        return known(argument)
    if not _VERB.fullmatch(verb):
        _refuse(500, "5.5.2", "this is not a command")
    return Unknown(verb)


_SHORT = 100
_parse_again = lru_cache(maxsize=4096)(_parse)


def encode(command: Command) -> bytes:
    """Return the line, with its CRLF, that says a command.

    Raises:
        SmtpSyntaxError: no line would be read as this command, as an address or another
            argument is not valid, or too long.
    """
    line = _line(command).encode("utf-8", "surrogatepass")
    if parse(line) != command:
        _refuse(501, "5.5.4", "the command would be read as another")
    return line + b"\r\n"


def _line(command: Command) -> str:
    word = type(command).__name__.upper()
    match command:
        case Mail():
            line = _mail_line(command)
        case Rcpt():
            line = _rcpt_line(command)
        case Bdat(size, last):
            line = f"BDAT {size}{' LAST' if last else ''}"
        case Auth(mechanism, initial):
            first = "" if initial is None else f" {encode_base64(initial) or '='}"
            line = f"AUTH {mechanism}{first}"
        case Ehlo(argument) | Helo(argument) | Vrfy(argument):
            line = f"{word} {argument}"
        case Unknown(verb):
            line = verb
        case Data() | Starttls() | Rset() | Noop() | Quit() | Help():
            line = word
        case _:
            assert_never(command)
    return line


def _mail_line(command: Mail) -> str:
    line = f"MAIL FROM:<{'' if command.sender is None else command.sender}>"
    if command.size is not None:
        line += f" SIZE={command.size}"
    if command.body is not None:
        line += f" BODY={command.body}"
    if command.smtputf8:
        line += " SMTPUTF8"
    if command.ret is not None:
        line += f" RET={command.ret}"
    if command.envid:
        line += f" ENVID={command.envid}"
    if command.auth:
        line += f" AUTH={command.auth}"
    if command.require_tls:
        line += " REQUIRETLS"
    return line


def _rcpt_line(command: Rcpt) -> str:
    line = f"RCPT TO:<{command.recipient}>"
    if command.notify:
        line += f" NOTIFY={','.join(command.notify)}"
    if command.orcpt:
        line += f" ORCPT={command.orcpt}"
    return line


def encode_base64(data: bytes) -> str:
    """Return base64 without line ends, as AUTH has it (RFC 4954 section 4)."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str) -> bytes | None:
    """Return what base64 stands for; None if it is none (RFC 4648 section 4)."""
    if len(text) % 4 or not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _hello(argument: str) -> str:
    if not valid_helo(argument):
        _refuse(501, "5.5.4", "give a domain name or an address literal")
    return argument


def _mail(argument: str) -> Mail:
    path, rest = _split(argument, "FROM:", "MAIL FROM:<address>", "5.1.7")
    sender = parse_reverse_path(path, smtputf8=True)
    if not rest:
        return Mail(sender)
    given = parameters(rest)
    take = given.pop
    size = given_in.size(take("SIZE")) if "SIZE" in given else None
    body = _body_type(take("BODY")) if "BODY" in given else None
    smtputf8 = "SMTPUTF8" in given
    if take("SMTPUTF8", None) is not None:
        _refuse(501, "5.5.4", "SMTPUTF8 has no value")
    ret = given_in.ret(take("RET")) if "RET" in given else None
    envid = given_in.envid(take("ENVID")) if "ENVID" in given else ""
    auth = given_in.auth(take("AUTH")) if "AUTH" in given else ""
    require_tls = "REQUIRETLS" in given
    if take("REQUIRETLS", None) is not None:
        _refuse(501, "5.5.4", "REQUIRETLS has no value")
    for name in given:
        given_in.refuse_unknown(name)
    return Mail(sender, size, body, smtputf8, ret, envid, auth, require_tls)


def _rcpt(argument: str) -> Rcpt:
    path, rest = _split(argument, "TO:", "RCPT TO:<address>", "5.1.3")
    recipient = parse_forward_path(path, smtputf8=True)
    if not rest:
        return Rcpt(recipient)
    given = parameters(rest)
    notify = given_in.notify(given.pop("NOTIFY")) if "NOTIFY" in given else ()
    orcpt = given_in.orcpt(given.pop("ORCPT")) if "ORCPT" in given else ""
    for name in given:
        given_in.refuse_unknown(name)
    return Rcpt(recipient, notify, orcpt)


def _split(argument: str, word: str, form: str, enhanced: str) -> tuple[str, str]:
    """Return the path, and the parameters behind it."""
    start = len(word)
    # No space on either side of the colon: RFC 5321 section 3.3.
    if argument[:start].upper() != word:
        _refuse(501, "5.5.4", f"say {form}")
    path = _PATH.match(argument, start)
    if path is None:
        _refuse(501, enhanced, f"say {form}")
    rest = argument[path.end() :]
    if rest and rest[0] != " ":
        _refuse(501, "5.5.4", "a space stands before a parameter")
    return path[0], rest


def _body_type(value: str | None) -> BodyType:
    known = _BODY_TYPES.get((value or "").upper())
    if known is None:
        _refuse(555 if value else 501, "5.5.4", "BODY is 7BIT or 8BITMIME")
    return known


def _bdat(argument: str) -> Bdat:
    chunk = _CHUNK.fullmatch(argument)
    if chunk is None:
        _refuse(501, "5.5.4", "say BDAT octets, or BDAT octets LAST")
    return Bdat(int(chunk[1]), chunk[2] is not None)


def _auth(argument: str) -> Auth:
    mechanism, _, response = argument.partition(" ")
    if not _MECHANISM.fullmatch(mechanism):
        _refuse(501, "5.5.4", "say AUTH and the name of a mechanism")
    if not response:
        return Auth(mechanism.upper())
    initial = b"" if response == "=" else decode_base64(response)
    if initial is None:
        _refuse(501, "5.5.2", "the response is not base64")
    return Auth(mechanism.upper(), initial)


def _vrfy(argument: str) -> Vrfy:
    argument = argument.lstrip(" ")
    if not argument:
        _refuse(501, "5.5.4", "VRFY whom?")
    return Vrfy(argument)


def _alone(command: Command) -> Callable[[str], Command]:
    def check(argument: str) -> Command:
        if argument:
            _refuse(501, "5.5.4", "the command has no argument")
        return command

    return check


_PARSERS: dict[str, Callable[[str], Command]] = {
    "EHLO": lambda argument: Ehlo(_hello(argument)),
    "HELO": lambda argument: Helo(_hello(argument)),
    "MAIL": _mail,
    "RCPT": _rcpt,
    "DATA": _alone(Data()),
    "BDAT": _bdat,
    "STARTTLS": _alone(Starttls()),
    "AUTH": _auth,
    "RSET": _alone(Rset()),
    "QUIT": _alone(Quit()),
    "NOOP": lambda argument: Noop(),
    "HELP": lambda argument: Help(),
    "VRFY": _vrfy,
}
