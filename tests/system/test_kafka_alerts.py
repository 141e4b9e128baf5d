"""A standing question through a real Kafka: each alert arrives once, with a picture, whichever worker restarts."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.errors import BrokerUnavailable
from index.standing_questions import StandingQuestionStore, make_question
from index.store import Store
from ingest.kafka.alert_reader import follow
from ingest.kafka.clients import make_topics
from ingest.kafka.indexer import ConsumeReport
from ingest.kafka.poller import consume
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import AlertMessage
from ingest.outbox import Outbox
from tests.support.brightness import BEGAN, ENCODERS, RULE, SECOND, film
from tests.support.kafka_footage import publish, seconds
from tests.support.kafka_server import Broker, broker
from tests.support.processes import Process
from tests.support.records import PAIR

__all__ = ["broker"]  # a fixture

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


def work(
    store: Store, settings: KafkaSettings, group: str = "g", stop: threading.Event | None = None, segments: int = 3
) -> ConsumeReport:
    bounds = ConsumeSettings(commit_seconds=0.5, commit_segments=segments)
    return consume(store, ENCODERS, kafka=settings, group=group, settings=bounds, drain=True, stop=stop)


def arrived(settings: KafkaSettings) -> list[AlertMessage]:
    return list(follow(settings, beginning=True, drain=True))


def at(alert: AlertMessage, moment: datetime) -> int:
    return round(moment.timestamp() - BEGAN / SECOND)


def test_an_alert_arrives_once_with_a_picture_after_restarts(
    broker: Broker, tmp_path: Path, sightline: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = broker.settings(prefix="standing", partitions=2)
    make_topics(settings)
    store = Store.create(tmp_path / "store", PAIR)
    vector = np.eye(12, dtype=np.float32)[0]
    StandingQuestionStore(store.url).add(
        make_question("somebody with a lamp", vector, PAIR.patch, rule=RULE, created_at=BEGAN)
    )
    name = {"stream": "gate"}

    # The first: raised and cleared by one worker; the second: raised by one, cleared by the next.
    publish(settings, [film(tmp_path / "a", range(25, 31), 0, 60)], **name)
    report = work(store, settings)
    assert (report.frames, report.alerts) == (60, 1)
    publish(settings, [film(tmp_path / "b", range(70, 90), 60, 20)], **name)
    assert work(store, settings).alerts == 1
    publish(settings, [film(tmp_path / "c", range(0), 80, 20)], **name)
    assert work(store, settings).alerts == 0
    alerts = arrived(settings)
    assert [(a.state, at(a, a.start), None if a.end is None else at(a, a.end)) for a in alerts] == [
        ("raised", 25, None),
        ("cleared", 25, 30),
        ("raised", 70, None),
        ("cleared", 70, 79),
    ]
    assert (alerts[0].stream, alerts[0].text) == ("gate", "somebody with a lamp")
    picture = Image.open(io.BytesIO(alerts[0].jpeg() or b""))
    assert picture.size == (64, 48)
    assert np.asarray(picture).mean() > 180  # the bright frame, not a dark one

    # The same footage again, cut differently, and read by another group: nothing is published again.
    publish(settings, [film(tmp_path / "a", range(25, 31), 0, 60)], **name, seconds=7)
    again = work(store, settings, group="other")
    assert (again.frames, again.alerts) == (0, 0)

    # A worker that stores the frames and dies before Kafka accepts the alert: the next one publishes it.
    stop = threading.Event()
    refused: list[AlertMessage] = []

    def die(_: Outbox, __: str, alerts: Sequence[AlertMessage]) -> None:
        if alerts:
            refused.extend(alerts)
            stop.set()
            raise BrokerUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr("ingest.kafka.indexer.publish_alerts", die)
        publish(settings, [film(tmp_path / "d", range(110, 116), 100, 30)], **name)
        work(store, settings, stop=stop, segments=1)  # others are decoded already, and stored while it dies
    assert [alert.state for alert in refused][:1] == ["raised"]
    assert max(seconds(store, "gate")) >= 110
    assert len(arrived(settings)) == 4
    publish(settings, [film(tmp_path / "e", range(0), 130, 10)], **name)
    work(store, settings)
    later = arrived(settings)[4:]
    assert [(a.state, at(a, a.start)) for a in later] == [("raised", 110), ("cleared", 110)]
    assert later[0].id == refused[0].id
    assert later[0].jpeg() == refused[0].jpeg()
    assert seconds(store, "gate") == list(range(140))
    assert store.verify() == []

    kafka = {"SIGHTLINE_KAFKA_SERVERS": broker.servers, "SIGHTLINE_KAFKA_PREFIX": "standing"}
    done = sightline("alerts", "watch", "--beginning", "--drain", "--json", "--pictures", tmp_path / "p", **kafka)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["id"] for line in lines] == [alert.id for alert in arrived(settings)]
    assert len(list((tmp_path / "p").glob("gate_*.jpg"))) == 3
