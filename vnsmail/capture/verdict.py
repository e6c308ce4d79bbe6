"""The verdict: did every packet of a sender's mail leave from the sender's address? Pure.

A connection belongs to the sender whose name the client said in EHLO: bytes on the wire
that the receiver saw, too. What follows from where it came from and what it said:

    source is …        EHLO is …          judged as
    an expected one    its owner's        right
    any other          a sender's         wrong: every packet counts, and whoever has
                                          that address did not keep it to himself
    a sender's         nobody's here      wrong: no name for a sender's address
    a sender's         none               unproven, so wrong; but an attempt that never
                                          was a connection, or that the server turned
                                          away in its greeting, carried no mail: noted
    nobody's here      nobody's, or none  to a sender's address: mail coming in, not
                                          judged; to anybody else: wrong
    known to be        anything           not judged: what a stranger says of himself
    somebody else's                       proves nothing
    its public one     its owner's        behind NAT: neither wrong nor proof; its mail
    (source-check nat)                    must be seen from its own address, too

Rules of this file. It fails closed: what cannot be read or attributed is no pass, and
neither is a capture that lost packets. A sender without mail has not passed. Every
reason is a sentence a person understands; one reason of many connections is one
sentence.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from vnsmail.capture import dialogue, witnesses
from vnsmail.capture.dialogue import Dialogue
from vnsmail.capture.flows import Flow
from vnsmail.capture.proof import Case, Connection, Judged, Proof, Sender, Verdict
from vnsmail.capture.received import Received
from vnsmail.capture.witnesses import Heard, Hearing, Standing, Testimony, Witness
from vnsmail.model import MACHINE, Context, IPAddress, SourceCheck

__all__ = ["Case", "Judged", "Proof", "Sender", "Verdict", "judge", "judge_case"]


def judge(
    senders: Sequence[Sender],
    flows: Iterable[Flow],
    received: Sequence[Received] | None = None,
    *,
    others: Collection[IPAddress] = (),
    damage: Sequence[str] = (),
) -> Proof:
    """Return the verdict of packets, and of remotes if they were asked; see Case."""
    return judge_case(
        Case(senders, received, others=frozenset(others), damage=damage), flows
    )


def judge_case(case: Case, flows: Iterable[Flow]) -> Proof:
    """Return the verdict.

    Args:
        case: what is known.
        flows: all connections of the capture.
    """
    court = _Court(case)
    for flow in flows:
        court.hear(flow)
    for line in case.received or ():
        court.read(line)
    messages = court.compare()
    asked = {Witness.PACKETS}
    asked |= {Witness.SOCKET} if case.sockets is not None else set()
    asked |= {Witness.REMOTE} if case.received is not None else set()
    return Proof(
        hosts=tuple(
            account.judged(case.damage, asked=case.received is not None)
            for account in court.accounts.values()
        ),
        problems=(*case.damage, *court.problems.sentences()),
        strangers=court.strangers,
        connections=tuple(court.connections),
        messages=tuple(messages),
        asked=frozenset(asked),
        every=case.every,
    )


class _Problems:
    """Sentences, each with the connections and packets it is true of."""

    def __init__(self, by_flow: dict[int, list[str]]) -> None:
        self._connections: Counter[str] = Counter()
        self._packets: Counter[str] = Counter()
        self._by_flow = by_flow

    def add(self, sentence: str, flow: Flow | None = None) -> None:
        """Note a sentence; of a connection, it goes on behind "N connections"."""
        self._connections[sentence] += flow is not None
        self._packets[sentence] += flow.packets if flow else 0
        if flow is not None:
            self._by_flow.setdefault(id(flow), []).append(sentence)

    def sentences(self) -> tuple[str, ...]:
        return tuple(
            f"{_count(number, 'connection')} "
            f"({_count(self._packets[sentence], 'packet')}) {sentence}"
            if number
            else sentence
            for sentence, number in self._connections.items()
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(slots=True)
class _Account:
    """What is known of one sender so far."""

    sender: Sender
    problems: _Problems
    behind_nat: _Problems
    """Of connections that were seen behind NAT: no matter if as many were seen before."""
    seen: dict[IPAddress, None] = field(default_factory=dict)
    packets: int = 0
    wrong: int = 0
    mails: int = 0
    attempts: int = 0
    helo: dict[str, None] = field(default_factory=dict)
    mail_from: dict[str, None] = field(default_factory=dict)
    right_lines: dict[IPAddress, str] = field(default_factory=dict)
    wrong_lines: dict[str, None] = field(default_factory=dict)
    mails_behind: int = 0

    def judged(self, damage: Sequence[str], *, asked: bool) -> Judged:
        """Return the verdict on this sender.

        Args:
            damage: what makes the capture incomplete.
            asked: whether remotes were asked what they wrote.
        """
        if asked and self.mails and not self.right_lines:
            self.problems.add(f"no remote's Received line names {self.sender.says}")
        all_seen = self.mails >= max(self.mails_behind, 1)
        unseen = () if all_seen else self.behind_nat.sentences()
        problems = (*self.problems.sentences(), *unseen, *damage)
        if self.sender.check is SourceCheck.OFF:
            verdict, problems = Verdict.OFF, ()
        elif problems:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.PASS if self.mails else Verdict.NO_MAIL
        return Judged(
            sender=self.sender,
            seen=tuple(sorted(self.seen, key=_by_family)),
            packets=self.packets,
            wrong=self.wrong,
            helo=tuple(self.helo),
            mail_from=tuple(self.mail_from),
            attempts=self.attempts,
            received=tuple(self.wrong_lines) or self._right_lines(),
            problems=problems,
            verdict=verdict,
        )

    def _right_lines(self) -> tuple[str, ...]:
        lines = self.right_lines
        return tuple(lines[address] for address in sorted(lines, key=_by_family))


def _by_family(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)


class _Court:
    def __init__(self, case: Case) -> None:
        senders = case.senders
        by_flow: dict[int, list[str]] = {}
        self.accounts = {
            sender.says: _Account(sender, _Problems(by_flow), _Problems({}))
            for sender in senders
        }
        self.problems = _Problems(by_flow)
        self.strangers = 0
        self.connections: list[Connection] = []
        self._by_flow = by_flow
        self._case = case
        self._others = case.others
        self._holders = {a: s for s in senders for a in s.addresses}
        self._domains = {d: s for s in senders for d in s.domains}
        self._public: dict[IPAddress, list[str]] = {}
        for sender in senders:
            for address in sender.public:
                self._public.setdefault(address, []).append(sender.name)

    def hear(self, flow: Flow) -> None:
        """Judge one connection."""
        said = dialogue.read(flow.said, flow.answered)
        before = self.strangers
        older = self._is_older(flow)
        sender = "" if older else self._hear(flow, said)
        self.connections.append(
            Connection(
                flow,
                said,
                sender,
                problems=tuple(self._by_flow.get(id(flow), ())),
                stranger=self.strangers > before,
                older=older,
            )
        )

    def _is_older(self, flow: Flow) -> bool:
        """Say whether the kernel had it before, and it is one of ours."""
        ends = (flow.client, flow.client_port, flow.server, flow.server_port)
        ours = {flow.client, flow.server} & self._holders.keys()
        return flow.initial is None and bool(ours) and ends in self._case.older

    def _hear(self, flow: Flow, said: Dialogue) -> str:
        """Judge a connection; return whose it is."""
        holder = self._holders.get(flow.client)
        if holder is None and flow.client in self._others:
            self.strangers += 1
            return ""
        named = [name for name in said.helo if name in self.accounts]
        for name in named:
            self._charge(self.accounts[name], flow, said)
        if named:
            return self.accounts[named[0]].sender.name
        if holder is not None:
            self._nameless(self.accounts[holder.says], flow, said)
            return holder.name
        if flow.server in self._holders:
            self.strangers += 1
            return ""
        whose = "an address of nobody here"
        if public := self._public.get(flow.client):
            whose = f"the public address of {', '.join(public)}"
        self.problems.add(f"came from {flow.client}, {whose}, and {_said(said)}", flow)
        return ""

    def compare(self) -> list[Testimony]:
        """Let the witnesses of each message speak; who dissents is a problem."""
        case = self._case
        senders = {sender.name: sender for sender in case.senders}
        owners = {
            MACHINE if sender.context == "machine" else sender.name: sender.name
            for sender in case.senders
        }
        hearing = Hearing(
            connections=[
                Heard(each.flow, each.said, each.sender)
                for each in self.connections
                if each.sender
            ],
            standing={
                name: Standing(name, frozenset(sender.expected), sender.outside)
                for name, sender in senders.items()
            },
            owners=owners,
            received=case.received or (),
            window=case.window,
            local=frozenset(
                address
                for sender in case.senders
                if sender.context != Context.NAMESPACE
                for address in sender.addresses
            ),
        )
        messages, unseen = witnesses.compare(hearing, case.sockets or ())
        for each in messages:
            if each.dissent and each.sender in senders:
                account = self.accounts[senders[each.sender].says]
                account.problems.add(each.sentence())
        for sentence in unseen:
            self.problems.add(sentence)
        return messages

    def _charge(self, account: _Account, flow: Flow, said: Dialogue) -> None:
        """Take a connection that is a sender's by its EHLO."""
        sender, problems = account.sender, account.problems
        account.packets += flow.packets
        account.helo |= dict.fromkeys(said.helo)
        if flow.initial is not None:
            account.seen.setdefault(flow.client)
        if flow.client in sender.outside:
            account.mails_behind += said.has_mail
            account.behind_nat.add(
                f"came from its public address {flow.client}: nothing shows what their "
                "sockets were bound to",
                flow,
            )
        else:
            account.mails += said.has_mail
            self._check_source(account, flow)
        self._check_whole(flow, said, problems)
        for path in said.senders:
            domain = path.rpartition("@")[2].lower().rstrip(".")
            if domain:
                account.mail_from.setdefault(domain)
            owner = self._domains.get(domain, sender)
            if owner is not sender:
                problems.add(f"carried mail from {domain}, which is {owner}'s", flow)

    def _check_source(self, account: _Account, flow: Flow) -> None:
        if flow.client not in account.sender.expected:
            account.wrong += flow.packets
            self._wrong_source(account.sender, flow)

    def _check_whole(self, flow: Flow, said: Dialogue, problems: _Problems) -> None:
        """Note what keeps a connection from being read to its beginning and end."""
        if flow.initial is None:
            problems.add("began before the capture did: no SYN was seen", flow)
        elif not flow.accepted:
            problems.add("had no SYN-ACK in answer to the SYN", flow)
        if flow.fragments:
            problems.add("had packets in pieces, which are not read", flow)
        if len(said.helo) > 1:
            problems.add(f"said more than one name: {', '.join(said.helo)}", flow)

    def _wrong_source(self, sender: Sender, flow: Flow) -> None:
        holder = self._holders.get(flow.client)
        if holder is sender:
            whose = "an address of its own that it does not send from"
        elif holder is not None:
            whose = f"the address of {holder}"
            self.accounts[holder.says].problems.add(
                f"of {sender} came from its address {flow.client}", flow
            )
        else:
            whose = "an address of nobody here"
        expected = " or ".join(map(str, sender.expected)) or "any address"
        self.accounts[sender.says].problems.add(
            f"came from {flow.client}, {whose}, and not from {expected}", flow
        )

    def _nameless(self, account: _Account, flow: Flow, said: Dialogue) -> None:
        """Judge a connection from a sender's address that names no sender."""
        if said.helo:
            account.problems.add(
                f"came from its address {flow.client} and {_said(said)}", flow
            )
        elif flow.initial is None:
            account.problems.add(
                f"from its address {flow.client} began before the capture did: "
                "nothing shows who made them",
                flow,
            )
        elif not flow.fragments and (_was_no_connection(flow) or said.greeting >= 400):
            account.attempts += 1
        else:
            account.problems.add(
                f"from its address {flow.client} had no EHLO: "
                "nothing shows who made them",
                flow,
            )

    def read(self, line: Received) -> None:
        """Compare what a remote wrote with what should have come."""
        names = line.names & self.accounts.keys()
        public = {a for name in names for a in self.accounts[name].sender.outside}
        held = (line.addresses - public) & self._holders.keys()
        holders = {self._holders[a].says for a in held}
        for name in sorted(names | holders):
            account = self.accounts[name]
            sender = account.sender
            expected = line.addresses <= {*sender.expected, *sender.outside}
            if name in names and line.addresses and expected:
                for address in line.addresses:
                    account.right_lines[address] = line.text
                continue
            where = ", ".join(map(str, sorted(line.addresses, key=_by_family)))
            said = ", ".join(sorted(line.names)) or "no name"
            account.wrong_lines.setdefault(line.text)
            account.problems.add(
                f"{line.remote or 'a remote'} wrote down {said} "
                f"at {where or 'no address'}"
            )


def _was_no_connection(flow: Flow) -> bool:
    return not flow.accepted and not flow.said


def _said(said: Dialogue) -> str:
    if not said.helo:
        return "had no EHLO"
    senders = f", MAIL FROM <{'>, <'.join(said.senders[:3])}>" if said.senders else ""
    return f"said {', '.join(said.helo)}{senders}, a name of nobody here"
