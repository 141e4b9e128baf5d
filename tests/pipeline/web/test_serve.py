"""`sightline serve` as a process: every route over rendered footage, errors, paging, caching, a store that grows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from index.records import parse_rfc3339
from index.store import Store
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.questions.search import find
from tests.support.desk import RunningDesk, rendered_store, running_desk, until_ended
from tests.support.records import make_records, make_segment

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered_store(tmp_path_factory.mktemp("rendered"))


@pytest.fixture(scope="module")
def desk(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDesk]:
    with running_desk(store, tmp_path_factory.mktemp("state") / "state") as running:
        yield running


def test_session_and_streams(desk: RunningDesk, store: Path) -> None:
    session = desk.http.get("/session").json()
    assert (session["name"], session["role"], session["users_required"]) == ("local", "admin", False)
    page = desk.http.get("/streams", params={"limit": 1}).json()
    assert [each["stream_id"] for each in page["items"]] == ["camera-1"]
    rest = desk.http.get("/streams", params={"cursor": page["next"]}).json()
    assert [each["stream_id"] for each in rest["items"]] == ["camera-2"]
    assert rest["next"] is None
    held = {each.stream_id: each for each in Store.open(store).streams()}
    entry = page["items"][0]
    assert entry["frames"] == held["camera-1"].frames
    assert parse_rfc3339(entry["first"]) == held["camera-1"].first
    assert parse_rfc3339(entry["last"]) == held["camera-1"].last
    assert sum(day["seconds"] for day in entry["days"]) == entry["frames"]
    covered = desk.http.get("/streams/coverage", params={"stream": "camera-1"}).json()
    assert covered["intervals"] == [[entry["first"], entry["last"]]]


def test_a_search_is_that_of_the_terminal(desk: RunningDesk, store: Path) -> None:
    body = {"text": "a red dog", "limit": 200}
    page = desk.http.post("/search", json=body).json()
    expected = find("a red dog", store=store, top=200).moments
    assert [(m["stream_id"], m["start"], m["end"], m["best"]) for m in page["items"]] == [
        (m.stream_id, m.start, m.end, m.best) for m in expected
    ]
    assert [m["score"] for m in page["items"]] == pytest.approx([m.score for m in expected], abs=2e-6)
    assert [m["percentile"] for m in page["items"]] == [m.percentile for m in expected]
    assert {m["verification"]["state"] for m in page["items"]} == {"not_looked"}
    found, cursor = [], None
    while True:
        part = desk.http.post("/search", json={**body, "limit": 2, "cursor": cursor}).json()
        found += part["items"]
        cursor = part["next"]
        if cursor is None:
            break
    assert [m["id"] for m in found] == [m["id"] for m in page["items"]]
    high = desk.http.post("/search", json={**body, "min_percentile": 90}).json()["items"]
    assert [m["id"] for m in high] == [m["id"] for m in page["items"] if m["percentile"] >= 90]


def test_search_by_a_frame_a_part_of_it_and_an_upload(desk: RunningDesk) -> None:
    best = desk.http.post("/search", json={"text": "a red dog", "limit": 1}).json()["items"][0]
    like = {"stream": best["stream_id"], "at": best["best"]}
    same = desk.http.post("/search", json={"like": like, "limit": 1}).json()["items"][0]
    assert (same["stream_id"], same["best"]) == (best["stream_id"], best["best"])
    assert same["score"] == pytest.approx(1, abs=1e-4)
    part = desk.http.post("/search", json={"like": {**like, "box": [0.2, 0.2, 0.6, 0.8]}, "limit": 3})
    assert part.status_code == 200
    assert part.json()["items"]
    picture = desk.http.get("/frame", params=like).content
    sent = desk.http.post("/pictures", content=picture, headers={"content-type": "image/jpeg"})
    assert sent.status_code == 201, sent.text
    again = desk.http.post("/search", json={"picture": sent.json()["id"], "limit": 1}).json()["items"][0]
    assert again["stream_id"] == best["stream_id"]
    assert again["score"] > 0.9
    bad = desk.http.post("/pictures", content=b"no picture", headers={"content-type": "image/png"})
    assert (bad.status_code, bad.json()["code"]) == (422, "picture_invalid")
    text = desk.http.post("/pictures", content=b"x", headers={"content-type": "text/plain"})
    assert text.status_code == 415


def test_nothing_there_is_an_answer(desk: RunningDesk) -> None:
    page = desk.http.post("/search", json={"text": "a red dog", "start": "2030-01-01T00:00:00Z"}).json()
    assert (page["items"], page["next"], page["searched"]["frames"]) == ([], None, 0)


def test_pictures_and_their_caching(desk: RunningDesk) -> None:
    frame = desk.http.get("/frames", params={"stream": "camera-1", "limit": 1}).json()["items"][0]
    where = {"stream": "camera-1", "at": frame["captured_at"]}
    small = desk.http.get("/thumbnail", params={**where, "width": 80})
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.content)).width == 80
    assert "immutable" in small.headers["cache-control"]
    assert "private" in small.headers["cache-control"]
    held = desk.http.get("/thumbnail", params={**where, "width": 80}, headers={"if-none-match": small.headers["etag"]})
    assert (held.status_code, held.content) == (304, b"")
    missing = desk.http.get("/frame", params={**where, "at": "1999-01-01T00:00:00Z"})
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_frame")


def test_moment(desk: RunningDesk) -> None:
    frames = desk.http.get("/frames", params={"stream": "camera-1", "limit": 20}).json()["items"]
    view = desk.http.get("/moment", params={"stream": "camera-1", "at": frames[10]["captured_at"], "span": 4}).json()
    assert view["at"] == frames[10]["captured_at"]
    assert [each["captured_at"] for each in view["frames"]] == [each["captured_at"] for each in frames[8:13]]
    assert [each["stream_id"] for each in view["others"]] == ["camera-2"]


def test_an_answer_in_events_and_in_the_history(desk: RunningDesk) -> None:
    body = {"question": "Where was the red dog?", "streams": ["camera-1"], "options": ["door", "gate"], "k": 4}
    events = desk.events("POST", "/ask", json=body)
    names = [name for name, _ in events]
    assert names[0] == "selected"
    assert names[-1] == "answer"
    selected, answer = events[0][1], events[-1][1]
    assert 1 <= len(selected["keyframes"]) <= 4
    assert [curve["stream_id"] for curve in selected["relevance"]] == ["camera-1"]
    assert len(selected["relevance"][0]["times"]) == selected["window_frames"]
    assert answer["option"] in ("door", "gate")
    assert "".join(data["text"] for name, data in events if name == "text") == answer["answer"]
    kept = desk.http.get(f"/questions/{answer['id']}").json()
    assert (kept["state"], kept["answer"], kept["selected"]) == ("done", answer, selected)
    assert desk.http.get("/questions").json()["items"][0]["id"] == answer["id"]
    keys = {each["captured_at"] for each in selected["keyframes"]}
    frames = desk.http.get("/frames", params={"stream": "camera-1"}).json()["items"]
    other = next(each["captured_at"] for each in reversed(frames) if each["captured_at"] not in keys)
    heat = desk.http.get("/heatmap", params={"stream": "camera-1", "at": other, "question": answer["id"]}).json()
    assert max(max(line) for line in heat["grid"]) == 1
    assert heat["weights_sum"] == pytest.approx(1, abs=1e-3)
    refused = desk.http.get("/heatmap", params={"stream": "camera-1", "at": min(keys), "question": answer["id"]})
    assert refused.status_code == 422
    assert desk.http.delete(f"/questions/{answer['id']}").status_code == 204
    assert desk.http.get(f"/questions/{answer['id']}").status_code == 404


def test_a_question_goes_on_without_its_connection(desk: RunningDesk) -> None:
    with desk.http.stream("POST", "/ask", json={"question": "Where was the red dog?", "k": 4}) as reply:
        next(reply.iter_lines())
    found = desk.http.get("/questions").json()["items"][0]
    for _ in range(600):
        found = desk.http.get(f"/questions/{found['id']}").json()
        if found["state"] != "running":
            break
    assert found["state"] == "done"
    assert found["answer"]["answer"]


def test_a_model_that_cannot_answer_confirms_nothing(desk: RunningDesk) -> None:
    hit = desk.http.post("/search", json={"text": "a red dog", "limit": 1}).json()["items"][0]
    moment = {key: hit[key] for key in ("stream_id", "start", "end")}
    begun = desk.http.post("/search/verify", json={"text": "a red dog", "moments": [moment]})
    assert begun.status_code == 202
    job = until_ended(desk, begun.json()["job"])
    assert job["state"] == "done"
    verdict = job["result"]["items"][0]["verification"]
    assert verdict["state"] == "unavailable"  # micro does not answer yes or no
    assert verdict["probability"] is None
    again = desk.http.post("/search", json={"text": "a red dog", "limit": 1}).json()["items"][0]
    assert again["verification"] == verdict
    assert desk.events("GET", f"/jobs/{begun.json()['job']}/events")[-1][1]["state"] == "done"


@pytest.mark.parametrize(
    ("path", "params", "status", "code"),
    [
        ("/streams/coverage", {"stream": "nope"}, 404, "unknown_stream"),
        ("/streams/coverage", {"stream": "camera-*"}, 404, "unknown_stream"),
        ("/streams/coverage", {"stream": "camera-1", "from": "yesterday"}, 422, "invalid_request"),
        ("/streams", {"cursor": "!"}, 422, "usage_error"),
        ("/nothing", {}, 404, "http_404"),
        ("/jobs/nothing", {}, 404, "unknown_item"),
    ],
)
def test_errors_are_problem_documents(
    desk: RunningDesk, path: str, params: dict[str, str], status: int, code: str
) -> None:
    reply = desk.http.get(path, params=params)
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert (reply.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["request_id"] == reply.headers["x-request-id"]


def test_a_page_repeats_nothing_while_the_store_grows(desk: RunningDesk, store: Path) -> None:
    body = {"text": "a red dog", "limit": 2}
    first = desk.http.post("/search", json=body).json()
    opened = Store.open(store)
    encoders = load_encoders(load_profile("micro"), "cpu")
    vector = encoders.frame.encode_text(["a red dog"])
    window = opened.window(["camera-1"])
    records = make_records("later", int(window.captured_at[-1]) + 3_600_000_000, 1)
    grown: Any = records.__class__(
        **{
            **{name: getattr(records, name) for name in records.__dataclass_fields__},
            "frame_vectors": vector,
            "patch_pooled": records.patch_pooled.repeat(16, 1)[:, :192],
            "patches": opened.patches(window.take(slice(0, 1))),
        }
    )
    opened.append(make_segment(grown), grown)
    second = desk.http.post("/search", json={**body, "cursor": first["next"]}).json()
    shown = [m["id"] for m in (*first["items"], *second["items"])]
    assert len(shown) == len(set(shown))
    assert "later" not in {m["stream_id"] for m in second["items"]}
    for _ in range(100):
        fresh = desk.http.post("/search", json=body).json()
        if fresh["items"][0]["stream_id"] == "later":
            break
    assert fresh["items"][0]["stream_id"] == "later"


def references(part: Any) -> Iterator[str]:
    """The names of the models that a part of a schema refers to."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value.removeprefix("#/components/schemas/")
            else:
                yield from references(value)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_a_client_can_be_generated_from_the_schema(desk: RunningDesk) -> None:
    """Short unique names, a model for every JSON reply and for the data of events, problem documents, times as times."""
    document = httpx.get(f"{desk.url}/openapi.json", timeout=120).json()
    assert document == desk.http.get("/openapi.json", timeout=120).json()
    models, names = document["components"]["schemas"], []
    assert set(references(document)) <= set(models)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            names.append(operation["operationId"])
            for status, reply in operation["responses"].items():
                content = reply.get("content", {})
                if status.startswith("2"):
                    assert "application/json" not in content or "$ref" in content["application/json"]["schema"], path
                elif status >= "400":
                    problem = {"$ref": "#/components/schemas/ProblemDocument"}
                    assert content["application/problem+json"]["schema"] == problem, (path, status)
    assert len(set(names)) == len(names)
    assert {"list_streams", "search", "ask", "begin_export", "download_export", "place_hold", "complete"} <= set(names)
    asked = document["paths"]["/api/v1/ask"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    assert list(asked["x-sightline-events"]) == ["selected", "text", "answer", "error"]
    assert models["Found"]["properties"]["best"]["format"] == "date-time"
    for status, model in (("200", "ChatCompletion"), ("400", "ChatError")):  # generators take the first one
        reply = document["paths"]["/v1/chat/completions"]["post"]["responses"][status]["content"]
        assert next(iter(reply)) == "application/json"
        assert reply["application/json"]["schema"]["$ref"].endswith(model)
    loose = [
        (name, field)
        for name, model in models.items()
        for field, kind in model.get("properties", {}).items()
        if '"additionalProperties": true' in json.dumps(kind)
    ]
    assert sorted(loose) == [("AuditReply", "detail"), ("ChatBody", "response_format")]
    assert {"token", "session"} == set(document["components"]["securitySchemes"])
    assert document["paths"]["/api/v1/healthz"]["get"]["security"] == []


def test_the_schema_documents_every_answer(desk: RunningDesk) -> None:
    """Requests that the OpenAPI schema allows and forbids: no 5xx, no undocumented status, replies of the schema.

    The routes of OpenAI's format are among them, with a question and a model that they accept, which random text is not.
    """
    schema = schemathesis.openapi.from_dict(desk.http.get("/openapi.json", timeout=120).json())
    failures: list[str] = []
    answered: set[str] = set()
    question = {
        "model": "micro",
        "messages": [{"role": "user", "content": "Where was the red dog?"}],
        "sightline": None,
        "response_format": None,
        "deadline_seconds": 60,
    }
    checks = [status_code_conformance, response_schema_conformance]

    operations: list[Any] = [each.ok() for each in schema.get_all_operations()]  # type: ignore[union-attr]  # raises
    for operation in operations:
        for mode in GenerationMode:

            @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                if case.path == "/v1/chat/completions" and isinstance(case.body, dict) and "model" in case.body:
                    case.body |= question
                reply = case.call(base_url=f"{desk.url}", timeout=300)
                if reply.status_code < 300:
                    answered.add(f"{case.method} {case.path}")
                try:
                    assert reply.status_code < 500, reply.text
                    # Schemathesis takes the schema of an event stream, which is text, for that of each event.
                    events = any("event-stream" in each for each in reply.headers.get("content-type", []))
                    case.validate_response(reply, checks=checks[:1] if events else checks)
                except (AssertionError, FailureGroup) as error:  # all failures are listed at once
                    failures.append(f"{case.method} {case.path} {reply.status_code}: {str(error)[:500]}")

            try:
                send()
            except Unsatisfiable:  # an operation that has no invalid request
                continue
    assert failures == [], "\n".join(failures)
    assert {"POST /v1/chat/completions", "GET /v1/models"} <= answered
