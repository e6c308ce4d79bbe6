import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import BadInput
from vnsmail.sasl import passwords
from vnsmail.sasl.passwords import (
    ITERATIONS,
    ScramKeys,
    derive,
    generate,
    nobodys_keys,
    read_keys,
    verify,
    write_keys,
)

RIGHT = "correct horse ½"


@pytest.fixture(scope="module")
def kept():
    return derive(RIGHT)


class TestHash:
    """What PLAIN and LOGIN are checked against."""

    def test_right_and_wrong(self, kept):
        """The password fits, in every spelling that SASLprep makes one; nothing else."""
        assert verify(kept.password, RIGHT)
        assert verify(
            kept.password, RIGHT.replace(" ", "\u00a0").replace("½", "1\u20442")
        )
        for wrong in ("", "correct horse", RIGHT.upper(), RIGHT + "\0", "x" * 5000):
            assert not verify(kept.password, wrong)

    def test_is_of_the_profile(self, kept):
        """Argon2id with 19 MiB, 2 passes, 1 lane, and a salt of its own each time."""
        pattern = r"\$argon2id\$v=19\$m=19456,t=2,p=1\$[^$]{22}\$[^$]{43}"
        assert re.fullmatch(pattern, kept.password)
        assert kept.password != derive(RIGHT).password

    @pytest.mark.parametrize("text", ["", "x", "$argon2id$", "$2b$12$abc"])
    def test_that_is_none(self, text):
        """Nobody signs in with a hash that is empty or broken."""
        assert not verify(text, RIGHT)
        assert not verify(text, "")

    def test_nobody_costs_as_much(self, kept, monkeypatch):
        """Without a hash, one of the same cost is computed."""
        hasher = Recording()
        monkeypatch.setattr(passwords, "_hasher", hasher)
        for password_hash in (kept.password, ""):
            for password in (RIGHT, "\0"):
                verify(password_hash, password)

        costs = [text.split("$")[1:4] for text in hasher.asked]
        assert [["argon2id", "v=19", "m=19456,t=2,p=1"]] * 4 == costs

    @pytest.mark.parametrize("password", ["", "short12", "1234567\0", "\u0627aaaaaaa1"])
    def test_refused(self, password):
        """What is too short or forbidden is refused, and not repeated."""
        with pytest.raises(BadInput, match="password") as caught:
            derive(password)

        assert not password or password not in str(caught.value)


class Recording:
    """A hasher that remembers which hashes it compared with."""

    def __init__(self):
        self.asked = []
        self.hash = passwords._hasher.hash

    def verify(self, text, _):
        self.asked.append(text)
        return True


class TestKeys:
    """What SCRAM is checked against."""

    def test_of_a_password(self, kept):
        """They say how they were made, and are read back as they were."""
        keys = read_keys(kept.scram)
        assert keys is not None

        assert (16, 32, 32, ITERATIONS) == (
            len(keys.salt),
            len(keys.stored_key),
            len(keys.server_key),
            keys.iterations,
        )
        assert kept.scram == write_keys(keys)

    @given(
        st.builds(
            ScramKeys,
            st.binary(min_size=16, max_size=32),
            st.binary(min_size=32, max_size=32),
            st.binary(min_size=32, max_size=32),
            st.integers(4096, 10**6),
        )
    )
    def test_written_and_read(self, keys):
        """Any keys are."""
        assert keys == read_keys(write_keys(keys))

    @given(st.text() | st.from_regex(r"SCRAM-SHA-256\$\d{1,5}:[\w=]*\$[\w=]*:[\w=]*"))
    def test_reads_anything(self, text):
        """What is not theirs is nobody's."""
        keys = read_keys(text)

        assert keys is None or len(keys.stored_key) == 32

    def test_of_nobody(self, kept):
        """They look like real ones, stay the same, and differ by name and by secret."""
        keys = nobodys_keys(b"s" * 32, "eve")
        real = read_keys(kept.scram)
        assert real is not None
        assert (len(real.salt), real.iterations) == (len(keys.salt), keys.iterations)
        assert keys == nobodys_keys(b"s" * 32, "eve")
        salts = {keys.salt}
        salts |= {
            nobodys_keys(b"s" * 32, "bob").salt,
            nobodys_keys(b"t" * 32, "eve").salt,
        }

        assert len(salts) == 3

    def test_are_not_shown(self, kept):
        """Logs and tracebacks have no keys."""
        assert "key" not in repr(read_keys(kept.scram))


def test_generated():
    """It has 100 random bits, is another each time, and can be used."""
    first, second = generate(), generate()

    assert re.fullmatch(r"([a-z2-9]{5}-){3}[a-z2-9]{5}", first)
    assert first != second
    assert derive(first).password
