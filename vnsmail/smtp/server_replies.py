"""Who a server says it is, and what it says: the replies that are always the same.

Rules of this file: no decision. What is announced to a client follows from ServerConfig
and from whether there is TLS; nothing is announced that the session would refuse then.
"""

from dataclasses import dataclass
from functools import lru_cache

from vnsmail.model import Role
from vnsmail.smtp.replies import Reply


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Who the server is, what it offers, and its limits."""

    name: str
    """Its name in greeting and EHLO."""
    max_message_size: int
    """Octets of a body; announced with SIZE (RFC 1870)."""
    max_recipients: int = 1000
    """Recipients of one transaction (100 at least: RFC 5321 section 4.5.3.1.8)."""
    max_bad_commands: int = 20
    """Commands that make no sense between two messages; Postfix, too, hangs up at 20
    (smtpd_hard_error_limit)."""
    role: Role = Role.MX
    starttls: bool = False
    """TLS can be begun (RFC 3207)."""
    mechanisms: tuple[str, ...] = ()
    """SASL mechanisms, in upper case; offered on submission, and only within TLS."""
    max_failed_auth: int = 3
    """Attempts to sign in that may fail in one session (RFC 4954 section 4 advises so)."""
    strict_8bit: bool = False
    """Text beyond ASCII is refused not only where BODY=7BIT was said, but wherever
    BODY=8BITMIME was not. Many programs never say it."""


SENDER_OK = b"250 2.1.0 sender ok\r\n"
RECIPIENT_OK = b"250 2.1.5 recipient ok\r\n"
MESSAGE_OK = b"250 2.0.0 accepted\r\n"
OK = b"250 2.0.0 ok\r\n"
GO_AHEAD = b"354 end with <CRLF>.<CRLF>\r\n"
TLS_GO_AHEAD = b"220 2.0.0 begin TLS\r\n"
SIGNED_IN = b"235 2.7.0 signed in\r\n"
# RFC 5321 section 3.5.3: 252 promises nothing, and tells nobody who has a mailbox.
TRY_IT = b"252 2.5.0 send mail and see\r\n"
HELP = b"214 2.0.0 see RFC 5321\r\n"

TOO_MANY_RECIPIENTS = Reply(452, ("too many recipients",), "4.5.3").encode()
TOO_BIG = Reply(552, ("the message is too big",), "5.3.4").encode()
NEEDS_SMTPUTF8 = Reply(553, ("the address needs SMTPUTF8",), "5.6.7").encode()
AUTH_CANCELLED = Reply(501, ("cancelled",), "5.7.0").encode()
AUTH_NOT_BASE64 = Reply(501, ("the response is not base64",), "5.5.2").encode()
AUTH_TOO_LONG = Reply(500, ("the response is too long",), "5.5.6").encode()

SHUTDOWN = Reply(421, ("closing down, try again later",), "4.3.2")
TALKED_EARLY = Reply(554, ("you talked before the greeting",), "5.5.1")
TALKED_BEFORE_TLS = Reply(554, ("nothing may follow STARTTLS but TLS",), "5.5.1")
TOO_MANY_ERRORS = Reply(421, ("too many errors",), "4.7.0")
TOO_MANY_FAILED_AUTH = Reply(421, ("too many failed attempts to sign in",), "4.7.0")
TOO_LONG = Reply(500, ("line too long",), "5.5.2")
NO_RECIPIENT = Reply(554, ("no valid recipients",), "5.5.1")
IN_TRANSACTION = Reply(503, ("a transaction is under way",), "5.5.1")
NOT_AVAILABLE = Reply(502, ("this is not available",), "5.5.1")
NO_SUCH_COMMAND = Reply(500, ("there is no such command",), "5.5.1")
TLS_ALREADY = Reply(503, ("this is TLS already",), "5.5.1")
SIGNED_IN_ALREADY = Reply(503, ("you have signed in already",), "5.5.1")
TLS_BEFORE_MAIL = Reply(530, ("say STARTTLS first",), "5.7.0")
REQUIRETLS_IN_PLAIN = Reply(
    530, ("REQUIRETLS is for sessions within TLS: say STARTTLS first",), "5.7.10"
)
AUTH_BEFORE_MAIL = Reply(530, ("sign in first (AUTH)",), "5.7.0")
TLS_BEFORE_AUTH = Reply(538, ("say STARTTLS first",), "5.7.11")
NO_SUCH_MECHANISM = Reply(504, ("there is no such mechanism here",), "5.5.4")
WITHIN_CHUNKS = Reply(503, ("the message is coming by BDAT",), "5.5.1")


@lru_cache(maxsize=1024)
def ehlo_reply(config: ServerConfig, *, secure: bool) -> bytes:
    """Return the answer to EHLO: what there is here, for this client, now."""
    extensions = [
        "PIPELINING",
        f"SIZE {config.max_message_size}",
        "8BITMIME",
        "SMTPUTF8",
        "CHUNKING",
        "DSN",
        "ENHANCEDSTATUSCODES",
    ]
    if config.starttls and not secure:
        extensions.append("STARTTLS")
    if secure:
        extensions.append("REQUIRETLS")
    if may_auth(config, secure=secure):
        extensions.append(f"AUTH {' '.join(config.mechanisms)}")
    return Reply(250, (config.name, *extensions, "VRFY", "HELP")).encode()


def may_auth(config: ServerConfig, *, secure: bool) -> bool:
    """Say whether somebody may sign in: on submission, and within TLS."""
    return bool(config.mechanisms) and config.role is Role.SUBMISSION and secure
