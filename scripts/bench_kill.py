"""Kill vnsmail's processes at random moments under load, and account for every message.

Everything runs in a lab: its namespaces, its remotes, clients that speak SMTP. It ends
with status 1 if anything acknowledged is lost, damaged, or there once too often.
"""

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration import kills
from integration.labs import Lab


def main() -> int:
    """Run it, and print the account."""
    parser = argparse.ArgumentParser(prog="scripts/bench kill", description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="kills (200)")
    parser.add_argument("--clients", type=int, default=4, help="SMTP clients (4)")
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbits(32)
    began = time.monotonic()

    def tell(words: str) -> None:
        print(
            f"{time.monotonic() - began:7.1f} s  {words}", file=sys.stderr, flush=True
        )

    with tempfile.TemporaryDirectory(prefix="vnsmail-kill") as folder:
        # Workers run under another account, which must be able to reach its folder.
        Path(folder).chmod(0o755)
        lab = Lab(Path(folder) / "root", hosts=1)
        try:
            account = kills.run(lab, arguments.times, seed, arguments.clients, tell)
        finally:
            lab.stop()
    print("\n".join(account.lines()))
    for fault in (*account.damaged, *account.unexcused):
        print(f"fault: {fault}")
    for place, tokens in account.lost.items():
        for token in tokens:
            print(f"lost: {token} at {place}")
    return 0 if account.kept else 1


if __name__ == "__main__":
    sys.exit(main())
