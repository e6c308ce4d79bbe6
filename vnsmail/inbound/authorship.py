"""Whose a submitted message says it is (RFC 6409 sections 6.1 and 8). Pure.

Every address of From and Sender must belong to who signed in. What is no address list
is refused: another program might read somebody else out of it.
"""

from collections.abc import Callable

from vnsmail.message.addresses import NoAddressList
from vnsmail.message.complete import authors
from vnsmail.message.headers import Header
from vnsmail.smtp.address import Mailbox, parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply

NULL_SENDER = Reply(
    550, ("the null sender is for notices; send as your own address",), "5.7.1"
)
SEVERAL_FROM = Reply(550, ("several From fields, RFC 5322 allows one",), "5.7.1")

_ONCE = ("from", "sender")


def refusal(
    header: Header, sender: str, belongs: Callable[[Mailbox], bool]
) -> Reply | None:
    """Return why a message may not be sent by its user; None if it may.

    Args:
        header: of the message, whole.
        sender: reverse-path without brackets.
        belongs: says whether an address is the user's.
    """
    if not sender and not _is_notice(header):
        return NULL_SENDER
    for name in _ONCE:
        fields = sum(field.name == name for field in header.fields)
        if fields > 1:
            return (
                SEVERAL_FROM if name == "from" else _not_yours("several Sender fields")
            )
        try:
            found = authors(header, name)
        except NoAddressList:
            return _not_yours(f"{name.title()} is no address list")
        if fields and not found:
            return _not_yours(f"{name.title()} names nobody")
        for address in found:
            if not _belongs(address.text, belongs):
                return _not_yours(f"{name.title()} is not your own address")
    return None


def _belongs(text: str, belongs: Callable[[Mailbox], bool]) -> bool:
    try:
        return belongs(parse_mailbox(text, smtputf8=True))
    except SmtpSyntaxError:
        return False


def _is_notice(header: Header) -> bool:
    """Say whether it is a message disposition notification (RFC 8098 section 3).

    Mail programs of users send them, and must do so from the null sender.
    """
    for field in header.fields:
        if field.name == "content-type":
            value = field.raw.lower()
            return b"multipart/report" in value and b"disposition-notification" in value
    return False


def _not_yours(text: str) -> Reply:
    return Reply(550, (text,), "5.7.1")
