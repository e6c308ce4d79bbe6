"""The words of the sendmail command. Pure.

Those of Sendmail 8 that programs use, as other mail systems take them too: what changes
nothing here is taken and ignored; what cannot be meant is refused.

Rules of this file: as light as vnsmail/drop/form.py.
"""

from collections.abc import Callable

Taker = Callable[["Options", str], None]

WITH_VALUE = "ABCDFLMNOQRVXbdefhopqr"
"""Options that have a value; see getopt(3)."""
ATTACHED = "dqMQ"
"""Those of them whose value, if any, stands in the same word."""
PLAIN = "GIUcgimnstvx"
IGNORED = "ABCDGILMQUXcdeghmnopqsx"
"""Body type, hop count, configuration files, log, queue groups, error modes …"""

DELIVER, LIST, TALK, NOTHING = "deliver", "list", "talk", "nothing"

_ELSEWHERE = {
    "d": "the daemon is `vnsmail up`",
    "D": "the daemon is `vnsmail up`",
    "t": "there is no address test mode",
    "v": "addresses are not verified on their own; send, or ask with SMTP's RCPT",
    "h": "there is no host status",
    "H": "there is no host status",
    "l": "there is no arpa net mode",
}


class Usage(Exception):
    """The words make no sense; the message says which."""


class Options:
    """What the words ask for.

    Attributes:
        mode: DELIVER, LIST (-bp), TALK (-bs) or NOTHING (-bi, -q).
        recipients: addresses.
        sender: -f or -r; None if it was not given; empty for the null one.
        name: -F.
        take_recipients: -t.
        dot_is_text: -i: a line with a dot does not end the message.
        verbose: -v.
        notify: -N, in the words of RFC 3461.
        returned: -R.
        envelope_id: -V.
    """

    __slots__ = (
        "dot_is_text",
        "envelope_id",
        "mode",
        "name",
        "notify",
        "recipients",
        "returned",
        "sender",
        "take_recipients",
        "verbose",
    )

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.recipients: tuple[str, ...] = ()
        self.sender: str | None = None
        self.name = ""
        self.take_recipients = self.dot_is_text = self.verbose = False
        self.notify = self.returned = self.envelope_id = ""


def parse(program: str, words: list[str]) -> Options:
    """Return what the words of a command line ask for.

    Args:
        program: name that it was called by; ``mailq`` and ``newaliases`` have modes of
            their own.
        words: what follows.

    Raises:
        Usage: an option is unknown or lacks its value.
    """
    options = Options({"mailq": LIST, "newaliases": NOTHING}.get(program, DELIVER))
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            waiting.insert(0, word)
            break
        _take_word(options, word[1:], waiting)
    # As in Sendmail, an argument may hold several, parted by commas.
    options.recipients = tuple(
        address
        for argument in waiting
        for each in _parts(argument)
        if (address := _bare(each))
    )
    return options


def _take_word(options: Options, letters: str, waiting: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in WITH_VALUE:
            value, letters = letters, ""
            if not value and letter not in ATTACHED:
                if not waiting:
                    message = f"option -{letter} lacks its value"
                    raise Usage(message)
                value = waiting.pop(0)
            _take(options, letter, value)
        elif letter in PLAIN:
            _take(options, letter, "")
        else:
            message = f"there is no option -{letter}"
            raise Usage(message)


def _take(options: Options, letter: str, value: str) -> None:
    """Take one option; those that are not named here are IGNORED."""
    if letter in _TAKE:
        _TAKE[letter](options, value)


def _mode(value: str) -> str:
    modes = {"m": DELIVER, "p": LIST, "s": TALK, "i": NOTHING}
    if value[:1] in modes:
        return modes[value[:1]]
    if value[:1] in _ELSEWHERE:
        message = f"-b{value[:1]}: {_ELSEWHERE[value[:1]]}"
        raise Usage(message)
    message = f"there is no mode -b{value}"
    raise Usage(message)


def _old(options: Options, value: str) -> None:
    """Take an option of old, such as -oi, -om, -oem, -odi."""
    if value[:1] == "i":
        options.dot_is_text = True
    elif value[:1] == "v":
        options.verbose = True


def _long(options: Options, value: str) -> None:
    """Take -O Option=value; what is not known is another mail system's."""
    key, _, text = value.partition("=")
    if key.strip().lower() == "ignoredots":
        options.dot_is_text = text.strip().lower() in {"", "true", "t", "1", "yes"}


def _notify(value: str) -> str:
    words = [word.strip().upper() for word in value.split(",")]
    known = {"NEVER", "SUCCESS", "FAILURE", "DELAY"}
    if not set(words) <= known or ("NEVER" in words and len(words) > 1):
        message = f"-N {value}: say never, or some of success, failure, delay"
        raise Usage(message)
    return ",".join(dict.fromkeys(words))


def _returned(value: str) -> str:
    word = value.upper()
    if word not in {"FULL", "HDRS"}:
        message = f"-R {value}: say full or hdrs"
        raise Usage(message)
    return word


def _parts(argument: str) -> list[str]:
    """Part an argument at its commas, but for those within quotes."""
    parts, quoted, start = [], False, 0
    for at, character in enumerate(argument):
        if character == '"' and argument[at - 1 : at] != "\\":
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(argument[start:at])
            start = at + 1
    parts.append(argument[start:])
    return parts


def _bare(text: str) -> str:
    """Return an address without the angle brackets and the name that may be around."""
    text = text.strip()
    if text.endswith(">") and "<" in text:
        text = text[text.rindex("<") + 1 : -1].strip()
    return text


def _set(slot: str, read: Callable[[str], object] = str) -> Taker:
    return lambda options, value: setattr(options, slot, read(value))


_TAKE: dict[str, Taker] = {
    "f": _set("sender", _bare),
    "r": _set("sender", _bare),
    "F": _set("name"),
    "i": _set("dot_is_text", lambda _: True),
    "t": _set("take_recipients", lambda _: True),
    "v": _set("verbose", lambda _: True),
    "N": _set("notify", _notify),
    "R": _set("returned", _returned),
    "V": _set("envelope_id"),
    "b": _set("mode", _mode),
    "q": _set("mode", lambda _: NOTHING),
    "o": _old,
    "O": _long,
}
