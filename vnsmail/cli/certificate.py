"""``vnsmail host certificate``: what TLS is spoken with, and what ``host show`` says of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark, table
from vnsmail.errors import BadInput
from vnsmail.supervisor import control

LARGEST = 256 * 1024
"""Bytes of a file with a certificate; a chain of four has some 8 KiB."""


def certificate(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the virtual host.")],
    cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate with its chain, PEM."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its private key, PEM, without passphrase."),
    ] = None,
    for_name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="Only for clients that ask for this name (SNI); may be given more than "
            "once. Without it, the certificate is the host's own.",
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help="Forget the one for --name, or the host's own; a self-signed one then "
            "takes its place.",
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Give a virtual host a certificate, or list those that it has.

    It is used from the next connection on; running sessions keep theirs. The files are
    copied, so run this again after each renewal.
    """
    request: control.Request
    names = tuple(for_name or ())
    if remove:
        if cert or key or len(names) > 1:
            remedy = "it takes no --cert and no --key, and one --name at most"
            raise BadInput("--remove", "", remedy)
        request = control.RemoveCertificate(name, *names)
    elif cert is None and key is None:
        if names:
            raise BadInput("--name", names[0], "give --cert and --key with it")
        request = control.GetCertificates(name)
    elif cert is None or key is None:
        missing = "--key" if key is None else "--cert"
        raise BadInput(missing, "", "a certificate and its key are given together")
    else:
        request = control.SetCertificate(name, _read(cert), _read(key), names)
    answer = client.ask(layout_of(context), request, control.Certificates)
    _show(name, answer, json=json)
    if not isinstance(request, control.GetCertificates) and not json:
        remark(f"virtual host {name} uses it from the next connection on")


def described(entry: control.CertificateFacts) -> dict[str, Any]:
    """Return a certificate as JSON has it."""
    return {
        "for": entry.name or None,
        "names": list(entry.names),
        "issuer": "self-signed" if entry.self_signed else entry.issuer,
        "expires": entry.expires or None,
        "sha256": entry.fingerprint,
    }


def day(seconds: float) -> str:
    """Return a date, in UTC; ``unreadable`` for none."""
    if not seconds:
        return "unreadable"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _show(host: str, answer: control.Certificates, *, json: bool) -> None:
    if json:
        as_json([described(entry) for entry in answer.entries])
        return
    rows = [
        (
            entry.name or "any",
            list(entry.names),
            "self-signed" if entry.self_signed else entry.issuer,
            day(entry.expires),
            entry.fingerprint[:16],
        )
        for entry in answer.entries
    ]
    columns = ("asked for", "names", "issuer", "expires", "sha256 begins")
    table(f"certificates of {host}", columns, rows, "none: TLS is not offered")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput("file", str(path), f"it cannot be read: {reason}") from None
    if len(content) > LARGEST:
        raise BadInput(
            "file", str(path), "this is no certificate or key: it is too long"
        )
    return content
