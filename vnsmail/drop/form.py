"""What a dropped file says in front of its message. Pure.

    vnsmail-drop 1 SIZE            bytes of the message, 16 digits
    from ADDRESS                   as -f gave it; <> is the null reverse-path
    to ADDRESS                     each on its line
    name TEXT                      as -F gave it
    headers                        with -t: those that the message names, too
    notify WORDS, return WORD, envelope-id TEXT          (RFC 3461)
                                   an empty line, then the message

Rules of this file: it is read by the supervisor as text of a stranger: bounded, and
anything it does not know is an error. It imports nothing, for a command that runs a
thousand times must start at once; so no dataclasses here.
"""

MAGIC = "vnsmail-drop 1 "
SIZE_DIGITS = 16
MAX_FRONT = 256 * 1024
"""Bytes in front of a message: a thousand recipients of the longest kind."""

MAX_TEXT = 1024
"""Characters of one value."""

NAME_DIGITS = 32
_HEXADECIMAL = frozenset("0123456789abcdef")


class BadDrop(ValueError):
    """It is no dropped file, or not a whole one; the message says why."""


class Request:
    """What is asked for one message.

    Attributes:
        sender: the reverse-path; None if it was not given, empty for the null one.
        recipients: addresses; one without a domain is meant at the sender's host.
        name: the sender's name for people.
        take_recipients: the message names recipients (sendmail -t).
        notify: when to notify the sender, as NOTIFY= of RFC 3461; empty: not given.
        returned: ``FULL`` or ``HDRS``, as RET=; empty: not given.
        envelope_id: as ENVID=, not encoded; empty: not given.
    """

    __slots__ = (
        "envelope_id",
        "name",
        "notify",
        "recipients",
        "returned",
        "sender",
        "take_recipients",
    )

    def __init__(
        self,
        sender: str | None = None,
        recipients: tuple[str, ...] = (),
        *,
        name: str = "",
        take_recipients: bool = False,
        notify: str = "",
        returned: str = "",
        envelope_id: str = "",
    ) -> None:
        self.sender = sender
        self.recipients = recipients
        self.name = name
        self.take_recipients = take_recipients
        self.notify = notify
        self.returned = returned
        self.envelope_id = envelope_id

    def _facts(self) -> tuple[object, ...]:
        return tuple(getattr(self, slot) for slot in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())

    def __repr__(self) -> str:
        return f"Request{self._facts()}"


def is_name(text: str) -> bool:
    """Say whether a file of that name is a dropped message."""
    return len(text) == NAME_DIGITS and _HEXADECIMAL.issuperset(text)


def front(request: Request, size: int) -> bytes:
    """Return what stands in front of a message of that many bytes.

    Raises:
        BadDrop: a value has a line break or another control character, or is too long.
    """
    lines = []
    if request.sender is not None:
        lines.append(("from", request.sender or "<>"))
    lines += [("to", each) for each in request.recipients]
    lines += [
        (key, value)
        for key, value in (
            ("name", request.name),
            ("notify", request.notify),
            ("return", request.returned),
            ("envelope-id", request.envelope_id),
        )
        if value
    ]
    for key, value in lines:
        _check(key, value)
    text = "".join(f"{key} {value}\n" for key, value in lines)
    text += "headers\n" if request.take_recipients else ""
    try:
        data = f"{first_line(size)}{text}\n".encode()
    except UnicodeEncodeError:
        message = "an address or a name is no UTF-8"
        raise BadDrop(message) from None
    if len(data) > MAX_FRONT:
        message = f"the recipients take more than {MAX_FRONT} bytes"
        raise BadDrop(message)
    return data


def first_line(size: int) -> str:
    """Return the first line, which has the same length for any size."""
    return f"{MAGIC}{size:0{SIZE_DIGITS}}\n"


def read_front(data: bytes) -> tuple[Request, int, int]:
    """Return what is asked, where the message begins, and how many bytes it has.

    Args:
        data: the first MAX_FRONT bytes of a file, or all of it.

    Raises:
        BadDrop: it is none of ours.
    """
    end = data.find(b"\n\n")
    if end < 0 or not data.startswith(MAGIC.encode()):
        message = "it does not begin as it should"
        raise BadDrop(message)
    try:
        first, *lines = data[:end].decode().split("\n")
    except UnicodeDecodeError:
        message = "what stands in front of the message is no UTF-8"
        raise BadDrop(message) from None
    digits = first.removeprefix(MAGIC)
    if len(digits) != SIZE_DIGITS or not (digits.isascii() and digits.isdecimal()):
        message = "it does not say how long the message is"
        raise BadDrop(message)
    return _request(lines), end + 2, int(digits)


def _request(lines: list[str]) -> Request:
    found: dict[str, str] = {}
    recipients = []
    for line in lines:
        key, _, value = line.partition(" ")
        if key == "headers":
            value = "all"
        _check(key, value)
        if key == "to":
            recipients.append(value)
        elif key in found or key not in _KEYS:
            message = f"{key[:20]!r} is unknown, or said twice"
            raise BadDrop(message)
        else:
            found[key] = value
    sender = found.get("from")
    return Request(
        "" if sender == "<>" else sender,
        tuple(recipients),
        name=found.get("name", ""),
        take_recipients="headers" in found,
        notify=found.get("notify", ""),
        returned=found.get("return", ""),
        envelope_id=found.get("envelope-id", ""),
    )


_KEYS = frozenset({"from", "name", "headers", "notify", "return", "envelope-id"})


def _check(key: str, value: str) -> None:
    if not value or len(value) > MAX_TEXT or not value.isprintable():
        message = f"{key[:20]!r} is empty, too long, or has a control character"
        raise BadDrop(message)
