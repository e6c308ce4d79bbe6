import gc
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def little_to_collect():
    """Take what there is before these tests out of each collection, which it would slow."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_descriptor_is_lost(little_to_collect):
    """Every test of the broker closes what it opened, and nothing else."""
    before = _open_descriptors()
    yield
    gc.collect()  # else what an earlier test left would be closed in a later one

    assert before == _open_descriptors()


def _open_descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found
