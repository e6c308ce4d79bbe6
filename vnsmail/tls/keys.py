"""Keys of TLS sessions, for whoever reads the capture of a lab. Off unless asked for.

The file has the format of SSLKEYLOGFILE (draft-ietf-tls-keylogfile). The supervisor
refuses the setting that leads here in any place that is no lab.
"""

import contextlib
import ssl

_file: list[str] = []


def tell(file: str) -> None:
    """Write the keys of all sessions to a file, of contexts that are made from now on."""
    _file[:] = [file]


def apply(context: ssl.SSLContext) -> None:
    """Have a context tell its keys, if that was asked for."""
    if _file:
        # Mail goes on without, if the file cannot be written.
        with contextlib.suppress(OSError):
            context.keylog_filename = _file[0]
