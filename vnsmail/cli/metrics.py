"""``vnsmail metrics``: what is measured, for Prometheus."""

import sys

import typer

from vnsmail.cli import client
from vnsmail.cli.options import layout_of
from vnsmail.supervisor import control


def metrics(context: typer.Context) -> None:
    """Write queues, sessions, guard counters, restarts and drift as Prometheus reads it.

    Prometheus itself asks `metrics.listen` of vnsmail.toml; its node exporter can read
    the output of this command from a file (textfile collector).
    """
    found = client.ask(layout_of(context), control.GetMetrics(), control.Measured)
    sys.stdout.write(found.text)
