"""When a deferred message is tried again. Pure.

RFC 5321 section 4.5.4.1: the wait grows, a message is given up after four or five
days, and a client that retries slowly hurts nobody. Each wait is twice the one before.
"""

JITTER = 0.1
"""Share by which a wait is lengthened or shortened, so that messages that failed
together do not come back together."""

_MANY = 64  # doublings after which any wait is the longest


def retry_at(
    attempts: int,
    now: float,
    received_at: float,
    *,
    first_retry: float,
    longest_retry: float,
    lifetime: float,
    jitter: float,
) -> float | None:
    """Return when to try again, or None if the message's lifetime is over.

    The last attempt falls on the very end of the lifetime: a remote that comes back on
    the last day still gets the message.

    Args:
        attempts: attempts made so far, the one that just failed among them; 0 if the
            source was missing and nobody was asked.
        now: seconds since the epoch.
        received_at: when the message arrived, seconds since the epoch.
        first_retry: seconds from the first attempt to the second.
        longest_retry: seconds no wait is longer than, but for the jitter.
        lifetime: seconds after which the message is given up.
        jitter: where in the range of the jitter to fall, 0 to 1; random.
    """
    gives_up_at = received_at + lifetime
    if now >= gives_up_at:
        return None
    wait = backoff(attempts, first_retry, longest_retry, jitter)
    return min(now + wait, gives_up_at)


def backoff(attempts: int, first: float, longest: float, jitter: float) -> float:
    """Return the seconds to wait after so many attempts in vain.

    Args:
        attempts: the one that just failed among them.
        first: seconds after the first.
        longest: seconds no wait is longer than, but for the jitter.
        jitter: where in the range of the jitter to fall, 0 to 1; random.
    """
    doublings = min(max(attempts - 1, 0), _MANY)
    return min(first * 2.0**doublings, longest) * (1 + JITTER * (2 * jitter - 1))
