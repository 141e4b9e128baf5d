"""The model service over a real socket: answers and admission."""

from __future__ import annotations

import json
import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from model.answerer import Answerer, AnswerRequest
from model.answers import Answer
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import DfmSpec
from pipeline.service.admission import QueuedRequest, RequestCancelled
from pipeline.service.answers.finished import frame_references
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from pipeline.service.schemas import ServedProfile, StreamFrames
from tests.support.model_service import (
    LENGTHS,
    QUESTION,
    WAIT,
    Footage,
    Holds,
    Memory,
    Scripted,
    Serve,
    body,
    client,
    events,
    metric,
    served,
    until,
)


def local(answerer: Answerer, footage: Footage, streams: tuple[str, ...], options: tuple[str, ...] = ()) -> Answer:
    """What the answerer says in this process of the frames that `body(streams=…)` names."""
    rows = frame_references([StreamFrames(**part) for part in body(streams=streams)["frames"]])
    request = AnswerRequest(
        question=QUESTION,
        options=options,
        stream_index=rows.stream_index,
        captured_at=rows.captured_at,
        keyframe=rows.keyframe,
        read_patches=lambda part, out: footage.patches(rows, part, out),
    )
    *_, last = answerer.answer(request)
    assert last.answer is not None
    return last.answer


# ---- answers ---------------------------------------------------------------------------------------------------


def test_an_open_answer_streams_and_is_that_of_the_answerer(serve: Serve, answerer: Answerer, footage: Footage) -> None:
    expected = local(answerer, footage, ("front", "back"))
    opened = serve()
    with opened.stream("POST", "/v1/answer", json=body(streams=("front", "back"))) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        got = list(events(response.iter_lines()))
    *tokens, (name, done) = got
    assert name == "answer"
    assert {kind for kind, _ in tokens} <= {"token"}
    assert "".join(data["text"] for _, data in tokens).strip() == done["text"] == expected.text
    usage = done["usage"]
    frames = sum(LENGTHS.values())
    assert (usage["frames"], usage["keyframes"]) == (frames, 5)
    assert usage["visual_tokens"] == expected.visual_tokens == 5 * 16 + frames - 5
    assert usage["prompt_tokens"] == expected.prompt_tokens
    assert usage["patch_bytes"] == frames * 16 * 24 * 2
    assert {"queue", "patches", "dfm", "prefill", "first_token", "decode"} <= set(done["timings"])


def test_options_in_one_json(serve: Serve, answerer: Answerer, footage: Footage) -> None:
    expected = local(answerer, footage, ("front",), ("red", "blue"))
    reply = serve().post("/v1/answer", json=body(options=["red", "blue"], stream=False))
    assert reply.status_code == 200
    data = reply.json()
    assert (data["text"], data["option"]) == (expected.text, expected.option)
    assert data["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_without_frames_the_model_answers_blind(serve: Serve) -> None:
    data = serve().post("/v1/answer", json={"question": QUESTION, "stream": False}).json()
    assert (data["usage"]["frames"], data["usage"]["visual_tokens"], data["usage"]["patch_bytes"]) == (0, 0, 0)


def test_fewer_tokens_when_fewer_are_asked_for(serve: Serve) -> None:
    opened = serve()
    long = opened.post("/v1/answer", json=body(stream=False)).json()["usage"]["completion_tokens"]
    short = opened.post("/v1/answer", json=body(stream=False, max_new_tokens=1)).json()["usage"]["completion_tokens"]
    assert long > 1 >= short
    assert opened.post("/v1/answer", json=body(stream=False)).json()["usage"]["completion_tokens"] == long


@pytest.mark.parametrize("which", ["frame", "patch"])
def test_vectors_of_texts_are_the_encoders_own_to_the_bit(serve: Serve, answerer: Answerer, which: str) -> None:
    texts = ["the red truck", "what colour ?"]
    expected = getattr(answerer.encoders, which).encode_text(texts)
    data = serve().post("/v1/embed/text", json={"texts": texts, "encoder": which}).json()
    np.testing.assert_array_equal(np.asarray(data["vectors"], np.float32), expected)
    assert data["encoder"] == getattr(answerer.encoders, which).identity.name


def test_what_a_question_may_bring(serve: Serve, answerer: Answerer) -> None:
    opened = serve()
    data = opened.post("/v1/budget", json={"question": "what zebra", "keyframes": 3}).json()
    assert data == {"max_frames": answerer.max_frames(3, "what zebra"), "unknown_words": ["zebra"]}
    refused = opened.post("/v1/budget", json={"question": "what", "keyframes": 1000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "budget_exceeded")
    profile = opened.get("/v1/profile").json()
    assert (profile["name"], profile["notice"]) == ("tiny", "random weights")
    assert profile["encoders"] == answerer.encoders.pair.model_dump()
    assert ServedProfile.model_validate(profile).dfm == answerer.profile.dfm


def test_a_profile_of_released_weights_arrives_as_it_is(answerer: Answerer, footage: Footage) -> None:
    """Released mode refuses an `alpha` that was written, so a default must not be sent."""
    released = DfmSpec(mode="released", reference_frame="segment_index", relevance_floor=0.2, gap_fill=True)
    changed = Scripted.of(answerer)
    changed.profile = answerer.profile.model_copy(update={"dfm": released})
    with served(ModelService(ServiceEngine(changed, footage))) as url, client(url) as opened:
        assert ServedProfile.model_validate(opened.get("/v1/profile").json()).dfm == released


# ---- admission ---------------------------------------------------------------------------------------------------


def test_beyond_the_queue_429_with_retry_after_and_nothing_admitted_is_lost(serve: Serve) -> None:
    script = Holds()
    opened = serve(script, waiting=2)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(opened.post, "/v1/answer", json=body(stream=False))
        assert script.began.wait(WAIT)
        others = [pool.submit(opened.post, "/v1/answer", json=body(stream=False)) for _ in range(2)]
        until(lambda: metric(opened, "sightline_queue_depth") == 2)
        refused = opened.post("/v1/answer", json=body())
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "service_busy"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert opened.post("/v1/embed/text", json={"texts": ["red"]}).status_code == 429
        script.go.set()
        assert [reply.result(WAIT).json()["text"] for reply in (first, *others)] == ["held"] * 3
    assert script.runs == 3


def test_a_client_that_leaves_frees_its_memory_and_the_model_goes_on(serve: Serve) -> None:
    alive: list[weakref.ref[Memory]] = []
    seen: list[bool] = []
    ended = threading.Event()

    def script(request: AnswerRequest) -> Iterator[str]:
        if request.question != QUESTION:
            seen.append(alive[0]() is not None)
            yield "next"
            return
        held = Memory()
        alive.append(weakref.ref(held))
        try:
            while True:  # only a cancellation ends it
                yield "more "
                threading.Event().wait(0.01)
        finally:
            ended.set()
            del held

    opened = serve(script)
    with opened.stream("POST", "/v1/answer", json=body()) as response:
        assert next(events(response.iter_lines()))[0] == "token"
        assert alive[0]() is not None
    # the client has closed its connection
    assert ended.wait(WAIT)
    reply = opened.post("/v1/answer", json={"question": "what now ?", "stream": False})
    assert reply.json()["text"] == "next"
    assert seen == [False]
    assert 'sightline_requests_total{outcome="cancelled",route="answer"} 1.0' in opened.get("/metrics").text


def test_a_client_that_leaves_the_queue_is_never_answered(serve: Serve) -> None:
    script = Holds()
    opened = serve(script, waiting=2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(opened.post, "/v1/answer", json=body(stream=False))
        assert script.began.wait(WAIT)
        port = opened.base_url.port
        data = json.dumps(body()).encode()
        head = f"POST /v1/answer HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port or 0)) as left:
            left.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            until(lambda: metric(opened, "sightline_queue_depth") == 1)
        until(lambda: metric(opened, "sightline_queue_depth") == 0)
        script.go.set()
        assert first.result(WAIT).json()["text"] == "held"
    assert opened.post("/v1/answer", json=body(stream=False)).json()["text"] == "held"
    assert script.runs == 2


def test_a_prefill_that_nobody_waits_for_ends(answerer: Answerer, footage: Footage) -> None:
    """The language model itself asks the job before every pass."""
    engine = ServiceEngine(answerer, footage)
    job = QueuedRequest(None, deadline=float("inf"), emit=lambda _: None)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        job.cancelled_with = RequestCancelled()  # while the first pass runs

    assert isinstance(answerer.language, TransformersLanguage)
    handle = answerer.language.model.model.register_forward_hook(count)
    try:
        rows = frame_references([StreamFrames(**part) for part in body()["frames"]])
        with pytest.raises(RequestCancelled):
            list(engine.answer(job, QUESTION, (), rows, None))
    finally:
        handle.remove()
    assert passes == 1


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(serve: Serve) -> None:
    def endless(request: AnswerRequest) -> Iterator[str]:
        while True:
            yield "more "
            threading.Event().wait(0.01)

    opened = serve(endless)
    with opened.stream("POST", "/v1/answer", json=body()) as response:
        running = events(response.iter_lines())
        assert next(running)[0] == "token"
        waiting = opened.post("/v1/answer", json=body(deadline_seconds=0.05))
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (504, "deadline_exceeded")
        opened.service.admission.current.deadline = 0.0  # type: ignore[attr-defined]
        *_, last = running
    assert last[0] == "error"
    assert last[1]["error"]["code"] == "deadline_exceeded"
    assert metric(opened, "sightline_requests_running") == 0


def test_a_deadline_is_kept_although_the_model_hangs(serve: Serve) -> None:
    script = Holds()
    opened = serve(script)
    late = opened.post("/v1/answer", json=body(stream=False, deadline_seconds=8))
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert script.began.is_set()
    script.go.set()
    assert opened.post("/v1/answer", json=body(stream=False)).json()["text"] == "held"
