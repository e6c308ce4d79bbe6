"""One SMTP session with a client: bytes between its transport and the ServerSession.

    question of the session          answered
    Connected                        by the number of sessions that are open
    TlsRequested                     yes, while there is a certificate
    AuthRequested, AuthResponse      by the owner's rules, as their exchange goes on
    MailRequested                    by the rules' may_send
    RecipientRequested               by the rules' may_receive
    DataRequested                    yes
    MessageReceived                  when ``keep`` returned: 250 means durable

Rules of this file: nothing is decided here but who may talk at all; no message is
acknowledged that ``keep`` did not keep; nothing more is read while a message is being
kept, somebody is signing in, a body is on its way to the disk, or the client does not
read its replies. All that it needs is handed to it, so it serves a worker and a test's
remote alike.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, cast

from vnsmail.inbound.deadline import Deadline
from vnsmail.inbound.keeping import (
    TROUBLE,
    Arrived,
    Keeping,
    Transaction,
    completion,
)
from vnsmail.inbound.policy import (
    Challenge,
    Client,
    Later,
    Policy,
    SignedIn,
    SignIn,
    SignInStep,
)
from vnsmail.inbound.proxy import NotProxied, ProxyReader
from vnsmail.inbound.shared import Door, Keep, ReceiverFacts, ReverseName, Shared
from vnsmail.inbound.spool import Spool
from vnsmail.inbound.tls import TlsFailed, TlsLayer
from vnsmail.log import logger
from vnsmail.model import IPAddress
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
    AuthAborted,
    AuthRequested,
    AuthResponse,
    BodyReceived,
    Connected,
    DataRequested,
    Event,
    MailRequested,
    MessageReceived,
    RecipientRequested,
    ServerSession,
    SessionEnded,
    TlsRequested,
    TransactionAborted,
)

__all__ = ["Door", "Keep", "Receiver", "ReceiverFacts", "ReverseName", "Shared"]

LINGER = 10.0
"""Seconds that a client gets to read the last reply before the connection is cut."""

LATE = Reply(421, ("you took too long",), "4.4.2")
NO_TLS = Reply(454, ("TLS is not available now",), "4.7.0")

MX = Door()

_KNOWN = asyncio.Event()
_KNOWN.set()

log = logger("inbound")


class Receiver(asyncio.Protocol):
    """One session.

    Args:
        shared: what it has in common with the owner's other sessions.
        peer: where the client connects from; None over a Unix socket.
        door: what the socket is for that it came through.
    """

    def __init__(self, shared: Shared, peer: IPAddress | None, door: Door = MX) -> None:
        facts = shared.facts
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is lost."""
        self._shared = shared
        self._peer = peer
        self._client = Client(peer, door.role)
        self._session = ServerSession(
            facts.configs[door.role], secure=door.implicit_tls
        )
        self._proxy = ProxyReader() if facts.is_proxy(peer) else None
        self._tls: TlsLayer | None = None
        if door.implicit_tls and facts.tls is not None and facts.tls.context:
            self._tls = TlsLayer(facts.tls.context)
        self._transport: asyncio.Transport | None = None
        self._deadline = Deadline(self._late, facts.session_timeout)
        self._admitted = False
        self._lost = False
        self._ours = False
        """We owe an answer, and nothing is waited for from the client."""
        self._may_write = True
        self._may_read = True
        self._closing = False
        self._winding_up = False
        self.door = door
        self._transaction = Transaction()
        self._sign_in: SignIn | None = None
        self._named: asyncio.Event | None = None

    def shutdown(self) -> None:
        """End the session; a message that is being kept gets its answer first."""
        if self._beginning:
            self.abort()
            return
        self._session.shutdown()
        self._pump()

    def wind_up(self) -> None:
        """End the session as soon as no message is on its way in."""
        self._winding_up = True
        transaction = self._transaction
        if not (self._ours or transaction.spool or transaction.recipients):
            self.shutdown()

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop does ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shared.receivers.add(self)
        if self._session.secure and self._tls is None:
            # Never in the clear where the client believes that it is not.
            self.abort()
        elif self._beginning:
            self._deadline.restart(self._shared.facts.handshake_timeout)
            if self._proxy is None and self._admit() is not None:
                self.abort()
        else:
            self._pump()

    def data_received(self, data: bytes) -> None:
        session = self._session
        if session.in_body:
            self._deadline.came(len(data))
        if self._proxy is None and self._tls is None:
            session.receive_data(data)
            self._pump()
        else:
            self._take_wrapped(data)

    def eof_received(self) -> bool:
        if self._beginning or self._session.starting_tls:
            self.abort()
            return False
        self._session.receive_eof()
        self._pump()
        # What the client sent before is still answered; _flush closes.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._deadline.end()
        self._abandon()
        self._sign_in = None
        self._shared.receivers.discard(self)
        if self._admitted:
            self._shared.admission.leave(self._client.address)
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._may_write = False
        self._regulate()

    def resume_writing(self) -> None:
        self._may_write = True
        self._regulate()

    # Below the session: proxy, TLS -----------------------------------------------------

    @property
    def _beginning(self) -> bool:
        """Whether the session has not begun, as something comes before it."""
        tls = self._tls
        implicit = tls is not None and not tls.established
        return self._proxy is not None or (implicit and not self._session.starting_tls)

    def _take_wrapped(self, data: bytes) -> None:
        """Take what came where it is not what the client says as it stands."""
        if self._proxy is not None:
            try:
                proxied = self._proxy.feed(data)
            except NotProxied as error:
                self._cut("proxy.refused", str(error))
                return
            if proxied is None:
                return
            self._proxy = None
            if proxied.client is not None:
                self._client.address = proxied.client
            data = proxied.rest
            if self._tls is None:
                self._session.receive_data(data)
                self._pump()
                return
            if self._admit() is not None:
                self.abort()
                return
        if self._tls is not None:
            self._take_tls(self._tls, data)

    def _take_tls(self, tls: TlsLayer, data: bytes) -> None:
        established = tls.established
        try:
            said = tls.receive(data)
        except TlsFailed as error:
            self._write(tls.outgoing())
            self._cut("tls.failed", str(error))
            return
        if tls.established and not established:
            client = self._client
            client.tls_version, client.tls_cipher = tls.version, tls.cipher
            client.helo = ""
            if self._session.starting_tls:
                self._session.tls_started()
                self._deadline.restart(self._shared.facts.command_timeout)
        if not tls.established:
            self._write(tls.outgoing())
            return
        if said:
            self._session.receive_data(said)
        if tls.ended:
            self._session.receive_eof()
        self._pump()

    def _cut(self, event: str, reason: str) -> None:
        owner, peer = self._shared.facts.owner, self._client.literal
        log.info(event, owner=owner, peer=peer, reason=reason)
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # From the session to the transport ----------------------------------------------

    def _pump(self) -> None:
        """Do all that can be done now, and write what is to be said."""
        # One write for all that one read brought about.
        next_event, handlers = self._session.next_event, self._HANDLERS
        while not self._lost and (event := next_event()) is not None:
            handlers[type(event)](self, event)
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or self._lost or transport.is_closing():
            return
        session = self._session
        data = session.data_to_send()
        if self._tls is None and session.going_on:
            if data:
                self._deadline.restart(self._shared.facts.command_timeout)
                transport.write(data)
            self._regulate()
            return
        if data:
            self._deadline.restart(self._shared.facts.command_timeout)
        self._write_wrapped(data)
        if session.closing:
            self._closing = True
            self._deadline.restart(LINGER)
            transport.close()
            return
        if session.starting_tls and self._tls is None:
            self._start_tls()
        self._regulate()

    def _write_wrapped(self, data: bytes) -> None:
        if self._tls is not None:
            if data:
                self._tls.send(data)
            if self._session.closing:
                self._tls.close()
            data = self._tls.outgoing()
        if data and self._transport is not None:
            self._transport.write(data)

    def _start_tls(self) -> None:
        """From here on what comes is the handshake's: the 220 is written."""
        tls = self._shared.facts.tls
        context = tls.context if tls is not None else None
        if context is None:  # it was taken away in between
            self.abort()
            return
        self._tls = TlsLayer(context)
        self._deadline.restart(self._shared.facts.handshake_timeout)

    def _regulate(self) -> None:
        """Read only while somebody can take what comes; wait only for the client."""
        transport = self._transport
        if transport is None or self._lost:
            return
        spool = self._transaction.spool
        ours = self._ours or (spool is not None and spool.busy)
        may_read = self._may_write and not ours
        if may_read != self._may_read and not transport.is_closing():
            self._may_read = may_read
            if may_read:
                transport.resume_reading()
            else:
                transport.pause_reading()
        if ours:
            self._deadline.stop()
        elif not self._deadline.running:
            self._deadline.restart(self._shared.facts.command_timeout)

    def _late(self) -> None:
        if self._closing or not self._may_write or self._beginning:
            # It does not read: whatever was said to it would stay here.
            self.abort()
            return
        owner = self._shared.facts.owner
        log.info("session.late", owner=owner, peer=self._client.literal)
        if self._session.starting_tls:
            self.abort()
            return
        self._session.shutdown(LATE)
        self._pump()

    # What the session says -------------------------------------------------------------

    def _add(self, event: BodyReceived) -> None:
        if self._transaction.spool is not None:
            self._transaction.spool.add(event.data)

    def _answer_data(self, _: DataRequested) -> None:
        shared = self._shared
        self._transaction.spool = Spool(
            shared.facts.folder,
            shared.executor,
            self._regulate,
            completion(self._client, shared.facts.name, shared.clock()),
        )
        self._session.accept()

    def _received(self, event: MessageReceived) -> None:
        transaction, self._transaction = self._transaction, Transaction()
        arrived = Arrived(event, transaction, self._client, self._session.extended)
        keeping = Keeping(arrived, self._shared, self._named or self._look_up())
        going = keeping.at_once()
        if isinstance(going, Reply):
            self._session.reject(going)
            if self._winding_up:
                self._session.shutdown()
            return
        self._ours = True
        if going is None:
            self._shared.start(self._keep(keeping))
        else:
            self._shared.tasks.add(going)
            going.add_done_callback(partial(self._kept_at_once, keeping))

    def _answer_tls(self, _: TlsRequested) -> None:
        tls = self._shared.facts.tls
        if tls is None or tls.context is None:
            self._session.reject(NO_TLS)
        else:
            self._session.accept()

    def _auth_aborted(self, _: AuthAborted) -> None:
        self._sign_in = None

    def _abandon(self) -> None:
        """Throw away the transaction; a message that is being kept is none any more."""
        self._transaction.discard()
        self._transaction = Transaction()
        if self._winding_up:
            self._session.shutdown()

    @property
    def _rules(self) -> Policy:
        return self._shared.facts.asked

    def _answer_client(self) -> None:
        refusal = self._admit()
        if refusal is None:
            self._session.accept()
        else:
            self._session.reject(refusal)

    def _admit(self) -> Reply | None:
        """Count the session; or return why there is no room for it.

        Where a handshake comes first, this comes before it: it is the handshakes that
        cost most, and a flood of clients that never finish one must find its limit too.
        """
        if self._admitted:
            return None
        facts, client = self._shared.facts, self._client
        refusal = self._shared.admission.admit(
            client.address, facts.max_sessions, facts.max_sessions_per_peer
        )
        if refusal is not None:
            log.warning(
                "session.refused",
                owner=facts.owner,
                peer=client.literal,
                reason=refusal.text,
            )
            return refusal
        self._admitted = True
        self._shared.admitted()
        return None

    def _answer_sender(self, event: MailRequested) -> None:
        self._client.helo = self._session.helo_name
        self._transaction = Transaction(
            event.sender, event.ret, event.envid, event.require_tls
        )
        if self._named is None:
            self._named = self._look_up()
        full = self._shared.may_begin(event.size or 0)
        rules = self._rules
        self._answer(full or rules.may_send(self._client, event.sender, event.size))

    def _answer_recipient(self, event: RecipientRequested) -> None:
        sender = self._transaction.sender
        found = self._rules.may_receive(self._client, sender, event.recipient)
        if isinstance(found, Reply | Later):
            self._answer(found)
        else:
            self._transaction.add(found, event.notify, event.orcpt)
            self._session.accept()

    def _answer(self, refusal: Reply | Later | None) -> None:
        """Answer the open question now, or refuse it in a while."""
        match refusal:
            case None:
                self._session.accept()
            case Reply():
                self._session.reject(refusal)
            case Later():
                self._ours = True
                self._shared.start(self._refuse_later(refusal))

    async def _refuse_later(self, later: Later) -> None:
        gone, _ = await asyncio.wait({self.gone}, timeout=later.seconds)
        self._ours = False
        if not gone:
            self._session.reject(later.reply)
            if self._winding_up:
                self._session.shutdown()
            self._pump()

    def _look_up(self) -> asyncio.Event:
        """Find the client's name; not before it sends, as most who talk never do."""
        address = self._client.address
        if address is None:
            return _KNOWN
        known, self._client.reverse_name = self._shared.known_name(address)
        if known:
            return _KNOWN
        named = asyncio.Event()
        self._shared.start(self._find_name(address, named))
        return named

    async def _find_name(self, address: IPAddress, named: asyncio.Event) -> None:
        try:
            self._client.reverse_name = await self._shared.find_name(address)
        finally:
            named.set()

    # Signing in --------------------------------------------------------------------------

    def _answer_auth(self, event: AuthRequested) -> None:
        self._client.helo = self._session.helo_name
        sign_in = self._rules.sign_in(self._client, event.mechanism)
        if isinstance(sign_in, Reply):
            self._session.reject(sign_in)
        else:
            self._sign_in = sign_in
            self._go_on_signing_in(event.initial)

    def _go_on_signing_in(self, response: bytes | None) -> None:
        self._ours = True
        self._shared.start(self._step(response))

    async def _step(self, response: bytes | None) -> None:
        step: SignInStep = TROUBLE
        try:
            if self._sign_in is not None:
                step = await self._sign_in.respond(response)
        except Exception:  # whoever cannot be judged does not sign in
            log.exception("auth.fault", peer=self._client.literal)
        if isinstance(step, Later):
            await asyncio.wait({self.gone}, timeout=step.seconds)
            step = step.reply
        self._ours = False
        if self._lost or self._session.closing:
            return
        self._signed_in(step)
        if self._winding_up:
            self._session.shutdown()
        self._pump()

    def _signed_in(self, step: Challenge | SignedIn | Reply) -> None:
        owner, peer = self._shared.facts.owner, self._client.literal
        match step:
            case Challenge(data):
                self._session.challenge(data)
                return
            case SignedIn(user):
                self._client.user = user
                log.info("auth.done", owner=owner, peer=peer, user=user)
                self._session.accept()
            case Reply():
                log.info("auth.refused", owner=owner, peer=peer, reason=step.text)
                self._session.reject(step)
        self._sign_in = None

    # A message ---------------------------------------------------------------------------

    async def _keep(self, keeping: Keeping) -> None:
        self._answer_message(await keeping.later())

    def _kept_at_once(self, keeping: Keeping, done: "asyncio.Future[None]") -> None:
        self._shared.tasks.discard(done)
        self._answer_message(keeping.outcome(done))

    def _answer_message(self, kept: str | Reply) -> None:
        self._ours = False
        if isinstance(kept, Reply):
            self._session.reject(kept)
        else:
            self._deadline.extend()
            self._session.accept(f"queued as {kept}")
        if self._winding_up:
            self._session.shutdown()
        self._pump()

    _HANDLERS: ClassVar[Mapping[type[Event], Callable[["Receiver", Any], None]]] = {
        Connected: lambda self, _: self._answer_client(),
        TlsRequested: _answer_tls,
        AuthRequested: _answer_auth,
        AuthResponse: lambda self, event: self._go_on_signing_in(event.data),
        AuthAborted: _auth_aborted,
        MailRequested: _answer_sender,
        RecipientRequested: _answer_recipient,
        DataRequested: _answer_data,
        BodyReceived: _add,
        MessageReceived: _received,
        TransactionAborted: lambda self, _: self._abandon(),
        SessionEnded: lambda self, _: self._abandon(),
    }
    """What is done about each event."""
