"""Failed sign-ins at one owner: counted, slowed down, and refused for a while. Pure.

    counted by          at            what happens
    network             each          the answer comes later: 1, 2, 4 … 20 seconds
    network             10 lately     refused, nothing is looked at
    user                30 lately     refused, but where that user signed in before
    owner               500 lately    refused, but where that user signed in before

"Lately" fades: half of a count is left after ten minutes (a user's: an hour). So a user
whose name is tried from all over the world still signs in from home.

Rules of this file: a name is counted whether it is somebody's or not, or the refusal
would tell which it is; memory is bounded (inbound/scores.py).
"""

from collections import OrderedDict

from vnsmail.inbound.scores import KEYS, Scores, network
from vnsmail.model import IPAddress
from vnsmail.smtp.replies import Reply

FROM_NETWORK = 10
AT_USER = 30
AT_OWNER = 500

FADING = 600.0
"""Seconds until half of a count of networks and of the owner is left."""

FADING_OF_USER = 3600.0

SLOWEST = 20.0
"""Seconds that an answer waits at most; clients wait minutes (RFC 4954 section 4)."""

STRIKES = 5
"""Failures after which a place where a user signed in is as any other."""

TOO_MANY = Reply(454, ("too many failed sign-ins, try again later",), "4.7.0")


class Guesses:
    """What is remembered of failed sign-ins at one owner."""

    def __init__(self) -> None:
        self.total = 0
        """Since the beginning."""
        self._networks: Scores[str] = Scores(FADING)
        self._users: Scores[str] = Scores(FADING_OF_USER)
        self._owner: Scores[None] = Scores(FADING)
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()
        """Where a user signed in, and how many failures that place bears yet."""

    def refusal(self, address: IPAddress | None, user: str, now: float) -> Reply | None:
        """Return the refusal of a sign-in that nobody has looked at yet."""
        place = network(address)
        if (place, user) in self._known:
            return None
        if (
            self._networks.get(place, now) >= FROM_NETWORK
            or self._users.get(user, now) >= AT_USER
            or self._owner.get(None, now) >= AT_OWNER
        ):
            return TOO_MANY
        return None

    def failed(self, address: IPAddress | None, user: str, now: float) -> float:
        """Count a failure; return the seconds after which it is to be told."""
        place = network(address)
        self.total += 1
        self._owner.add(None, now)
        self._users.add(user, now)
        score = self._networks.add(place, now)
        left = self._known.pop((place, user), 1) - 1
        if left > 0:
            self._known[place, user] = left
        return float(min(SLOWEST, 2.0 ** min(score - 1, 10)))

    def succeeded(self, address: IPAddress | None, user: str) -> None:
        """Remember where a user signed in."""
        place = network(address)
        self._known[place, user] = STRIKES
        self._known.move_to_end((place, user))
        if len(self._known) > KEYS:
            self._known.popitem(last=False)
