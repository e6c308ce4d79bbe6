"""Runs a command inside one of the lab's namespaces.

``python -m vnsmail.lab.inside NAMESPACE -- CMD…``: enters and then becomes CMD, so
that whoever started it watches CMD itself.
"""

import argparse
import os

from vnsmail.net import namespaces


def main() -> None:
    """Enter the namespace and become the command."""
    parser = argparse.ArgumentParser(description="Run a command in a lab's namespace.")
    parser.add_argument("namespace")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    # Only this thread enters; exec keeps it and ends the others.
    namespaces.enter(arguments.namespace)
    os.execvp(arguments.command[0], arguments.command)  # noqa: S606  that is its job


if __name__ == "__main__":
    main()
