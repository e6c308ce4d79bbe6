"""The kernel's packet filter, asked through libnftables. PRIVILEGED.

Commands and answers are those of libnftables-json(5), and meant for the network
namespace of the calling thread.

Rules of this file: what is committed takes effect as a whole or not at all, and at one
moment; no thread of the caller changes its namespace; libnftables ends the process when
it gets no netlink socket, so one is tried beforehand; one call at a time, for the port
of a process's only socket of this kind is the number of the process, by which watch.py
tells our changes from those of others.
"""

import ctypes
import errno
import functools
import json
import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vnsmail.errors import GuardUnavailable

_LIBRARY = "libnftables.so.1"
_NETLINK_NETFILTER = 12
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON of nftables/libnftables.h


_one_at_a_time = threading.Lock()


class Refused(GuardUnavailable):
    """The kernel refused; nothing was done."""

    @property
    def is_there(self) -> bool:
        """Whether what was to be created is there."""
        return self.reason.endswith(os.strerror(errno.EEXIST))


def check() -> None:
    """Find out whether rules can be read and written at all.

    Raises:
        GuardUnavailable: the library or the kernel's part is missing.
    """
    _library()
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
    except OSError as error:
        reason = f"the kernel has no nftables ({error.strerror})"
        raise GuardUnavailable(reason) from None


def query(what: str, **facts: str) -> list[Mapping[str, Any]]:
    """Return what the kernel lists: ``query("chains", family="inet")``.

    Raises:
        Refused: it does not list it, or has none of it.
    """
    answer = json.loads(_run([{"list": {what: facts}}]))
    found: list[Mapping[str, Any]] = answer["nftables"]
    return found


def commit(commands: Iterable[Mapping[str, Any]]) -> None:
    """Carry out commands as one transaction.

    Raises:
        Refused: the kernel refused one; nothing was done.
    """
    _run(list(commands))


def _run(commands: Sequence[Mapping[str, Any]]) -> str:
    check()
    with _one_at_a_time:
        return _run_alone(json.dumps({"nftables": commands}).encode())


def _run_alone(text: bytes) -> str:
    library = _library()
    # It opens its netlink socket here, in the namespace where the thread is now.
    context = library.nft_ctx_new(0)
    if not context:
        raise GuardUnavailable("libnftables does not start")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _OUTPUT_JSON)
        if library.nft_run_cmd_from_buffer(context, text) != 0:
            raise _refused(library.nft_ctx_get_error_buffer(context))
        output: bytes = library.nft_ctx_get_output_buffer(context)
        return output.decode()
    finally:
        library.nft_ctx_free(context)


def _refused(said: bytes) -> Refused:
    """Return the error that libnftables' words stand for."""
    first = said.decode(errors="replace").strip().partition("\n")[0]
    reason = first.rpartition("Error: ")[2] or "libnftables refuses without a reason"
    if reason.endswith(os.strerror(errno.EMSGSIZE)):
        # Only root of the machine may exceed the limit for one message.
        return Refused(
            "for so many hosts this needs root, or a larger net.core.wmem_default"
        )
    return Refused(reason)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        reason = f"{_LIBRARY} is missing; install it (apt-get install libnftables1)"
        raise GuardUnavailable(reason) from None
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    for name in ("output", "error"):
        getattr(library, f"nft_ctx_buffer_{name}").argtypes = [ctypes.c_void_p]
        read = getattr(library, f"nft_ctx_get_{name}_buffer")
        read.argtypes, read.restype = [ctypes.c_void_p], ctypes.c_char_p
    return library
