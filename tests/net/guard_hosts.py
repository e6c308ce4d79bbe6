"""Virtual hosts with aliases, for hypothesis."""

import ipaddress

from hypothesis import strategies as st

from tests.net.networks import host

_NUMBERS = st.lists(st.integers(1, 10**6), unique=True, max_size=12)


@st.composite
def alias_hosts(draw):
    """Hosts of one family or both, that share no address."""
    found = []
    for number in draw(_NUMBERS):
        four = f"{ipaddress.ip_address((10 << 24) + number)}/32"
        six = f"{ipaddress.ip_address((0xFD77 << 112) + number)}/128"
        addresses = draw(st.sampled_from([(four,), (six,), (four, six), (six, four)]))
        found.append(host(f"h{number}.example", *addresses, uplink=""))
    return tuple(found)
