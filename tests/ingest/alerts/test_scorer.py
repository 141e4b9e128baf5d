"""The alert scorer over a store: each alert once, whenever a worker is killed, and the state beside the tables."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from index.errors import UnknownQuestion, UsageError
from index.records import FrameRecords
from index.standing_questions import AlertRule, StandingQuestion, StandingQuestionStore, make_question
from index.store import Store
from ingest.alerts.detector import UNIT
from ingest.alerts.scorer import AlertScorer, replay, score_frames
from ingest.alerts.statistics import ScoreStatistics
from ingest.messages import AlertMessage, parse_alert
from tests.support.records import BEGAN, PAIR, SECOND, identity, make_segment

RULE = AlertRule(floor=0.3, warm_up=20, samples=60, every=1)
VECTOR = np.eye(12, dtype=np.float32)[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


def question(text: str = "a red car", rule: AlertRule = RULE, **more: object) -> StandingQuestion:
    return make_question(text, VECTOR, PAIR.patch, rule=rule, created_at=BEGAN, **more)  # type: ignore[arg-type]


def jpeg(second: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (second % 256, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def records(scores: list[float], first: int = 0, stream: str = "front") -> FrameRecords:
    """Frames a second apart whose best patch has these cosines with the question."""
    n = len(scores)
    patches = np.zeros((n, 4, 12), np.float16)
    patches[:, :, 5] = 1
    patches[:, 2, 0], patches[:, 2, 1], patches[:, 2, 5] = scores, np.sqrt(1 - np.square(scores)), 0
    return FrameRecords(
        stream_id=stream,
        clock_source="given",
        captured_at=BEGAN + (first + np.arange(n, dtype=np.int64)) * SECOND,
        pts_seconds=np.arange(n, dtype=np.float64),
        frame_vectors=np.full((n, 16), 0.25, np.float32),
        patch_pooled=np.ones((n, 12), np.float32),
        patches=patches * np.float16(3),  # patches have any length
        pictures=[jpeg(first + i) for i in range(n)],
    )


def footage(length: int = 160) -> list[float]:
    """Noise below 0.1, and two alerts: seconds 60 to 69 and 120 to 126; one before the warm-up is over."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(0, 0.1, length)
    scores[12:15] = 0.8
    scores[60:70] = 0.7
    scores[120:127] = 0.6
    return [float(score) for score in scores]


def summary(alerts: list[AlertMessage]) -> list[tuple[str, int, int]]:
    second = 1_000_000
    return [
        (a.state, round(a.start.timestamp() - BEGAN / second), round(a.at.timestamp() - BEGAN / second)) for a in alerts
    ]


ALL = [("raised", 60, 61), ("cleared", 60, 72), ("raised", 120, 121), ("cleared", 120, 129)]


def test_scores_are_the_best_patch_of_any_length() -> None:
    rng = np.random.default_rng(1)
    patches = rng.normal(size=(7, 5, 12)).astype(np.float16)
    patches[3, 2] = 0
    vectors: NDArray[np.float32] = np.eye(12, dtype=np.float32)[:3]
    got = score_frames(patches, vectors)
    for n in range(7):
        for q in range(3):
            cosines = []
            for p in patches[n].astype(np.float64):
                length = np.linalg.norm(p)
                cosines.append(0.0 if length == 0 else float(p @ vectors[q]) / length)
            assert abs(got[n, q] - max(cosines) * UNIT) <= 0.6


def work(store: Store, scores: list[float], size: int, *, alerts: AlertScorer | None = None) -> list[AlertMessage]:
    """Index scores as a worker that is never killed does."""
    alerts = alerts or AlertScorer(store, reload_seconds=0)
    published: list[AlertMessage] = []
    for chunk, first in enumerate(range(0, len(scores), size)):
        frames = records(scores[first : first + size], first)
        published += alerts.prepare(["front"])
        store.append(make_segment(frames, chunk), frames)
        published += alerts.score(frames)
        alerts.save()
    return published


@pytest.mark.parametrize("size", [7, 40, 160])
def test_frames_in_any_batches_give_the_same_alerts(store: Store, size: int) -> None:
    StandingQuestionStore(store.url).add(question())
    published = work(store, footage(), size)
    assert summary(published) == ALL
    raised = published[0]
    assert (raised.text, raised.stream) == ("a red car", "front")
    assert raised.score == pytest.approx(0.7, abs=1e-3)
    assert raised.threshold == pytest.approx(0.35, abs=0.02)
    assert raised.usual is not None
    assert raised.usual < raised.threshold
    assert raised.percentile == 100.0  # of this camera's own scores
    assert raised.jpeg() == jpeg(61)
    assert Image.open(io.BytesIO(base64.b64decode(str(raised.picture)))).size == (8, 8)
    assert published[1].picture is None
    assert published[0].id == published[1].id != published[2].id
    assert parse_alert(raised.to_bytes()) == raised
    again = list(replay(store, [question()]))
    assert [(a.id, a.state, a.picture) for a in again] == [(a.id, a.state, a.picture) for a in published]


@pytest.mark.parametrize("seed", range(6))
def test_a_worker_killed_at_any_step_loses_no_alert_and_raises_none_twice(store: Store, seed: int) -> None:
    """Killed after the commit, after publishing, or after saving: the next worker starts from what is on disk."""
    StandingQuestionStore(store.url).add(question())
    rng = np.random.default_rng(seed)
    published: list[AlertMessage] = []
    scores, at, chunk, killed = footage(), 0, 0, 0
    alerts = AlertScorer(store, reload_seconds=0, save_seconds=float(rng.choice([0, 1e9])))
    while at < len(scores):
        size = int(rng.integers(3, 25))
        frames = records(scores[at : at + size], at)
        death = rng.choice(["no", "no", "stored", "published"])
        now = alerts.prepare(["front"])
        store.append(make_segment(frames, chunk), frames)
        at, chunk = at + size, chunk + 1
        if death != "stored":
            now += alerts.score(frames)
            published += now
            if death != "published":
                alerts.save()
        if death != "no":
            killed += 1
            alerts = AlertScorer(store, reload_seconds=0)
    published += alerts.prepare(["front"])
    assert killed > 1
    once = dict.fromkeys((a.id, a.state) for a in published)
    assert len({a.id for a in published}) == 2
    assert list(once) == [(a.id, a.state) for a in work_again(store)]
    assert set(summary(published)) == set(ALL)


def work_again(store: Store) -> list[AlertMessage]:
    return list(replay(store, [question()]))


def test_frames_that_come_again_or_late_raise_nothing(store: Store) -> None:
    StandingQuestionStore(store.url).add(question())
    alerts = AlertScorer(store, reload_seconds=0)
    assert summary(work(store, footage(), 40, alerts=alerts)) == ALL
    assert alerts.score(records(footage())) == []
    assert alerts.prepare(["front"]) == []
    other = AlertScorer(store, reload_seconds=0)  # the partition moved
    assert other.prepare(["front"]) == []
    assert other.score(records(footage())) == []
    alerts.forget()
    assert alerts.prepare(["front"]) == []


def test_a_question_that_is_added_later_has_a_background_and_raises_no_past_alerts(store: Store) -> None:
    alerts = AlertScorer(store, reload_seconds=0)
    assert work(store, footage(100), 50, alerts=alerts) == []
    StandingQuestionStore(store.url).add(question())
    assert alerts.prepare(["front"]) == []
    frames = records([0.05, 0.7, 0.7, 0.7, 0.05, 0.05, 0.05, 0.05], 100)
    store.append(make_segment(frames, 9), frames)
    assert summary(alerts.score(frames)) == [("raised", 101, 102), ("cleared", 101, 106)]
    gone = StandingQuestionStore(store.url).remove("a red car")
    assert gone.id == question().id
    assert alerts.prepare(["front"]) == []
    assert alerts.score(records([0.7] * 5, 120)) == []


def test_an_object_that_was_there_when_the_question_was_added_raises_an_alert(store: Store) -> None:
    work(store, [0.05] * 90 + [0.7] * 10, 50)
    StandingQuestionStore(store.url).add(question())
    alerts = AlertScorer(store)
    assert alerts.prepare(["front"]) == []
    assert summary(alerts.score(records([0.7] * 5, 100))) == [("raised", 100, 101)]


def test_a_question_of_other_streams_raises_nothing(store: Store) -> None:
    StandingQuestionStore(store.url).add(question(streams=("back",)))
    assert work(store, footage(), 80) == []


def test_a_question_of_another_encoder_is_ignored(store: Store) -> None:
    other = make_question("a red car", VECTOR, identity("other", 12), rule=RULE, created_at=BEGAN)
    StandingQuestionStore(store.url).add(other)
    assert work(store, footage(), 80) == []


def test_the_store_of_questions(store: Store) -> None:
    held = StandingQuestionStore(store.url)
    assert held.questions() == []
    one, two = question(), question("a blue dog", name="dogs")
    held.add(one)
    held.add(two)
    held.add(question())  # the same again
    assert held.questions() == sorted([one, two], key=lambda q: q.id)
    Path(store.url, "alerts", "questions", f"{'0' * 12}.json").write_text("{")
    assert len(held.questions()) == 2
    with pytest.raises(UnknownQuestion, match="no standing questions of that id or name"):
        held.remove("cats")
    assert held.remove("dogs") == two
    assert held.remove(one.id) == one
    with pytest.raises(UsageError, match="1 to 500"):
        question("  ")
    with pytest.raises(UsageError, match="cannot name a stream"):
        question(streams=("../etc",))


def test_forgetting_a_stream_forgets_its_state(store: Store) -> None:
    StandingQuestionStore(store.url).add(question())
    work(store, footage(), 80)
    state = StandingQuestionStore(store.url).read_state("front")
    assert state is not None
    assert set(json.loads(state)) == {"version", "upto", "watches"}  # the names of the format, which older states have
    store.forget("front")
    assert StandingQuestionStore(store.url).read_state("front") is None
    assert store.verify() == []


def test_a_damaged_state_is_ignored(store: Store) -> None:
    StandingQuestionStore(store.url).add(question())
    work(store, footage(100), 50)
    StandingQuestionStore(store.url).write_state("front", b"{")
    alerts = AlertScorer(store)
    assert alerts.prepare(["front"]) == []
    assert summary(alerts.score(records([0.7] * 3, 100))) == [("raised", 100, 101)]


def test_a_replay_without_alerts_suggests_a_floor(store: Store) -> None:
    frames = records(footage())
    store.append(make_segment(frames), frames)
    found: list[ScoreStatistics] = []
    deaf = question(rule=RULE.model_copy(update={"floor": 0.9}))
    assert list(replay(store, [deaf], on_statistics=found.append)) == []
    (statistics,) = found
    assert (statistics.frames, statistics.warm_up, statistics.raised, statistics.floor) == (160, 20, 0, 0.9)
    assert statistics.highest == pytest.approx(0.8, abs=0.001)
    assert statistics.highest_second == BEGAN // SECOND + 12
    assert statistics.suggested_floor is not None
    better = question(rule=RULE.model_copy(update={"floor": statistics.suggested_floor}))
    raised = [alert for alert in replay(store, [better]) if alert.state == "raised"]
    assert len(raised) == statistics.suggested_raised > 0


def test_a_replay_that_ends_in_the_warm_up_says_so(store: Store) -> None:
    frames = records(footage())
    store.append(make_segment(frames), frames)
    found: list[ScoreStatistics] = []
    slow = question(rule=RULE.model_copy(update={"warm_up": 300}))
    assert list(replay(store, [slow, question("heard")], on_statistics=found.append)) != []
    assert [(each.frames <= each.warm_up, each.raised) for each in found] == [(True, 0), (False, 2)]
    assert found[0].suggested_floor == RULE.floor
    assert found[1].suggested_floor is None
