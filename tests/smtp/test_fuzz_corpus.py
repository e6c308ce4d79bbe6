"""The fuzz target's corpus, replayed: what once was interesting stays looked at."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.server_session import one

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus" / "server").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_replayed(path):
    one(path.read_bytes())


def test_there_is_a_corpus():
    assert len(CORPUS) > 10


LINES = st.sampled_from(
    [
        b"EHLO b.example\r\n",
        b"MAIL FROM:<a@b.example>\r\n",
        b"MAIL FROM:<a@b.example> BODY=7BIT RET=FULL ENVID=x\r\n",
        b"RCPT TO:<x@alpha.example>\r\n",
        b"RCPT TO:<x@alpha.example> NOTIFY=NEVER ORCPT=rfc822;a@b\r\n",
        b"DATA\r\n",
        b"text\r\n.\r\n",
        b"f\xfcr\r\n.\r\n",
        b"\0\r\n.\r\n",
        b"BDAT 6\r\nQUIT\r\n",
        b"BDAT 6 LAST\r\nQUIT\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 2000 LAST\r\n",
        b"BDAT 1\r\n\r",
        b"BDAT 1 LAST\r\n\n",
        b"BDAT x\r\n",
        b"AUTH PLAIN AGFubgBzZWNyZXQ=\r\n",
        b"AUTH PLAIN\r\n",
        b"AUTH LOGIN\r\n",
        b"YW5u\r\n",
        b"c2VjcmV0\r\n",
        b"*\r\n",
        b"STARTTLS\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"QUIT\r\n",
    ]
)
HEAD = b"EHLO b.example\r\n"
SIGNED_IN = HEAD + b"AUTH PLAIN AGFubgBzZWNyZXQ=\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<x@alpha.example>\r\n"


@given(
    st.integers(0, 2),
    st.integers(1, 255),
    st.sampled_from([b"", HEAD, HEAD + ENVELOPE, SIGNED_IN, SIGNED_IN + ENVELOPE]),
    st.lists(LINES | st.binary(max_size=30), max_size=15).map(b"".join),
)
def test_cuts_make_no_difference(which, size, head, rest):
    """Over everything: bodies, chunks, exchanges, whoever the server is."""
    one(bytes([which, size]) + head + rest)
