"""The ``vnsmail`` program: ``sendmail`` at once, anything else by cli/app.py.

Rules of this file: nothing is imported before it is known what for. Programs run the
sendmail command for each message, and must not wait for what the others need.
"""

import os
import sys


def main() -> None:
    """Run the command line of this process."""
    words = sys.argv[1:]
    root = os.environ.get("VNSMAIL_ROOT")
    while words and words[0].startswith("--root"):
        _, equals, value = words.pop(0).partition("=")
        if not equals and words:
            value = words.pop(0)
        root = value
    if words[:1] == ["sendmail"]:
        from vnsmail.cli import sendmail  # noqa: PLC0415

        sys.exit(sendmail.run("sendmail", words[1:], root))
    from vnsmail.cli import app  # noqa: PLC0415

    app.main()
