"""The text for Prometheus, as its own parser reads it."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vnsmail.engines.protocol import OwnerReport
from vnsmail.supervisor.control import Guarded, ProcessStatus
from vnsmail.supervisor.exposition import Facts, text

NOW = 1_800_000_000.0
ALPHA = OwnerReport("alpha.example", (), 3, 20, 5, NOW - 60, "")
BETA = OwnerReport(
    "beta.example", (), 0, 0, 0, None, "cannot send", held="10.77.0.12 is missing"
)


def read(facts):
    """Return samples by name and labels."""
    families = list(text_string_to_metric_families(text(facts)))
    for family in families:
        assert family.documentation
        assert family.type in {"gauge", "counter"}
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_everything():
    """Each number, by its name."""
    found = read(
        Facts(
            NOW,
            (ALPHA, BETA),
            frozenset({"gone.example"}),
            (ProcessStatus("broker", "running", 7, 2, ""),),
            {"broker": 4096},
            {"alpha.example": 3},
            {"alpha.example": Guarded("", 4, 240, 1)},
            {"opened": 10**7, "unavailable": 1, "refused": 0},
        )
    )

    expected = {
        ("vnsmail_host_ok", "alpha.example"): 1,
        ("vnsmail_host_ok", "beta.example"): 0,
        ("vnsmail_host_ok", "gone.example"): 0,
        ("vnsmail_host_source_missing", "alpha.example"): 0,
        ("vnsmail_host_source_missing", "beta.example"): 1,
        ("vnsmail_sessions", "alpha.example"): 3,
        ("vnsmail_queue_messages", "alpha.example"): 20,
        ("vnsmail_queue_deferred_messages", "alpha.example"): 5,
        ("vnsmail_queue_oldest_age_seconds", "alpha.example"): 60,
        ("vnsmail_queue_oldest_age_seconds", "beta.example"): 0,
        ("vnsmail_guard_dropped_packets_total", "alpha.example"): 4,
        ("vnsmail_guard_dropped_bytes_total", "alpha.example"): 240,
        ("vnsmail_guard_borrowed_packets_total", "alpha.example"): 1,
        ("vnsmail_network_drifts_total", "alpha.example"): 3,
        ("vnsmail_process_up", "broker"): 1,
        ("vnsmail_process_restarts_total", "broker"): 2,
        ("vnsmail_process_resident_memory_bytes", "broker"): 4096,
        ("vnsmail_broker_requests_total", "opened"): 10**7,
    }
    assert expected == {key: found.get(key) for key in expected}


def test_what_is_not_known():
    """It is left out."""
    assert {"vnsmail_info"} == {name for name, *_ in read(Facts(NOW))}


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_label(host):
    """Nothing in a name breaks a line, or becomes another label."""
    found = text(Facts(NOW, drifts={host: 7}))
    (line,) = [x for x in found.split("\n") if x.startswith("vnsmail_network_drifts_t")]
    (family,) = text_string_to_metric_families(line + "\n")

    assert [{"host": host}] == [sample.labels for sample in family.samples]
