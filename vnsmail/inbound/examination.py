"""What is done with a message before it is kept: strangers' is looked at, users' signed.

    who brought it        after the rules of the owner
    a stranger, on MX     Authenticator: results on top, forged ones gone, or a refusal
    a user                forged results gone, and Signer: DKIM-Signature on top
    a Unix socket         as it is

Rules of this file: all but ``examine`` is the inner policy's.
"""

from dataclasses import dataclass, replace

from vnsmail.inbound.authenticate import Authenticator
from vnsmail.inbound.policy import (
    Client,
    Examined,
    Later,
    Policy,
    Recipient,
    Role,
    SignIn,
)
from vnsmail.inbound.signing import Signer
from vnsmail.model import Envelope
from vnsmail.queue.body import Body
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.replies import Reply


@dataclass(frozen=True, slots=True)
class Examining:
    """A policy, and what every message goes through besides."""

    inner: Policy
    authenticator: Authenticator
    signer: Signer

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return self.inner.mechanisms

    def sign_in(self, client: Client, mechanism: str) -> SignIn | Reply:
        return self.inner.sign_in(client, mechanism)

    def may_send(
        self, client: Client, sender: Mailbox | None, size: int | None
    ) -> Reply | Later | None:
        return self.inner.may_send(client, sender, size)

    def may_receive(
        self, client: Client, sender: Mailbox | None, recipient: Mailbox
    ) -> Recipient | Reply | Later:
        return self.inner.may_receive(client, sender, recipient)

    def examine_at_once(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply | None:
        """Ask the inner policy, where nothing else is to be done; see Policy."""
        if client.role is not Role.MX or client.user:
            return None
        nothing = client.address is None or self.authenticator.is_nothing_to_do(
            body, front
        )
        if not nothing:
            return None
        return self.inner.examine_at_once(client, envelope, body, front)

    async def examine(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply:
        """Ask the inner policy, then look at the message, or sign it.

        What was made of the body on the way is discarded if that fails.
        """
        answer = await self.inner.examine(client, envelope, body, front)
        if isinstance(answer, Reply):
            return answer
        kept = answer.body
        try:
            return await self._besides(client, envelope, answer, body, front)
        except BaseException:
            kept.discard()
            raise

    async def _besides(
        self,
        client: Client,
        envelope: Envelope,
        answer: Examined,
        body: Body,
        front: bytes,
    ) -> Examined | Reply:
        envelope = answer.envelope or envelope
        # What another put in its place has another front.
        front = front if answer.body is body else b""
        if client.user or client.role is not Role.MX:
            clean, _ = await self.authenticator.cleaned(answer.body, front)
            fields = await self.signer.fields(clean)
            return replace(answer, body=clean, fields=fields + answer.fields)
        if client.address is None:
            return answer
        found = await self.authenticator.examine(client, envelope, answer.body, front)
        if isinstance(found, Reply):
            return found
        return replace(answer, body=found.body, fields=found.fields + answer.fields)
