"""What the tests of the claims saw, written down as docs/claims.md.

`./scripts/claims` runs them and writes the page; without it nothing is written.
"""

import os
import re
from pathlib import Path

VARIABLE = "VNSMAIL_CLAIMS"
"""Names the file to write."""

SHOWN = 3
"""Lines of each test that the page has."""

HEAD = """\
# The claims, and what a test saw of each

One running system with five virtual hosts (three namespaces, two alias addresses) and the machine's own mail, two remote domains, users who sign in from elsewhere
and a local account; for claim 2 also Postfix, Exim, OpenSMTPD and Sendmail as remotes (integration/test_mtas.py), for claim 5 Sendmail as what sends
(integration/test_engines.py), for claim 33 ten thousand messages of twenty hosts and the machine (integration/claims/test_claim_33.py). Written by `./scripts/claims` from what packets (read by tshark), remotes, system calls (strace) and files on disk showed in that run. Port numbers and
times are those of the run; each claim is a test, named in the second column, that fails when it is not so.

"""


class Evidence:
    """Lines by test, in the order of the claims."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, test: str, *lines: str) -> None:
        self._lines.setdefault(test, []).extend(lines)

    def write(self) -> None:
        """Write the page where the environment says, if it does."""
        where = os.environ.get(VARIABLE)
        if not where or not self._lines:
            return
        text = HEAD + "| claim | test | evidence |\n|---|---|---|\n"
        for test, lines in sorted(self._lines.items(), key=lambda item: _key(item[0])):
            claim = re.sub(r"^test_claim_0*(\d+).*", r"\1", test)
            seen = "<br>".join(
                f"`{line.replace('|', chr(92) + '|')}`" for line in lines
            )
            text += f"| {claim} | `{test}` | {seen} |\n"
        Path(where).write_text(text)


def _key(test: str) -> tuple[int, str]:
    found = re.search(r"(\d+)", test)
    return (int(found[1]) if found else 0, test)
