"""Which worker gets a virtual host. Pure."""

from collections.abc import Mapping


def worker_for(loads: Mapping[str, int]) -> str:
    """Return the worker with the fewest virtual hosts; of equals, the first by name.

    Args:
        loads: number of virtual hosts by name of worker; at least one worker.
    """
    return min(loads, key=lambda name: (loads[name], name))
