"""The sendmail command: what programs hand their mail to.

    stdin ─► a file in the drop ─► asked: ``take NAME`` ─► taken, or refused and told
                                └► nobody there: it stays, on disk, until the daemon runs

Called as ``sendmail``, ``mailq`` or ``newaliases`` (links to vnsmail-sendmail), or as
``vnsmail sendmail``. Exit codes are those of sysexits.h.

Rules of this file: it runs as whoever calls it and needs no privilege; zero means that
the message is on disk; light imports only; mail is not parsed here.
"""

import io
import os
import socket
import sys
from collections.abc import Iterator

from vnsmail.cli import sendmail_options as words_of
from vnsmail.drop import form
from vnsmail.drop.writer import CannotDrop, Place, Writer

PIECE = 65536
PATIENCE = 60.0
"""Seconds that the daemon may take. Then the message stays where it is, and it will be
taken: this is a wait for the answer only."""

MAX_ANSWER = 128 * 1024


def main() -> None:
    """Run as a program of its own, by whatever name."""
    program = os.path.basename(sys.argv[0])
    sys.exit(run(program, sys.argv[1:], os.environ.get("VNSMAIL_ROOT")))


def run(program: str, words: list[str], root: str | None) -> int:
    """Carry out a command line; return the exit code.

    Args:
        program: name that it was called by.
        words: what follows.
        root: folder of the installation; None: the system's own.
    """
    try:
        return _run(words_of.parse(program, words), Place(root))
    except words_of.Usage as error:
        return complain(str(error), os.EX_USAGE)
    except CannotDrop as error:
        return complain(error.reason, error.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_IOERR
    except OSError as error:
        return complain(f"cannot do this: {error.strerror or error}", os.EX_IOERR)
    except KeyboardInterrupt:
        return 130


def _run(options: words_of.Options, place: Place) -> int:
    if options.mode == words_of.LIST:
        return list_queue(place)
    if options.mode == words_of.NOTHING:
        return os.EX_OK  # queues run by themselves, aliases are in the directory
    with open(0, "rb", closefd=False) as stream:
        if options.mode == words_of.TALK:
            from vnsmail.cli import sendmail_talk  # noqa: PLC0415  it is not light

            return sendmail_talk.talk(place, options, stream)
        return deliver(place, options, lines_of(stream, options))


def complain(text: str, code: int) -> int:
    """Say what is wrong in a line; return the exit code."""
    sys.stderr.write(f"sendmail: {text}\n")
    return code


# Sending --------------------------------------------------------------------------


def deliver(place: Place, options: words_of.Options, message: Iterator[bytes]) -> int:
    """Leave one message, and have it taken if somebody is there to take it.

    Raises:
        CannotDrop: it is not left.
    """
    if not options.recipients and not options.take_recipients:
        return complain("give a recipient, or -t", os.EX_USAGE)
    code, text = hand_over(place, options, message)
    if code:
        return complain(text, code)
    if options.verbose:
        sys.stderr.write(f"{text}\n")
    return code


def hand_over(
    place: Place, options: words_of.Options, message: Iterator[bytes]
) -> tuple[int, str]:
    """Leave one message; return an exit code, and what became of it in words.

    Raises:
        CannotDrop: it is not left.
    """
    request = form.Request(
        options.sender,
        options.recipients,
        name=options.name or (_real_name() if options.sender is None else ""),
        take_recipients=options.take_recipients,
        notify=options.notify,
        returned=options.returned,
        envelope_id=options.envelope_id,
    )
    writer = Writer(place.folder(), request, place.max_size())
    try:
        for piece in message:
            writer.write(piece)
        return named(place, writer)
    finally:
        writer.discard()


def named(place: Place, writer: Writer) -> tuple[int, str]:
    """Give a whole message its name, and ask for it to be taken; as ``hand_over``.

    Raises:
        CannotDrop: it is not left.
    """
    name = writer.finish()
    answers = ask(place, f"take {name}")
    answer = answers[0] if answers else ""
    if answer.startswith("taken "):
        return os.EX_OK, f"queued as {answer.removeprefix('taken ')}"
    if answer.startswith("refused "):
        _, code, text = answer.split(" ", 2)
        return int(code), text
    # It has its name, so it is taken sooner or later, if only it is on the disk.
    writer.keep()
    why = answer.removeprefix("later ") or "vnsmail is not running"
    return os.EX_OK, f"left for later: {why}"


def _real_name() -> str:
    """Return the name of the account for people, as Sendmail does; it may be empty."""
    import pwd  # noqa: PLC0415

    name = os.environ.get("NAME", "")
    if not name:
        try:
            entry = pwd.getpwuid(os.geteuid())
        except KeyError:
            return ""
        name = entry.pw_gecos.partition(",")[0]
        name = name.replace("&", entry.pw_name.capitalize())
    name = "".join(c for c in name if c.isprintable()).strip()
    try:
        name.encode()
    except UnicodeEncodeError:
        return ""
    return name[: form.MAX_TEXT]


def lines_of(stream: io.BufferedReader, options: words_of.Options) -> Iterator[bytes]:
    """Return the message in pieces; without -i a line with a dot ends it."""
    if options.dot_is_text:
        while piece := stream.read1(PIECE):
            yield piece
        return
    at_start = True
    while line := stream.readline(PIECE):
        if at_start and line in {b".\n", b".\r\n", b"."}:
            return
        at_start = line.endswith(b"\n")
        yield line


# Asking ---------------------------------------------------------------------------


def ask(place: Place, question: str) -> list[str]:
    """Return what the daemon says to a question; nothing if it does not answer."""
    answers = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(place.socket)
            sock.send(question.encode())
            while packet := sock.recv(MAX_ANSWER):
                answers.append(packet.decode("utf-8", "replace"))
                if question != "list":
                    break
    except OSError:
        pass
    return answers


def list_queue(place: Place) -> int:
    """Print what waits, as mailq(1) does."""
    folder = place.folder()
    left = [name for name in os.listdir(folder) if form.is_name(name)]
    answers = ask(place, "list")
    if answers and answers[0].startswith("refused "):
        _, code, text = answers[0].split(" ", 2)
        return complain(text, int(code))
    if left:
        print(f"{len(left)} left for the daemon to take")  # noqa: T201
    if not answers:
        print("Mail queue is empty")  # noqa: T201
        return os.EX_OK
    print("-Queue ID-----------  --Size--  ----Arrived-----  -Sender/Recipient---")  # noqa: T201
    for answer in answers:
        _print_entry(answer.split("\n"))
    print(f"-- {len(answers)} in the queue")  # noqa: T201
    return os.EX_OK


def _print_entry(lines: list[str]) -> None:
    import time  # noqa: PLC0415

    queue_id, size, arrived, sender = lines[0].split("\t")
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(int(arrived)))
    print(f"{queue_id:<20}  {size:>8}  {at}  {sender or '<>'}")  # noqa: T201
    for line in lines[1:]:
        address, _, last = line.partition("\t")
        if last:
            print(f"{'':>40}({last})")  # noqa: T201
        print(f"{'':>50}{address}")  # noqa: T201


if __name__ == "__main__":
    main()
