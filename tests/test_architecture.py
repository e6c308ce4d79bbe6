"""The import rules of docs/explanation/architecture.md are the ones in the code."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vnsmail"

# Lowest first. A module may import from floors below its own, never sideways, never
# from above.
FLOORS = [
    {"errors"},
    {"model", "log", "packets"},
    {"settings", "channel", "database", "events"},
    {"smtp", "message", "drop", "net", "directory", "sasl", "tls"},
    {"queue", "broker", "capture", "authentication"},
    {"mailbox", "resolve"},
    {"inbound", "delivery"},
    {"engines"},
    {"supervisor"},
    {"lab"},
    {"web"},
    {"cli"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# Allowed by the floors, refused here: what runs as root never parses mail, and the
# supervisor starts its children by exec, so it needs none of their code but the
# messages it exchanges with them.
FORBIDDEN = {
    "broker": {
        "vnsmail.smtp",
        "vnsmail.message",
        "vnsmail.sasl",
        "vnsmail.authentication",
    },
    "supervisor": {
        "vnsmail.authentication",
        "vnsmail.sasl",
        "vnsmail.smtp",
        "vnsmail.message",
        "vnsmail.queue",
        "vnsmail.mailbox",
        "vnsmail.resolve",
        "vnsmail.inbound",
        "vnsmail.delivery",
        "vnsmail.engines",
        "vnsmail.broker",
    },
}
ALLOWED = {
    "vnsmail.engines.protocol",
    # How mail servers that others wrote are run; no mail is looked at.
    "vnsmail.engines.mta",
    "vnsmail.engines.mtas",
    "vnsmail.broker.protocol",
    "vnsmail.queue.selection",
}

PRIVILEGED = {
    "vnsmail.broker.server",
    "vnsmail.broker.sockets",
    "vnsmail.capture.record",
    "vnsmail.capture.ring",
    "vnsmail.net.announce",
    "vnsmail.net.apply",
    "vnsmail.net.cgroups",
    "vnsmail.net.connect_hook",
    "vnsmail.net.guard",
    "vnsmail.net.in_use",
    "vnsmail.net.namespaces",
    "vnsmail.net.nftables",
    "vnsmail.net.watch",
    "vnsmail.supervisor.engine_box",
    "vnsmail.supervisor.engine_keeper",
}
MAY_IMPORT_PRIVILEGED = {"broker", "capture", "net", "supervisor", "lab"}

PURE = [
    "errors.py",
    "model.py",
    "smtp/*.py",
    "message/*.py",
    "authentication/*.py",
    "sasl/*.py",
    "resolve/kept.py",
    "tls/dane.py",
    "tls/names.py",
    "tls/policy.py",
    "tls/report.py",
    "tls/sts.py",
    "drop/form.py",
    "events/record.py",
    "net/bpf.py",
    "net/hook_programs.py",
    "net/names.py",
    "net/messages.py",
    "net/requests.py",
    "net/events.py",
    "net/facts.py",
    "net/fit.py",
    "net/routed.py",
    "net/by_source.py",
    "net/fence_rules.py",
    "net/guard_changes.py",
    "net/guard_rules.py",
    "net/steps.py",
    "net/choose.py",
    "net/plan.py",
    "engines/mta.py",
    "engines/mtas.py",
    "engines/mta_exim.py",
    "engines/mta_postfix.py",
    "engines/mta_sendmail.py",
    "supervisor/engine_protocol.py",
    "broker/protocol.py",
    "broker/policy.py",
    "delivery/lanes.py",
    "delivery/limits.py",
    "delivery/notices.py",
    "delivery/pace.py",
    "delivery/settlement.py",
    "delivery/shares.py",
    "queue/schedule.py",
    "queue/envelope.py",
    "queue/selection.py",
    "inbound/accept.py",
    "inbound/admission.py",
    "inbound/policy.py",
    "inbound/proxy.py",
    "supervisor/x509.py",
    "inbound/accounts.py",
    "inbound/authorship.py",
    "inbound/guesses.py",
    "inbound/scores.py",
    "inbound/allowance.py",
    "engines/protocol.py",
    "supervisor/host_files.py",
    "supervisor/pack_form.py",
    "supervisor/plan.py",
    "supervisor/signing_keys.py",
    "supervisor/converge.py",
    "supervisor/drift.py",
    "supervisor/altered.py",
    "supervisor/examine.py",
    "supervisor/exposition.py",
    "directory/declaration.py",
    "directory/hosts_table.py",
    "directory/toml_lines.py",
    "capture/audit.py",
    "capture/bpf.py",
    "capture/dialogue.py",
    "capture/drawing.py",
    "capture/fields.py",
    "capture/flows.py",
    "capture/packets.py",
    "capture/page.py",
    "capture/places.py",
    "capture/proof.py",
    "capture/received.py",
    "capture/report.py",
    "capture/senders.py",
    "capture/style.py",
    "capture/verdict.py",
    "capture/witnesses.py",
]
IO = {"asyncio", "os", "pyroute2", "socket", "ssl", "subprocess", "threading", "time"}
# os.strerror turns a number into words; nothing is read or written.
EXCEPT = {("errors.py", "os")}


@cache
def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            # "from vnsmail import net" names the package in the alias.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parts_imported(path: Path) -> set[str]:
    ours = {name for name in imported(path) if name.startswith("vnsmail.")}
    return {name.split(".")[1] for name in ours} - {part(path), "__version__"}


def each(paths):
    return pytest.mark.parametrize(
        "path", sorted(paths), ids=lambda path: str(path.relative_to(PACKAGE))
    )


MODULES = [p for p in PACKAGE.rglob("*.py") if part(p) not in {"__init__", "__main__"}]


@each(MODULES)
def test_imports_only_lower_floors(path):
    """No module imports a part on its own floor or above."""
    too_high = {p for p in parts_imported(path) if FLOOR[p] >= FLOOR[part(path)]}

    assert set() == too_high


@each(MODULES)
def test_forbidden_pairs(path):
    """Root never imports the mail parser; the supervisor imports no child."""
    forbidden = FORBIDDEN.get(part(path), set())
    found = {
        name
        for name in imported(path)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
        and not any(name == a or name.startswith(a + ".") for a in ALLOWED)
        and name not in {a.rsplit(".", 1)[0] for a in ALLOWED}
    }

    assert set() == found


@each(p for p in MODULES if part(p) not in MAY_IMPORT_PRIVILEGED)
def test_unprivileged_code_does_not_import_privileged_code(path):
    """A worker that is taken over finds no privileged code to call."""
    assert set() == imported(path) & PRIVILEGED


@each(p for pattern in PURE for p in PACKAGE.glob(pattern))
def test_pure_modules_do_no_io(path):
    """Decisions are tested without a socket, a clock or root."""
    name = str(path.relative_to(PACKAGE))
    used = {module.split(".")[0] for module in imported(path)} & IO

    assert set() == {module for module in used if (name, module) not in EXCEPT}
