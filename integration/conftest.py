import os
from pathlib import Path

import pytest

from integration.claims.evidence import Evidence
from integration.labs import Lab

HERE = Path(__file__).parent

PATIENCE = 240
"""Seconds a test may take, its lab's start included: a busy machine is no failure."""


def pytest_collection_modifyitems(items):
    """Everything here makes namespaces and looks at packets: root only, and slow.

    pytest hands over the tests of all folders; those of tests/ are left alone.
    """
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab with five virtual hosts, shared by the tests of one file."""
    found = Lab(tmp_path_factory.mktemp("lab") / "root")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def unmended_lab(lab):
    """The same, but what a test takes away stays away."""
    lab.restart("[network]\nmend = false\n")
    return lab


@pytest.fixture(scope="session")
def _evidence():
    found = Evidence()
    yield found
    found.write()


@pytest.fixture
def shows(request, _evidence):
    """Note what a test of a claim saw: a line or some, for docs/claims.md."""
    return lambda *lines: _evidence.add(request.node.name, *lines)
