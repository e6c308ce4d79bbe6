"""The certificates of virtual hosts on disk: state/tls/HOST/, for root's eyes only.

    default.pem    for whoever names nobody; made here, unless one was given
    NAME.pem       for clients that ask for NAME (SNI)

Each file has certificate, chain and key, so that renaming it into place swaps all three
at once. Workers cannot read them: what they need comes over their channel.

Rules of this file: a pair that cannot be used never replaces one that can; one that was
made here is made anew when the host's names change or it is about to expire, and one
that was given never is.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from vnsmail.database import sync_folder
from vnsmail.engines.protocol import Certificate
from vnsmail.errors import BadInput, NotFound, StateUnusable
from vnsmail.log import logger
from vnsmail.model import HostName, VirtualHost, domain_name
from vnsmail.settings import Layout
from vnsmail.supervisor import x509
from vnsmail.supervisor.examine import Finding

DEFAULT = "default"
SUFFIX = ".pem"

RENEW_BEFORE = 90 * 86400.0
"""Seconds before a certificate that was made here expires, and another is made."""

SOON = 14.0
"""Days before a certificate expires; whoever renews by program does it at 30."""

log = logger("certificates")


class Certificates:
    """The certificates of all hosts of one root."""

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.certificates

    def serve(self, host: VirtualHost) -> tuple[Certificate, ...]:
        """Return what a worker serves a host with, the default first.

        One is made if there is none. Trouble is told in the log, and costs TLS, not mail.
        """
        try:
            self._make_default(host)
            return self._read(host.name)
        except (StateUnusable, BadInput) as error:
            log.warning("certificate.unusable", host=host.name, reason=str(error))
            return ()

    def put(
        self, host: HostName, certificate: bytes, key: bytes, names: Sequence[str]
    ) -> x509.Facts:
        """Keep a pair for a host; return what the certificate says.

        Args:
            host: whose it is.
            certificate: PEM, with its chain.
            key: PEM.
            names: whom clients ask for that are to get it; none: it is the host's own.

        Raises:
            BadInput: it cannot be used, or not for these names; nothing is changed.
            StateUnusable: it cannot be written.
        """
        pair = x509.read_pair(certificate, key, time.time())
        wanted = [_name(name) for name in names]
        for name in wanted:
            if name not in pair.facts.names and not x509.covers(pair.facts.names, name):
                remedy = f"the certificate is for {', '.join(pair.facts.names)}"
                raise BadInput("name", name, remedy)
        for name in wanted or [DEFAULT]:
            self._write(host, name, pair.pem)
        log.info(
            "certificate.changed", host=host, names=wanted or list(pair.facts.names)
        )
        return pair.facts

    def remove(self, host: HostName, name: str) -> None:
        """Forget a pair; without a name the host's own, in whose place one is made.

        Raises:
            NotFound: there is none for that name.
        """
        wanted = _name(name) if name else DEFAULT
        try:
            self._file(host, wanted).unlink()
        except FileNotFoundError:
            remedy = f"see `vnsmail host show {host}`"
            raise NotFound("certificate", name or host, remedy) from None
        except OSError as error:
            raise _unusable(self._file(host, wanted), error) from None

    def listed(self, host: HostName) -> list[tuple[str, x509.Facts | None]]:
        """Return whom each certificate is for (empty: the default), and what it says."""
        found: list[tuple[str, x509.Facts | None]] = []
        for path in self._files(host):
            facts = None
            with contextlib.suppress(OSError, BadInput):
                facts = x509.read_stored(path.read_bytes())
            found.append((_of(path), facts))
        return found

    # Within ---------------------------------------------------------------------

    def _make_default(self, host: VirtualHost) -> None:
        names = tuple(dict.fromkeys((host.says, host.name, *host.domains)))
        names = tuple(name for name in names if "." in name)
        now = time.time()
        try:
            there = x509.read_stored(self._file(host.name, DEFAULT).read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _unusable(self._file(host.name, DEFAULT), error) from None
        else:
            fits = there.names == names and there.expires > now + RENEW_BEFORE
            if fits or not there.ours:
                return
        self._write(host.name, DEFAULT, x509.self_signed(names, now))

    def _read(self, host: HostName) -> tuple[Certificate, ...]:
        try:
            return tuple(Certificate(_of(p), p.read_bytes()) for p in self._files(host))
        except OSError as error:
            raise _unusable(self._folder / host, error) from None

    def _files(self, host: HostName) -> list[Path]:
        """Return the files of a host, the default first."""
        files = (self._folder / host).glob(f"*{SUFFIX}")
        return sorted(files, key=lambda path: (path.stem != DEFAULT, path.name))

    def _file(self, host: HostName, name: str) -> Path:
        return self._folder / host / f"{name}{SUFFIX}"

    def _write(self, host: HostName, name: str, pem: bytes) -> None:
        path = self._file(host, name)
        # Not a name that _files would find, should we die in between.
        temporary = path.with_suffix(".new")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(fd)
            temporary.rename(path)
            for each in (path.parent, self._folder, self._folder.parent):
                sync_folder(each)
        except OSError as error:
            raise _unusable(path, error) from None


def judged(
    host: HostName, listed: Sequence[tuple[str, x509.Facts | None]], now: float
) -> Iterator[Finding]:
    """Say how the certificates of a host are: readable, and valid for a while."""
    remedy = f"renew it, then `vnsmail host certificate {host} --cert FILE --key FILE`"
    for name, facts in listed:
        subject = f"{host} ({name})" if name else host
        if facts is None:
            yield Finding("certificate", subject, "wrong", "it cannot be read", remedy)
            continue
        days = (facts.expires - now) / 86400
        when = f"{datetime.fromtimestamp(facts.expires, UTC):%Y-%m-%d}"
        kind = "self-signed, " if facts.self_signed else ""
        if days < 0:
            yield Finding("certificate", subject, "wrong", f"expired {when}", remedy)
        elif days < SOON:
            text = f"{kind}expires {when}"
            yield Finding("certificate", subject, "wrong", text, remedy)
        else:
            yield Finding("certificate", subject, "ok", f"{kind}valid until {when}")


def _name(text: str) -> str:
    """Return a name to ask for, which is a file's name too."""
    wildcard = text.startswith("*.")
    return "*." * wildcard + domain_name(text.removeprefix("*."), "name")


def _of(path: Path) -> str:
    name = path.name.removesuffix(SUFFIX)
    return "" if name == DEFAULT else name


def _unusable(path: Path, error: OSError) -> StateUnusable:
    return StateUnusable(str(path), (error.strerror or str(error)).lower(), "mend it")
