import json
import subprocess
import sys

SCRIPT = """
from vnsmail import log as logging
log = logging.logger("delivery")
logging.configure(process="worker-0")
log.info("message.delivered", recipient="bob@b.example", text="one\\ntwo \\u2713")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("delivery.fault", id="1")
logging.configure(process="worker-1")
logging.logger("owner").warning("owner.problem")
"""


def test_events():
    """Each is one line of JSON on standard error, with who says it, and when."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-c", SCRIPT], capture_output=True, check=True, text=True
    )
    delivered, fault, problem = map(json.loads, done.stderr.splitlines())

    assert "" == done.stdout
    assert delivered.pop("time").endswith("Z")
    assert {
        "event": "message.delivered",
        "level": "info",
        "process": "worker-0",
        "part": "delivery",
        "recipient": "bob@b.example",
        "text": "one\ntwo ✓",
    } == delivered
    assert ("delivery.fault", "error", "1") == (
        fault["event"],
        fault["level"],
        fault["id"],
    )
    assert fault["exception"].endswith("ZeroDivisionError: division by zero")
    assert ("owner.problem", "worker-1", "owner") == (
        problem["event"],
        problem["process"],
        problem["part"],
    )
