"""Live segments into the store, and the alerts of their frames: published once, or late, but never lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from index.commits.offset import OffsetCommitter
from index.errors import BrokerUnavailable, StoreFull
from index.second_grid import seconds_of
from index.standing_questions import StandingQuestionStore, make_question
from index.store import Store
from ingest import segment_indexer
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.settings import ConsumeSettings
from ingest.live.spool import SpooledSegment
from ingest.live.store_sink import StoreSink
from ingest.messages import AlertMessage
from ingest.segments.names import parse_name, segment_name
from tests.support.brightness import BEGAN, ENCODERS, RULE, SECOND, film
from tests.support.records import PAIR


class AlertLog:
    """Records alerts; raises while it is `down`."""

    def __init__(self) -> None:
        self.alerts: list[AlertMessage] = []
        self.down = False

    def __call__(self, alerts: Sequence[AlertMessage]) -> None:
        if self.down:
            raise BrokerUnavailable("gone")
        self.alerts += alerts

    def seen(self) -> list[tuple[str, int]]:
        return [(alert.state, round(alert.start.timestamp() - BEGAN / SECOND)) for alert in self.alerts]


def segment(folder: Path, bright: range, first: int, length: int) -> SpooledSegment:
    name = parse_name(segment_name("gate", BEGAN + first * SECOND, length, "video/mp4"))
    assert name is not None
    path = film(folder, bright, first, length)
    return SpooledSegment(name, path, path.stat().st_size, length)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "store", PAIR)
    vector = np.eye(12, dtype=np.float32)[0]
    StandingQuestionStore(made.url).add(
        make_question("somebody with a lamp", vector, PAIR.patch, rule=RULE, created_at=BEGAN)
    )
    return made


def sink_of(store: Store, log: AlertLog) -> StoreSink:
    return StoreSink(store, ENCODERS, ConsumeSettings(), DecodeLimits(), on_alerts=log)


def test_an_alert_is_published_once_and_late_after_a_failure(store: Store, tmp_path: Path) -> None:
    log = AlertLog()
    first = sink_of(store, log)
    dark = segment(tmp_path, range(0), 0, 20)
    lit = segment(tmp_path, range(25, 31), 20, 20)
    first.write([dark, lit])
    assert log.seen() == [("raised", 25), ("cleared", 25)]
    assert log.alerts[0].jpeg() is not None
    first.write([dark, lit])  # written again: nothing is stored, nothing is published
    assert (first.frames, first.alerts, len(log.alerts)) == (40, 1, 2)

    log.down = True
    first.write([segment(tmp_path, range(50, 60), 40, 20)])
    assert first.frames == 60  # storing does not wait for the alerts
    assert len(log.alerts) == 2
    log.down = False
    sink_of(store, log).write([segment(tmp_path, range(0), 60, 10)])  # another process
    assert log.seen()[2:] == [("raised", 50), ("cleared", 50)]
    assert len({alert.id for alert in log.alerts}) == 2
    assert (seconds_of(store.window().captured_at) - BEGAN // SECOND).tolist() == list(range(70))


def test_footage_is_counted_as_stored_repeated_or_dropped(store: Store, tmp_path: Path) -> None:
    sink = sink_of(store, AlertLog())
    sink.write([segment(tmp_path, range(0), 0, 20), segment(tmp_path, range(0), 15, 10)])  # five seconds twice
    assert str(sink.footage) == "stored: 2 segments, 25 frames, 25 s; repeated: 5 frames, 5 s; dropped: nothing"
    name = parse_name(segment_name("gate", BEGAN + 30 * SECOND, 10, "video/mp4"))
    assert name is not None
    (tmp_path / "noise").write_bytes(b"this is no video" * 100)
    sink.write([SpooledSegment(name, tmp_path / "noise", 1600, 10)])
    sink.drop(segment(tmp_path, range(0), 40, 7))
    assert str(sink.footage.dropped) == "2 segments, 17 s"
    again = sink_of(store, AlertLog())  # another process finds them in the spool
    again.write([segment(tmp_path, range(0), 0, 20)])
    assert str(again.footage) == "stored: nothing; repeated: 1 segment, 20 s; dropped: nothing"
    assert again.report()["footage"] is again.footage


def test_alerts_of_a_failed_commit_are_published_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AlertLog()
    sink_of(store, log).write([segment(tmp_path, range(0), 0, 20)])
    log.down = True
    sink_of(store, log).write([segment(tmp_path, range(25, 31), 20, 20)])
    log.down = False
    again = sink_of(store, log)
    after = segment(tmp_path, range(0), 40, 10)

    def full(*_: object) -> None:
        raise StoreFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(OffsetCommitter, "commit", full)
        with pytest.raises(StoreFull):
            again.write([after])
    assert log.seen() == []
    again.write([after])
    assert log.seen() == [("raised", 25), ("cleared", 25)]


def test_segments_with_many_bytes_are_stored_by_several_commits(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_indexer, "COMMIT_BYTES", 1)
    log = AlertLog()
    sink = StoreSink(store, ENCODERS, ConsumeSettings(batch_frames=1), DecodeLimits(), on_alerts=log)
    segments = [segment(tmp_path, range(0), first, 5) for first in (0, 5, 10)]
    sink.write(segments[::-1])
    assert (sink.commits, sink.frames) == (3, 15)
    assert (seconds_of(store.window().captured_at) - BEGAN // SECOND).tolist() == list(range(15))
    sink.write(segments)
    assert sink.frames == 15
