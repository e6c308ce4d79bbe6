from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import QueueUnavailable
from vnsmail.queue.body import INCOMING, Body, BodyWriter


@pytest.fixture
def folder(tmp_path):
    (tmp_path / INCOMING).mkdir()
    return tmp_path


def files(folder):
    return list((folder / INCOMING).iterdir())


def whole(body, n=65536):
    return b"".join(body.chunks(n))


@pytest.mark.parametrize(("size", "spooled"), [(0, 0), (10, 0), (11, 1), (500, 1)])
def test_goes_to_a_file_beyond_the_threshold(folder, size, spooled):
    """Up to the threshold a body is in memory; beyond it all is in one file."""
    writer = BodyWriter(folder, threshold=10)
    data = bytes(i % 256 for i in range(size))
    for start in range(0, size, 7):
        writer.write(data[start : start + 7])
    body = writer.finish()

    assert data == whole(body)
    assert size == body.size == writer.size
    assert spooled == len(files(folder))


@given(st.binary(), st.binary(), st.integers(1, 9))
def test_chunks_put_together_are_the_body(head, more, n):
    """Pieces are never longer than asked for, and lose nothing."""
    chunks = list(Body(more).prefixed(head).chunks(n))

    assert head + more == b"".join(chunks)
    assert all(0 < len(chunk) <= n for chunk in chunks)


def test_prefixed_file(folder):
    """A large body takes a header in front without being written again."""
    writer = BodyWriter(folder, threshold=0)
    writer.write(b"body")
    body = writer.finish().prefixed(b"B: 2\r\n").prefixed(b"A: 1\r\n")

    assert whole(body, 3) == b"A: 1\r\nB: 2\r\nbody"
    assert body.size == 16
    assert len(files(folder)) == 1


def test_only_the_owner_reads_the_file(folder):
    """Nobody but the worker's account reads a body."""
    writer = BodyWriter(folder, threshold=0)
    writer.write(b"secret")
    body = writer.finish()

    assert Path(str(body.file)).stat().st_mode & 0o777 == 0o600


def test_leaving_the_context_throws_away_what_is_not_finished(folder):
    """A session that dies leaves no file."""
    with BodyWriter(folder, threshold=0) as writer:
        writer.write(b"half")
        assert len(files(folder)) == 1

    assert files(folder) == []


def test_finished_body_survives_the_context(folder):
    """After finish the body is the caller's."""
    with BodyWriter(folder, threshold=0) as writer:
        writer.write(b"whole")
        body = writer.finish()

    assert whole(body) == b"whole"


def test_discarded_body(folder):
    """A body that is not wanted takes its file along, once and for all."""
    writer = BodyWriter(folder, threshold=0)
    writer.write(b"x")
    body = writer.finish()
    body.discard()
    body.discard()

    assert files(folder) == []


def test_disk_that_cannot_be_written(tmp_path):
    """A body that cannot be spooled is an error of the queue, and leaves nothing."""
    writer = BodyWriter(tmp_path, threshold=0)

    with pytest.raises(QueueUnavailable, match="no such file or directory"):
        writer.write(b"x")


def test_file_cut_short(folder):
    """A body that lost bytes is an error, never a shorter message."""
    writer = BodyWriter(folder, threshold=0)
    writer.write(b"0123456789")
    body = writer.finish()
    Path(str(body.file)).write_bytes(b"01234")

    with pytest.raises(QueueUnavailable, match="5 bytes short"):
        whole(body)


def test_file_gone(folder):
    """A body whose file was removed is an error that names the file."""
    body = Body(b"head", folder / "gone", 3)

    with pytest.raises(QueueUnavailable, match="gone"):
        whole(body)
