import pytest

from vnsmail.capture.mailboxes import HEADER_LIMIT, read_received
from vnsmail.errors import BadInput

MESSAGE = """\
Return-Path: <>
Received: from alpha.example (alpha.example [10.77.0.11])
\tby mx1.north.example; today
Received: from earlier.example by elsewhere

Received: from body
"""


def deliver(folder, name, text=MESSAGE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize("part", ["new", "cur"])
@pytest.mark.parametrize("below", ["", "bob", "hosts/north.example/mail/bob"])
def test_where_mail_is_found(tmp_path, part, below):
    """In a Maildir, read or unread, or in Maildirs below a folder; never in tmp."""
    deliver(tmp_path / below / part, "1")
    deliver(tmp_path / below / "tmp", "2")
    deliver(tmp_path / below, "3")

    (found,) = read_received(tmp_path)
    assert "mx1.north.example" == found.remote
    assert {"alpha.example"} == found.names


def test_remote_that_does_not_say_who_it_is(tmp_path):
    deliver(tmp_path / "north" / "new", "1", "Received: from alpha.example\n\n")

    assert ["north"] == [line.remote for line in read_received(tmp_path / "north")]


@pytest.mark.parametrize(
    "text",
    ["", "\n", "Subject: x\n\nReceived: from body\n", "x" * 3 * HEADER_LIMIT],
)
def test_messages_without_the_field(tmp_path, text):
    """However long its lines are, no more than a header's length is read."""
    deliver(tmp_path / "new", "1", text)

    assert [] == read_received(tmp_path)


def test_line_ends_of_the_network(tmp_path):
    """Both kinds of line ends are read."""
    deliver(tmp_path / "new", "1")
    (tmp_path / "new" / "1").write_bytes(MESSAGE.replace("\n", "\r\n").encode())

    assert 1 == len(read_received(tmp_path))


def test_message_that_is_moved_meanwhile(tmp_path):
    """Its reader took it from new to cur: it is gone from where it was listed."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1").symlink_to("nowhere")

    assert [] == read_received(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_received(tmp_path / "none")


def test_message_that_cannot_be_read(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1").symlink_to("1")
    with pytest.raises(BadInput, match="too many levels"):
        read_received(tmp_path)
