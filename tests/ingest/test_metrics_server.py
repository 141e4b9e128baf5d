"""The `/metrics` endpoint: where it listens, and connections that send nothing."""

from __future__ import annotations

import re
import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from index.errors import UsageError
from ingest.metrics_server import serve_metrics


@pytest.fixture
def source() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("lamps", "Lamps that are lit.", registry=registry).set(7)
    return registry


def port_of(line: str) -> int:
    found = re.match(r"metrics on port (\d+) of \S+", line)
    assert found, line
    return int(found[1])


def test_it_listens_on_loopback_unless_an_address_is_given(source: CollectorRegistry) -> None:
    line = serve_metrics(source, 0)
    assert re.fullmatch(r"metrics on port \d+ of 127\.0\.0\.1", line)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port_of(line)}/metrics", timeout=120).read().decode()
    assert "lamps 7.0" in text
    assert "python_info" in text
    with pytest.raises(OSError, match=r"."):
        socket.create_connection(("127.0.0.2", port_of(line)), timeout=120)  # another address of the same machine


def test_it_says_that_other_machines_can_reach_it(source: CollectorRegistry) -> None:
    line = serve_metrics(source, 0, "0.0.0.0")
    assert line.endswith("of 0.0.0.0, which other machines can reach without a password")
    socket.create_connection(("127.0.0.2", port_of(line)), timeout=120).close()


def test_connections_that_send_nothing_keep_nobody_out(source: CollectorRegistry) -> None:
    port = port_of(serve_metrics(source, 0))
    silent = [socket.create_connection(("127.0.0.1", port), timeout=120) for _ in range(30)]
    assert b"lamps" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120).read()
    for each in silent:
        each.close()


def test_an_address_that_cannot_be_used(source: CollectorRegistry) -> None:
    port = port_of(serve_metrics(source, 0))
    with pytest.raises(UsageError, match=f"--metrics-port {port}, --metrics-address 127.0.0.1: .*choose another"):
        serve_metrics(source, port)
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        serve_metrics(source, 0, "192.0.2.1")
