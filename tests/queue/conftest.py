import secrets

import apsw
import pytest

from tests.queue.helpers import FaultyDisk


class Faults:
    """What the disk under SQLite refuses: (operation, file) to the error."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], type[apsw.Error]] = {}
        self.after: dict[tuple[str, str], list[type[apsw.Error] | None]] = {}
        """What happens the next times, one after the other."""

    def __call__(self, operation: str, file: str) -> None:
        error = self.errors.get((operation, file))
        if turns := self.after.get((operation, file)):
            error = turns.pop(0)
        if error:
            raise error("told to fail")


@pytest.fixture
def faults():
    """A disk under SQLite that fails when told to."""
    faults = Faults()
    name = "faulty" + secrets.token_hex(4)
    disk = FaultyDisk(name, faults)
    apsw.set_default_vfs(name)
    yield faults
    apsw.set_default_vfs("unix")
    disk.unregister()
