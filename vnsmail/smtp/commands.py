"""Commands: from a line to a value and back, in one grammar for both sides.

Rules of this file. ``parse(encode(command)) == command`` for every command that
``encode`` takes, and ``encode`` checks that before it lets a line out: so nothing that
we send is read by a strict server in another way than we meant, and no CR, LF or NUL
gets onto the wire by an address. What is not in the grammar (RFC 5321 section 4.1) is
refused. Whether a command comes at the right time is the session's business.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias, assert_never

from vnsmail.smtp.address import (
    Mailbox,
    parse_forward_path,
    parse_reverse_path,
    valid_helo,
)
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply

MAX_COMMAND = 512
"""Octets of a command line with its CRLF (RFC 5321 section 4.5.3.1.4)."""

MAX_MAIL = MAX_COMMAND + 26 + 17 + 10
"""The same for MAIL: more for SIZE (RFC 1870 section 3), BODY (RFC 6152 section 2)
and SMTPUTF8 (RFC 6531 section 3.1)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_VERB = re.compile(r"[A-Za-z0-9-]+")
# The end of a path is the first ">" outside quotes.
_PATH = re.compile(r'<(?:[^"\\>]|"(?:[^"\\]|\\.)*+")*+>')
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")
_SIZE = re.compile(r"[0-9]{1,20}")

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


@dataclass(frozen=True, slots=True)
class Rcpt:
    """One recipient of the transaction (RFC 5321 section 4.1.1.3)."""

    recipient: Mailbox


@dataclass(frozen=True, slots=True)
class Data:
    """The body follows (RFC 5321 section 4.1.1.4)."""


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
    Ehlo | Helo | Mail | Rcpt | Data | Rset | Noop | Quit | Vrfy | Help | Unknown
)


def parse(line: bytes) -> Command:
    """Return the command in a line without its CRLF.

    Raises:
        SmtpSyntaxError: it is none, with the reply that says why.
    """
    if len(line) > MAX_COMMAND - len("\r\n") and (
        len(line) > MAX_MAIL - len("\r\n") or line[:5].upper() != b"MAIL "
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
    match command:
        case Mail():
            return _mail_line(command)
        case Rcpt(recipient):
            return f"RCPT TO:<{recipient}>"
        case Ehlo(name) | Helo(name):
            return f"{type(command).__name__.upper()} {name}"
        case Vrfy(argument):
            return f"VRFY {argument}"
        case Unknown(verb):
            return verb
        case Data() | Rset() | Noop() | Quit() | Help():
            return type(command).__name__.upper()
        case _:
            assert_never(command)


def _mail_line(command: Mail) -> str:
    line = f"MAIL FROM:<{'' if command.sender is None else command.sender}>"
    if command.size is not None:
        line += f" SIZE={command.size}"
    if command.body is not None:
        line += f" BODY={command.body}"
    if command.smtputf8:
        line += " SMTPUTF8"
    return line


def _refuse(code: int, enhanced: str, text: str) -> NoReturn:
    raise SmtpSyntaxError(Reply(code, (text,), enhanced))


def _hello(argument: str) -> str:
    if not valid_helo(argument):
        _refuse(501, "5.5.4", "give a domain name or an address literal")
    return argument


def _mail(argument: str) -> Mail:
    path, rest = _split(argument, "FROM:", "MAIL FROM:<address>", "5.1.7")
    sender = parse_reverse_path(path, smtputf8=True)
    if not rest:
        return Mail(sender)
    given = _parameters(rest)
    size = _size(given.pop("SIZE")) if "SIZE" in given else None
    body = _body_type(given.pop("BODY")) if "BODY" in given else None
    smtputf8 = "SMTPUTF8" in given
    if given.pop("SMTPUTF8", None) is not None:
        _refuse(501, "5.5.4", "SMTPUTF8 has no value")
    if given:
        _refuse_parameter(next(iter(given)))
    return Mail(sender, size, body, smtputf8)


def _rcpt(argument: str) -> Rcpt:
    path, rest = _split(argument, "TO:", "RCPT TO:<address>", "5.1.3")
    recipient = parse_forward_path(path, smtputf8=True)
    for name in _parameters(rest) if rest else ():
        _refuse_parameter(name)
    return Rcpt(recipient)


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


def _parameters(text: str) -> dict[str, str | None]:
    """Return names in upper case with their values; None for a name alone."""
    found: dict[str, str | None] = {}
    for word in text[1:].split(" "):
        parameter = _PARAMETER.fullmatch(word)
        if parameter is None:
            _refuse(501, "5.5.4", "a parameter is a name, or a name = a value")
        name = parameter[1].upper()
        if name in found:
            _refuse(501, "5.5.4", f"parameter {name} is given twice")
        found[name] = parameter[2]
    return found


def _refuse_parameter(name: str) -> NoReturn:
    # RFC 5321 section 4.1.1.11. Registered names are shorter than what is cut here.
    _refuse(555, "5.5.4", f"parameter {name[:20]} is not known")


def _size(value: str | None) -> int:
    if value is None or not _SIZE.fullmatch(value):
        _refuse(501, "5.5.4", "SIZE is a number of octets")
    return int(value)


def _body_type(value: str | None) -> BodyType:
    known = _BODY_TYPES.get((value or "").upper())
    if known is None:
        _refuse(555 if value else 501, "5.5.4", "BODY is 7BIT or 8BITMIME")
    return known


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
    "RSET": _alone(Rset()),
    "QUIT": _alone(Quit()),
    "NOOP": lambda argument: Noop(),
    "HELP": lambda argument: Help(),
    "VRFY": _vrfy,
}
