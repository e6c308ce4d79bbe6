"""What DNS says of a server's TLS (RFC 6698), as far as DNSSEC vouches for it."""

from dataclasses import dataclass

from vnsmail.tls.dane import Tlsa


@dataclass(frozen=True, slots=True)
class TlsaFound:
    """The records of one server."""

    records: tuple[Tlsa, ...] = ()
    """None where DNS has none, or nobody vouches for them."""
    base: str = ""
    """The name they were found for (RFC 7672 section 2.2.2)."""
