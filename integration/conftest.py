import os

import pytest

from integration.labs import Lab


def pytest_collection_modifyitems(items):
    """Everything here makes namespaces and looks at packets: root only."""
    if os.geteuid() != 0:
        for item in items:
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
