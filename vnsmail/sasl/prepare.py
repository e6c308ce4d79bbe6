"""Names and passwords in the one spelling that is compared (SASLprep, RFC 4013). Pure.

Rules of this file: what cannot be prepared is refused, never repaired; limits keep a
client from making us normalise a book.
"""

from scramp.utils import ScramException, saslprep

MAX_NAME = 320
"""Characters: 64 of a local part, the @, and 255 of a domain (RFC 3696 erratum 1690)."""

MAX_PASSWORD = 1024
"""Characters. OWASP asks for 64 at least, and for a limit."""


class Unprepared(ValueError):
    """A text that is no name and no password."""


def name(text: str) -> str:
    """Return a name as it is compared.

    Raises:
        Unprepared: it is empty, too long, or has characters that SASLprep forbids.
    """
    return _prepared(text, MAX_NAME)


def password(text: str) -> str:
    """Return a password as it is hashed; as ``name``."""
    return _prepared(text, MAX_PASSWORD)


def _prepared(text: str, longest: int) -> str:
    if len(text) > longest:
        message = f"longer than {longest} characters"
        raise Unprepared(message)
    try:
        prepared: str = saslprep(text)
    except ScramException as error:
        raise Unprepared(error.args[0]) from None
    if not prepared:
        message = "empty"
        raise Unprepared(message)
    return prepared
