"""Address lists of header fields: From, To, Cc and the like (RFC 5322 section 3.4).

Pure, and strict where it matters: what is not an address list is an error, so that
nobody's name is read out of what another program would read in another way. Obsolete
forms (section 4.4) are taken, for they are unambiguous: routes, empty members of a
list, white space and comments between the words of an address.

Rules of this file: one walk over the text, and no pattern that can go back over it;
what is found is returned as it was written, and is not checked as a mailbox of SMTP.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_WORD = re.compile(r'[^\s()<>@,;:\\"\[\]\x00-\x20\x7f]+')
_SPACE = re.compile(r"[ \t\r\n]+")
_QUOTED = re.compile(r'"(?:[^"\\\x00]|\\[^\x00])*"')
_LITERAL = re.compile(r"\[[^\[\]\\\x00-\x20\x7f]*\]")
_IN_COMMENT = re.compile(r"[^()\\\x00]+|\\[^\x00]")

MAX_DEPTH = 50
"""Comments within comments. Nobody writes more than two."""


class NoAddressList(ValueError):
    """The text is no address list; the message says where it stops being one."""


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox of a list."""

    text: str
    """The address without angle brackets, as SMTP writes it; without a domain where
    none was written; empty for ``<>``."""
    name: str = ""
    """What stands beside it for people: the phrase before it, or the last comment."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """``word``, ``quoted``, ``literal``, ``comment``, or a special character."""
    text: str


def parse_addresses(value: bytes) -> tuple[Address, ...]:
    """Return the mailboxes of a field's value, those of groups among them.

    Args:
        value: what follows the colon, folded or not; UTF-8 where it is beyond ASCII.

    Raises:
        NoAddressList: it is none.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError:
        message = "it has bytes that are neither ASCII nor UTF-8"
        raise NoAddressList(message) from None
    return tuple(_members(list(_tokens(text))))


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        if space := _SPACE.match(text, at):
            at = space.end()
            continue
        character = text[at]
        if character == "(":
            end = _end_of_comment(text, at)
            yield _Token("comment", text[at + 1 : end - 1])
            at = end
            continue
        for kind, pattern in (
            ("word", _WORD),
            ("quoted", _QUOTED),
            ("literal", _LITERAL),
        ):
            if found := pattern.match(text, at):
                yield _Token(kind, found[0])
                at = found.end()
                break
        else:
            if character not in "<>@,;:":
                message = f"{text[at : at + 20]!r} is no part of an address"
                raise NoAddressList(message)
            yield _Token(character, character)
            at += 1


def _end_of_comment(text: str, start: int) -> int:
    depth, at = 0, start
    while at < len(text):
        if text[at] == "(":
            depth += 1
            at += 1
        elif text[at] == ")":
            depth -= 1
            at += 1
        elif inside := _IN_COMMENT.match(text, at):
            at = inside.end()
        else:
            break
        if depth == 0:
            return at
        if depth > MAX_DEPTH:
            break
    message = "a comment does not end"
    raise NoAddressList(message)


def _members(tokens: Sequence[_Token]) -> Iterator[Address]:
    """Take the list apart at its commas; a group is a list within the list."""
    member: list[_Token] = []
    in_angle = in_group = False
    for token in tokens:
        if token.kind in {"<", ">"}:
            if in_angle is (token.kind == "<"):
                message = f"{token.text!r} is in the wrong place"
                raise NoAddressList(message)
            in_angle = not in_angle
        if in_angle or token.kind not in {",", ";", ":"}:
            member.append(token)
            continue
        if token.kind == ":":
            if in_group or not _is_phrase(member):
                message = "':' is in the wrong place"
                raise NoAddressList(message)
            in_group, member = True, []
            continue
        yield from _member(member)
        member = []
        if token.kind == ";":
            if not in_group:
                message = "';' ends no group"
                raise NoAddressList(message)
            in_group = False
    if in_angle or in_group:
        message = "it ends within an address or a group"
        raise NoAddressList(message)
    yield from _member(member)


def _is_phrase(tokens: Sequence[_Token]) -> bool:
    kinds = {token.kind for token in tokens}
    return bool(kinds & {"word", "quoted"}) and kinds <= {"word", "quoted", "comment"}


def _member(tokens: Sequence[_Token]) -> Iterator[Address]:
    """Read one member; an empty one is nothing (RFC 5322 section 4.4)."""
    comments = [token.text for token in tokens if token.kind == "comment"]
    tokens = [token for token in tokens if token.kind != "comment"]
    if not tokens:
        return
    kinds = [token.kind for token in tokens]
    if "<" not in kinds:
        yield Address(_address(tokens), _plain(comments[-1]) if comments else "")
        return
    opening = kinds.index("<")
    phrase, inside = tokens[:opening], tokens[opening + 1 : -1]
    if kinds[-1] != ">" or "<" in kinds[opening + 1 :]:
        message = "an address in angle brackets is followed by more"
        raise NoAddressList(message)
    if phrase and not _is_phrase(phrase):
        message = "the name before an address must be quoted"
        raise NoAddressList(message)
    name = " ".join(_plain(_unquoted(token)) for token in phrase)
    if not name and comments:
        name = _plain(comments[-1])
    yield Address(_address(_without_route(inside)) if inside else "", name)


def _without_route(tokens: Sequence[_Token]) -> Sequence[_Token]:
    """Leave out the obsolete route ``@one,@two:`` (RFC 5322 section 4.4)."""
    kinds = [token.kind for token in tokens]
    if kinds and kinds[0] in {"@", ","} and ":" in kinds:
        return tokens[kinds.index(":") + 1 :]
    return tokens


def _address(tokens: Sequence[_Token]) -> str:
    """Return words, dots and one @ put together as an address."""
    kinds = [token.kind for token in tokens]
    if set(kinds) - {"word", "quoted", "literal", "@"} or kinds.count("@") > 1:
        message = "a name without angle brackets, or an address that is none"
        raise NoAddressList(message)
    at = kinds.index("@") if "@" in kinds else len(kinds)
    local, domain = tokens[:at], tokens[at + 1 :]
    if not local or "literal" in kinds[:at] or "quoted" in kinds[at:]:
        message = "an address lacks what stands before or behind its @"
        raise NoAddressList(message)
    if at == len(kinds):
        return _joined(local)
    if not domain or ("literal" in kinds and len(domain) > 1):
        message = "an address has no domain behind its @"
        raise NoAddressList(message)
    return f"{_joined(local)}@{_joined(domain)}"


def _joined(tokens: Sequence[_Token]) -> str:
    text = ""
    for token in tokens:
        if text and not (text.endswith(".") or token.text.startswith(".")):
            message = f"{text!r} and {token.text!r} are not one address"
            raise NoAddressList(message)
        text += token.text
    return text


def _unquoted(token: _Token) -> str:
    return token.text[1:-1] if token.kind == "quoted" else token.text


def _plain(text: str) -> str:
    """Return text without the backslashes that quote, in one line."""
    return " ".join(re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL).split())
