import tempfile
from pathlib import Path

import pytest

from integration.claims.scene import Scene


@pytest.fixture(scope="package")
def seen():
    """What was seen of one running system; it is gone before the first test looks."""
    with tempfile.TemporaryDirectory(prefix="vnsmail-claims-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # an account of its own sends mail there
        scene = Scene(folder)
        try:
            scene.play()
        finally:
            scene.stop()
    return scene.seen
