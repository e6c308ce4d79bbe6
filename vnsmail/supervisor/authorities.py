"""Who is trusted to say who a server is: certificates, which workers have no file of."""

from pathlib import Path

from vnsmail.log import logger

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
"""Where systems have them: Debian, Red Hat, Alpine and BSD."""

MOST = 4 * 1024 * 1024
"""Octets; those of Debian are 220 KiB."""

log = logger("supervisor")


def authorities(file: str, bundles: tuple[str, ...] = BUNDLES) -> bytes:
    """Return the certificates of trusted authorities, as PEM; none if there are none.

    Without any, no certificate is good: mail that needs one waits.

    Args:
        file: that of the settings; empty: the system's.
        bundles: where the system may have them.
    """
    for path in map(Path, (file,) if file else bundles):
        try:
            with path.open("rb") as opened:
                found = opened.read(MOST + 1)
        except OSError as error:
            if file:
                reason = str(error)
                log.warning("authorities.unreadable", file=file, reason=reason)
            continue
        if len(found) <= MOST and b"BEGIN CERTIFICATE" in found:
            return found
        log.error("authorities.unusable", file=str(path), octets=len(found))
    return b""
