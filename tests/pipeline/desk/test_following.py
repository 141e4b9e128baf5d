"""Standing questions of the desk: new frames raise alerts, which are kept, sent once signed, and survive a restart."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import SourceDenied
from index.records import FrameRecords
from index.search.resident_frames import ResidentFrames
from index.standing_questions import AlertRule, StandingQuestion, StandingQuestionStore, make_question
from index.store import Store
from pipeline.access.authentication import DATABASE
from pipeline.access.database import StateDatabase, make_state_folder
from pipeline.access.schema import MIGRATIONS
from pipeline.desk.alerts.following import Follower
from pipeline.desk.alerts.webhooks import WebhookSender, webhook_policy
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

RULE = AlertRule(floor=0.3, warm_up=15, samples=60, every=1)
SECRET = "a secret of the webhook"


class Receiver:
    """A server that keeps what it gets; the first requests get the given statuses, the others 200."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        left = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(left.pop(0) if left else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 300
        while len(self.got) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.got) == count


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StateDatabase]:
    made = StateDatabase(make_state_folder(tmp_path / "state") / DATABASE, MIGRATIONS)
    yield made
    made.close()


@pytest.fixture
def sender() -> Iterator[WebhookSender]:
    made = WebhookSender(webhook_policy(("127.0.0.0/8",)), back_off_seconds=0.01)
    yield made
    made.close()


def seconds(first: int, length: int, bright: range) -> FrameRecords:
    """Frames whose patches point along the question where they are bright, else away from it."""
    records = make_records("gate", BEGAN + first * SECOND, length)
    patches = np.zeros((length, 4, 12), np.float16)
    for row in range(length):
        patches[row, :, 0 if first + row in bright else 1] = 1
    names = FrameRecords.__dataclass_fields__
    return FrameRecords(**{**{name: getattr(records, name) for name in names}, "patches": patches})


def add(store: Store, first: int, length: int, bright: range = range(0)) -> None:
    records = seconds(first, length, bright)
    store.append(make_segment(records, 0, f"from {first}"), records)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "store", PAIR)
    add(made, 0, 60)
    return made


@pytest.fixture
def question(store: Store) -> StandingQuestion:
    vector = np.eye(12, dtype=np.float32)[0]
    made = make_question("bright", vector, PAIR.patch, rule=RULE, created_at=BEGAN)
    StandingQuestionStore(store.url).add(made)
    return made


def look(follower: Follower, store: Store) -> int:
    frames = ResidentFrames(store.tables.frames, dimension=16)
    return follower.look(frames.refresh().streams)


def fired(database: StateDatabase) -> list[dict[str, Any]]:
    return [json.loads(row["document"]) for row in database.rows("SELECT document FROM fired ORDER BY start")]


def test_an_alert_is_kept_and_sent_signed(
    store: Store, question: StandingQuestion, database: StateDatabase, sender: WebhookSender
) -> None:
    receiver = Receiver(500, 503)
    database.execute("INSERT INTO standing (id, webhook, secret) VALUES (?, ?, ?)", question.id, receiver.url, SECRET)
    follower = Follower(store, database, sender)
    assert look(follower, store) == 0
    add(store, 60, 30, range(70, 80))
    assert look(follower, store) == 2  # raised and cleared
    (alert,) = fired(database)
    assert (alert["stream"], alert["state"], alert["text"]) == ("gate", "cleared", "bright")
    assert alert["start"] == "2024-03-01T08:01:10Z"
    assert alert["end"] == "2024-03-01T08:01:19Z"
    receiver.wait(4)  # two attempts were refused
    for headers, body in receiver.got:
        message = headers["X-Sightline-Timestamp"].encode() + b"." + body
        expected = hmac.new(SECRET.encode(), message, hashlib.sha256).hexdigest()
        assert headers["X-Sightline-Signature"] == f"sha256={expected}"
    assert {json.loads(body)["state"] for _, body in receiver.got} == {"raised", "cleared"}
    assert len({headers["X-Sightline-Delivery"] for headers, _ in receiver.got}) == 2
    assert look(follower, store) == 0


def test_a_muted_question_is_kept_and_not_sent(
    store: Store, question: StandingQuestion, database: StateDatabase, sender: WebhookSender
) -> None:
    receiver = Receiver()
    statement = "INSERT INTO standing (id, muted, webhook, secret) VALUES (?, 1, ?, ?)"
    database.execute(statement, question.id, receiver.url, SECRET)
    follower = Follower(store, database, sender)
    look(follower, store)
    add(store, 60, 30, range(70, 80))
    assert look(follower, store) == 2
    assert len(fired(database)) == 1
    time.sleep(0.2)
    assert receiver.got == []


def test_another_process_continues_where_the_first_was(
    store: Store, question: StandingQuestion, database: StateDatabase, sender: WebhookSender
) -> None:
    assert look(Follower(store, database, sender), store) == 0
    add(store, 60, 15, range(70, 80))  # while no desk runs
    first = Follower(store, database, sender)
    assert look(first, store) == 1
    assert fired(database)[0]["state"] == "raised"
    add(store, 75, 20, range(70, 80))
    assert look(Follower(store, database, sender), store) == 1
    (alert,) = fired(database)
    assert (alert["state"], alert["end"]) == ("cleared", "2024-03-01T08:01:19Z")


def test_what_was_stored_before_the_question_fires_nothing(
    store: Store, database: StateDatabase, sender: WebhookSender
) -> None:
    add(store, 60, 30, range(70, 80))
    vector = np.eye(12, dtype=np.float32)[0]
    StandingQuestionStore(store.url).add(make_question("bright", vector, PAIR.patch, rule=RULE, created_at=BEGAN))
    assert look(Follower(store, database, sender), store) == 0
    assert fired(database) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "http://169.254.169.254/latest", "file:///etc/passwd"])
def test_addresses_inside_are_refused(url: str) -> None:
    sender = WebhookSender(webhook_policy())
    with pytest.raises(SourceDenied):
        sender.check(url)
    sender.close()
