"""Whether a client's name is its own (RFC 8601 section 2.7.3). Pure."""

import ipaddress

from vnsmail.authentication.questions import Asking, Question, Record
from vnsmail.authentication.results import Iprev
from vnsmail.model import IPAddress

MAX_NAMES = 10
"""Names of one address that are looked at."""


def iprev(address: IPAddress) -> Asking[Iprev]:
    """Return whether a name of the client's address has that address too."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    shown = str(address)
    answer = yield Question(address.reverse_pointer, "PTR")
    if answer.trouble:
        return Iprev("temperror", shown)
    if not answer.values:
        return Iprev("permerror", shown)
    record: Record = "A" if address.version == 4 else "AAAA"
    trouble = False
    for name in answer.values[:MAX_NAMES]:
        found = yield Question(name, record)
        if shown in found.values:
            return Iprev("pass", shown, name)
        trouble = trouble or bool(found.trouble)
    return Iprev("temperror" if trouble else "fail", shown)
