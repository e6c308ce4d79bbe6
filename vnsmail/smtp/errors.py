"""What can be wrong with what a peer sends, or with what we are about to send.

    SmtpError
        SmtpSyntaxError         one command or address; ``reply`` is the answer to it
        SmtpProtocolError       the dialogue as a whole; it cannot go on

Rules of this file: an error of a command carries the reply it deserves, so that
whoever finds the error does not choose codes twice.
"""

from typing import TYPE_CHECKING

from vnsmail.errors import VnsmailError

if TYPE_CHECKING:  # replies.py raises errors of this file
    from vnsmail.smtp.replies import Reply


class SmtpError(VnsmailError):
    """Something is not as SMTP has it."""


class SmtpSyntaxError(SmtpError):
    """A command or address does not fit the grammar; ``reply`` says so to the peer."""

    def __init__(self, reply: "Reply") -> None:
        super().__init__(reply)
        self.reply = reply

    def __str__(self) -> str:
        return f"not valid SMTP: {self.reply.text}"


class SmtpProtocolError(SmtpError):
    """The dialogue or a message body cannot be continued; ``text`` says why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text
