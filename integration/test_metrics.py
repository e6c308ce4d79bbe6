"""Metrics, as a scraper gets them from the running whole."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from integration.labs import eventually


@pytest.fixture(scope="module")
def told(lab):
    """The lab, with metrics on a socket."""
    lab.restart(f'[metrics]\nlisten = "unix:{lab.root}/metrics.sock"\n')
    return lab


def scraped(lab):
    """Return samples by name and labels, as curl gets them."""
    words = ("curl", "-sf", "--unix-socket", f"{lab.root}/metrics.sock")
    text = lab.inside("machine", *words, "http://localhost/metrics").stdout
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_told(told):
    """Every host and process; and what happens is counted."""
    found = scraped(told)
    for host in ("alpha", "beta", "gamma", "delta", "epsilon"):
        assert 1 == found["vnsmail_host_ok", f"{host}.example"]
        assert 0 == found["vnsmail_guard_dropped_packets_total", f"{host}.example"]
    for process in ("broker", "worker-0", "worker-machine"):
        assert 1 == found["vnsmail_process_up", process]
        assert found["vnsmail_process_resident_memory_bytes", process] > 10**6
    opened = found["vnsmail_broker_requests_total", "opened"]
    told.send("user@alpha.example", "ann@north.example")
    told.settle()
    told.inside("machine", "ip", "addr", "del", "10.77.0.14/32", "dev", "lan0")

    def counted():
        now = scraped(told)
        drifts = now.get(("vnsmail_network_drifts_total", "delta.example"), 0)
        return drifts and now["vnsmail_broker_requests_total", "opened"] > opened

    assert opened >= 10
    eventually(counted, "a drift and sockets are counted")


def test_the_command(told):
    """The same text."""
    text = told.vnsmail("metrics").stdout
    names = {family.name for family in text_string_to_metric_families(text)}

    assert {"vnsmail_queue_messages", "vnsmail_host_ok", "vnsmail_sessions"} <= names
    other = told.inside(
        *("machine", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"),
        *("--unix-socket", f"{told.root}/metrics.sock", "http://localhost/"),
    )
    assert "404" == other.stdout
