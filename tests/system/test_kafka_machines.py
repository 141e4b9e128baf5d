"""Worker machines that share an object store: processes with caches of their own, Kafka, and an S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kafka_fleet import PARTITIONS, Fleet, kill
from tests.support.kafka_server import Broker, broker
from tests.support.s3 import connect, s3_server

__all__ = ["broker"]  # a fixture

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


def test_machines_share_a_store_and_one_that_is_killed_loses_nothing(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, of which one is killed while it has work; its partitions go to the other and to a third."""
    with s3_server(tmp_path) as server:
        connect(server, monkeypatch)
        kafka = broker.settings(prefix="machines", partitions=PARTITIONS)
        fleet = Fleet(tmp_path, kafka, slow=0.3, store="s3://footage/store", poll=0.5)
        try:
            fleet.start(2)
            fleet.share()
            fleet.hold()
            fleet.publish()
            fleet.until(lambda: fleet.frames() > 0, "some of the footage is stored")
            assert kill(fleet, fleet.workers[0]), "it had work left"
            fleet.start(1)
            fleet.share()
            fleet.hold()
            fleet.publish()
            fleet.until(lambda: all(map(fleet.stored, fleet.workers)), "both machines that are left have worked")
            fleet.release()
            fleet.whole()
            reports = fleet.stop()
        finally:
            fleet.close()
        assert all(report["frames"] > 0 for report in reports), "both machines that are left have worked"
        assert sum(report["dead_letters"] for report in reports) == 0
        assert any(method == "PUT" and "/_delta_log/" in path for method, path in server.requests())
