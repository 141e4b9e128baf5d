"""The page of questions in Chromium, against a real `sightline serve`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.desk_page import CAMERAS, SECONDS, go

pytestmark = pytest.mark.system


def test_a_question_is_answered_with_evidence_that_plays(page: Page) -> None:
    go(page, "ask", "Ask")
    page.get_by_label("Question").fill("What colour was the dog at the door?")
    page.get_by_label("Options").fill("red\nblue\ngreen")
    page.get_by_role("button", name="Ask", exact=True).click()
    options = page.get_by_role("list", name="Options with their probability").get_by_role("listitem")
    expect(options).to_have_count(3)
    shares = [int(re.findall(r"(\d+) %", text)[0]) for text in options.all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert options.filter(has_text="the answer").count() == 1
    keyframes = page.locator("figure.keyframe")
    expect(keyframes.first).to_be_visible()
    expect(page.get_by_text(re.compile(rf"keyframes of {SECONDS * len(CAMERAS)} frames"))).to_be_visible()
    expect(
        page.get_by_text(re.compile(rf"^Keyframes from \d of {len(CAMERAS)} streams: camera-\d \(\d+\)"))
    ).to_be_visible()
    timeline = page.get_by_role("slider", name="Relevance over time")
    timeline.focus()
    expect(timeline).to_have_attribute("aria-valuetext", re.compile("relevance .*, keyframe"))
    keyframes.first.get_by_role("button").click()
    expect(page.get_by_role("dialog").get_by_role("group", name=re.compile("Player of camera-"))).to_be_visible()
    page.keyboard.press("Escape")

    # What is kept of a frame that is not a keyframe.
    timeline.focus()
    for _ in range(SECONDS):
        page.keyboard.press("ArrowRight")
        if "keyframe" not in (timeline.get_attribute("aria-valuetext") or ""):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").locator("canvas.heatmap-over")).to_be_visible()
    page.keyboard.press("Escape")

    # The history has it.
    assert "id=" in page.url
    page.get_by_role("link", name="History").first.click()
    page.get_by_role("link", name="What colour was the dog at the door?").first.click()
    expect(options).to_have_count(3)


def sent(event: str, data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


SELECTED: dict[str, Any] = {
    "id": "q-1",
    "keyframes": [{"stream_id": "camera-1", "captured_at": "2024-05-01T09:12:00Z", "score": 0.4, "thumbnail": None}],
    "relevance": [{"stream_id": "camera-1", "times": ["2024-05-01T09:12:00Z"], "scores": [0.4]}],
    "window_frames": 1,
}
ANSWER: dict[str, Any] = {
    "id": "q-1",
    "answer": "a red dog",
    "option": None,
    "probabilities": {},
    "frames": 1,
    "visual_tokens": 64,
    "timings_seconds": {"total": 1.0},
    "notices": [],
}


def test_a_connection_that_breaks_does_not_lose_the_answer(page: Page) -> None:
    """The server goes away in the middle, then it is there again with the finished answer."""
    tries: list[str] = []

    def finished(route: Route) -> None:
        tries.append(route.request.url)
        if len(tries) == 1:
            route.abort("connectionrefused")
        elif len(tries) == 2:
            route.fulfill(status=503, json={"detail": "the desk starts"})
        else:
            entry = {"id": "q-1", "question": "what ?", "asked_at": "2024-05-01T09:12:00Z", "state": "done"}
            route.fulfill(json={**entry, "selected": SELECTED, "answer": ANSWER})

    body = sent("selected", SELECTED) + sent("text", {"text": "a red"})
    page.route(re.compile("/api/v1/ask$"), lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.route(re.compile("/api/v1/questions/q-1$"), finished)
    page.route(re.compile("/thumbnail"), lambda route: route.fulfill(status=404, json={}))
    go(page, "ask", "Ask")
    page.get_by_label("Question").fill("what ?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke before the answer was complete")
    expect(page.locator(".answer-text")).to_have_text("a red dog")
    assert len(tries) == 3


def test_a_model_that_fails_is_an_error_and_no_answer(page: Page) -> None:
    problem = {"code": "service_unavailable", "status": 503, "detail": "the model service does not answer"}
    body = sent("selected", SELECTED) + sent("error", problem)
    page.route(re.compile("/api/v1/ask$"), lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.route(re.compile("/thumbnail"), lambda route: route.fulfill(status=404, json={}))
    go(page, "ask", "Ask")
    page.get_by_label("Question").fill("what ?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the model service does not answer")
    assert page.locator(".answer").inner_text() == ""


def test_a_question_about_many_streams_names_those_of_its_keyframes(page: Page) -> None:
    """The timeline has a part of the streams; the names do not depend on it."""
    at = "2024-05-01T09:12:00Z"
    frames = [f"gate-{number}" for number in (7, 3, 7, 41)]
    keyframes = [{"stream_id": name, "captured_at": at, "score": 0.4, "thumbnail": None} for name in frames]
    curves = [{"stream_id": f"gate-{number}", "times": [at], "scores": [0.4]} for number in range(16)]
    selected = {**SELECTED, "keyframes": keyframes, "relevance": curves, "window_frames": 5000, "window_streams": 100}
    body = sent("selected", selected) + sent("answer", ANSWER)
    page.route(re.compile("/api/v1/ask$"), lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.route(re.compile("/thumbnail"), lambda route: route.fulfill(status=404, json={}))
    go(page, "ask", "Ask")
    page.get_by_label("Question").fill("what ?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("Keyframes from 3 of 100 streams: gate-7 (2), gate-3 (1), gate-41 (1)")).to_be_visible()
    expect(page.get_by_text("The timeline shows 16 of 100 streams")).to_be_visible()
