"""The transcripts in dialogues/, each held in three ways (see README.md there)."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.smtp.helpers import CONFIG, Driver, in_bytes
from vnsmail.model import Role
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
    Connected,
    DataRequested,
    MailRequested,
    MessageReceived,
    Question,
    RecipientRequested,
    ServerConfig,
)

FILES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))

ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}

KINDS: dict[type, str] = {
    Connected: "connect",
    MailRequested: "mail",
    RecipientRequested: "rcpt",
    DataRequested: "data",
    MessageReceived: "message",
}


@dataclass
class Dialogue:
    config: ServerConfig = CONFIG
    secure: bool = False
    refusals: dict[tuple[str, str], Reply] = field(default_factory=dict)
    turns: list[tuple[str, bytes]] = field(default_factory=list)
    """Who, and what: C (client), S (server)."""
    events: list[str] = field(default_factory=list)
    client_ends: bool = False
    server_closes: bool = False

    def said(self, who: str) -> bytes:
        return b"".join(what for speaker, what in self.turns if speaker == who)

    def answer(self, question: Question) -> Reply | None:
        subject = "-"
        if isinstance(question, MailRequested):
            subject = f"<{question.sender or ''}>"
        elif isinstance(question, RecipientRequested):
            subject = str(question.recipient)
        return self.refusals.get((KINDS[type(question)], subject))

    def driver(self) -> Driver:
        return Driver(self.config, self.answer, secure=self.secure)

    def check_end(self, driver: Driver) -> None:
        assert self.server_closes == driver.session.closing
        if self.events:
            assert self.events == driver.told


def octets(text: str) -> bytes:
    text = re.sub(r"\{(\d+)\*([^}]*)\}", lambda match: match[2] * int(match[1]), text)
    pieces = re.split(r"\\(x..|.)", text)
    return b"".join(
        piece.encode()
        if number % 2 == 0
        else bytes.fromhex(piece[1:])
        if piece[0] == "x"
        else ESCAPES[piece].encode()
        for number, piece in enumerate(pieces)
    )


def read(path: Path) -> Dialogue:
    dialogue = Dialogue()
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        mark, _, text = line.partition(" ")
        match mark:
            case "C:":
                dialogue.turns.append(("C", octets(text) + b"\r\n"))
            case "C-":
                dialogue.turns.append(("C", octets(text)))
            case "S:":
                dialogue.turns.append(("S", text.encode() + b"\r\n"))
            case "C!":
                dialogue.client_ends = True
            case "S!":
                dialogue.server_closes = True
            case "E:":
                dialogue.events.append(text)
            case "!":
                setting(dialogue, text.split(" ", 3))
            case _:
                raise ValueError(line)
    return dialogue


def setting(dialogue: Dialogue, words: list[str]) -> None:
    if words[0] == "refuse":
        _, kind, subject, reply = words
        code, enhanced, text = reply.split(" ", 2)
        dialogue.refusals[kind, subject] = Reply(int(code), (text,), enhanced)
    elif words[0] == "submission":
        dialogue.config = replace(
            dialogue.config, role=Role.SUBMISSION, mechanisms=tuple(words[1:])
        )
    elif words[0] == "tls":
        dialogue.config = replace(dialogue.config, starttls=True)
        dialogue.secure = words[1] == "on"
    else:
        limits: dict[str, Any] = {words[0]: int(words[1])}
        dialogue.config = replace(dialogue.config, **limits)


each_dialogue = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each_dialogue
def test_line_by_line(path):
    """Each reply is there before the client's next line."""
    dialogue = read(path)
    driver = dialogue.driver()
    heard, expected = driver.sent(), b""
    for who, what in dialogue.turns:
        if who == "C":
            assert expected == heard
            heard += driver.feed(what)
        else:
            expected += what
    if dialogue.client_ends:
        heard += driver.eof()

    assert expected == heard
    dialogue.check_end(driver)


@each_dialogue
@pytest.mark.parametrize("pieces", [in_bytes, lambda data: [data]], ids=["cut", "once"])
def test_cut_in_other_ways(path, pieces):
    """How the octets are cut makes no difference to replies and events."""
    dialogue = read(path)
    driver = dialogue.driver()
    heard = driver.sent()
    if data := dialogue.said("C"):
        heard += driver.feed(*pieces(data))
    if dialogue.client_ends:
        heard += driver.eof()

    assert dialogue.said("S") == heard
    dialogue.check_end(driver)


def test_there_are_dialogues():
    """The folder was found."""
    assert len(FILES) > 15
