"""What a process may do, read from the kernel (proc_pid_status(5))."""

import os
from pathlib import Path

_CAPABILITIES = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]
"""By number, from linux/capability.h."""

NET_ADMIN = 12
SYS_ADMIN = 21


def _status(pid: int | str) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def effective(pid: int | str = "self") -> int:
    """Return the effective capabilities of a process as a bit set."""
    return int(_status(pid)["CapEff"], 16)


def permitted() -> int:
    """Return the permitted capabilities of this process as a bit set."""
    return int(_status("self")["CapPrm"], 16)


def capability(name: str) -> int:
    """Return the number of a capability.

    Raises:
        ValueError: there is none of that name.
    """
    return _CAPABILITIES.index(name)


def last() -> int:
    """Return the highest number that the kernel knows."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def describe(pid: int) -> str:
    """Return the privileges of a process in a line; empty if it is gone."""
    try:
        status = _status(pid)
        own_network = os.readlink(f"/proc/{pid}/ns/net") != os.readlink(
            "/proc/self/ns/net"
        )
    except OSError:
        return ""
    held = int(status["CapEff"], 16)
    names = [name for number, name in enumerate(_CAPABILITIES) if held >> number & 1]
    if len(names) > len(_CAPABILITIES) - 4:
        capabilities = "all capabilities"
    else:
        capabilities = ", ".join(names) or "no capabilities"
    network = "a network namespace apart" if own_network else "the machine's network"
    return f"uid {status['Uid'].split()[0]}; {capabilities}; {network}"


def single_uid() -> bool:
    """Return whether this user namespace maps one uid only (user_namespaces(7))."""
    lines = Path("/proc/self/uid_map").read_text().split()
    return len(lines) == 3 and lines[2] == "1"
