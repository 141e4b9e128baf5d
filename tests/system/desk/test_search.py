"""The page of search in Chromium, against a real `sightline serve`, slow and broken connections included."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.desk_page import CAMERAS, SECONDS, WAIT, found, go, moment_of

pytestmark = pytest.mark.system


def test_search_by_words_shows_moments_with_time_score_and_verdict(page: Page) -> None:
    go(page, "search", "Search")
    page.get_by_label("What to search for").fill("a red dog")
    page.keyboard.press("Enter")
    hits = page.get_by_role("article")
    expect(hits.first).to_be_visible()
    expect(hits.first).to_contain_text(re.compile(r"\+02:00UTC \d\d:\d\d:\d\d"))
    expect(hits.first).to_contain_text("% of the frames of camera-")
    expect(hits.first).to_contain_text("Not looked at")
    expect(page.get_by_role("status").first).to_contain_text(f"{SECONDS * len(CAMERAS)} frames of 2 streams")
    hits.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name=re.compile("Player of camera-"))).to_be_visible()
    page.go_back()
    expect(page.get_by_label("What to search for")).to_have_value("a red dog")


def test_filters_narrow_a_search_and_nothing_there_is_an_answer(page: Page) -> None:
    go(page, "search", "Search")
    page.get_by_label("What to search for").fill("a dog")
    page.get_by_text("Filters", exact=True).click()
    page.locator("details.picker summary").first.click()
    page.get_by_role("checkbox", name="camera-2").check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("article").first).to_contain_text("camera-2")
    assert "camera-1" not in page.get_by_role("feed").inner_text()
    page.get_by_label("Each day from").fill("01:00")
    page.get_by_label("until").fill("02:00")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_text("Nothing there")).to_be_visible()
    assert "time_of_day=01%3A00-02%3A00" in page.url


def test_search_by_an_uploaded_picture(page: Page, desk: str, streams: list[dict[str, Any]]) -> None:
    """A frame of the store, uploaded, finds itself."""
    stream = streams[1]
    picture = httpx.get(
        f"{desk}/api/v1/frame", params={"stream": stream["stream_id"], "at": stream["last"]}, timeout=WAIT / 1000
    ).content
    go(page, "search", "Search")
    with page.expect_request(re.compile(r"/search$")) as sent:
        page.set_input_files("input[type=file]", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": picture})
    assert set(json.loads(sent.value.post_data or "")) == {"picture", "limit"}
    expect(page.get_by_text("Uploaded picture")).to_be_visible()
    expect(page.get_by_role("article").first).to_contain_text(stream["stream_id"])


def test_a_picture_is_dropped_on_the_search(page: Page, desk: str, streams: list[dict[str, Any]]) -> None:
    at = {"stream": streams[0]["stream_id"], "at": streams[0]["last"]}
    picture = httpx.get(f"{desk}/api/v1/frame", params=at, timeout=WAIT / 1000).content
    go(page, "search", "Search")
    data = page.evaluate_handle(
        "bytes => { const data = new DataTransfer();"
        " data.items.add(new File([new Uint8Array(bytes)], 'a.jpg', {type: 'image/jpeg'})); return data; }",
        list(picture),
    )
    page.dispatch_event("form.search-form", "dragover", {"dataTransfer": data})
    expect(page.get_by_text("Drop a picture here")).to_be_visible()
    page.dispatch_event("form.search-form", "drop", {"dataTransfer": data})
    expect(page.get_by_role("article").first).to_contain_text(streams[0]["stream_id"])


def test_more_like_a_part_of_a_frame_drawn_with_the_pointer(page: Page, streams: list[dict[str, Any]]) -> None:
    go(page, moment_of(streams[0]), streams[0]["stream_id"])
    page.locator(".strip-frame").first.wait_for()
    page.keyboard.press("b")
    surface = page.get_by_role("group", name="Picture: draw a box")
    expect(page.locator(".boxes")).to_have_css("aspect-ratio", re.compile(r"\d"))  # set once the picture is there
    area = surface.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + area["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.5, steps=4)
    page.mouse.up()
    with page.expect_request(re.compile(r"/search$")) as sent:
        page.get_by_role("button", name="Search by this part").click()
    like = json.loads(sent.value.post_data or "")["like"]
    assert like["stream"] == streams[0]["stream_id"]
    assert like["box"] == pytest.approx([0.25, 0.25, 0.75, 0.5], abs=0.01)
    expect(page.get_by_text(re.compile("Like a part of camera-1"))).to_be_visible()
    expect(page.get_by_role("article").first).to_be_visible()


def test_a_box_is_drawn_with_the_keyboard_and_joined_with_words(page: Page, streams: list[dict[str, Any]]) -> None:
    go(page, moment_of(streams[0]), streams[0]["stream_id"])
    page.locator(".strip-frame").first.wait_for()
    page.keyboard.press("b")
    page.get_by_role("group", name="Picture: draw a box").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    page.get_by_label("And words, if any").fill("a car")
    with page.expect_request(re.compile(r"/search$")) as sent:
        page.get_by_role("button", name="Search by this part").click()
    body = json.loads(sent.value.post_data or "")
    assert body["like"]["box"] == pytest.approx([0.33, 0.35, 0.63, 0.67])
    assert (body["text"], body["weight"]) == ("a car", 0.5)


def test_a_verifier_that_is_down_is_not_a_yes(page: Page) -> None:
    page.route(
        re.compile("/search/verify$"),
        lambda route: route.fulfill(status=503, json={"code": "service_unavailable", "detail": "the model is away"}),
    )
    go(page, "search?text=a+dog", "Search")
    expect(page.get_by_role("article").first).to_be_visible()
    page.get_by_role("button", name=re.compile(r"Verify \d+")).click()
    expect(page.get_by_role("article").first).to_contain_text("Not verified · the model is away")
    assert "Confirmed" not in page.get_by_role("feed").inner_text()


def test_a_hundred_thousand_moments_do_not_freeze_the_page(page: Page) -> None:
    total, part = 100_000, 20_000

    def answer(route: Route) -> None:
        first = int((route.request.post_data_json or {}).get("cursor") or 0)
        left = first + part
        reply = {
            "items": found(part, first),
            "next": str(left) if left < total else None,
            "notices": [],
            "searched": {"frames": 1_000_000, "streams": ["camera-1"], "seconds": 0.2},
        }
        route.fulfill(json=reply)

    page.route(re.compile("/search$"), answer)
    page.route(re.compile("/thumbnail"), lambda route: route.fulfill(status=404, json={}))
    go(page, "search?text=dog", "Search")
    expect(page.get_by_role("article").first).to_be_visible()
    page.get_by_role("article").first.focus()
    deadline = time.monotonic() + WAIT / 1000
    while page.get_by_text("No more moments").count() == 0 and time.monotonic() < deadline:
        page.keyboard.press("End")
        page.wait_for_timeout(100)
    expect(page.get_by_text("100,000 moments")).to_be_visible()
    page.keyboard.press("End")
    expect(page.get_by_role("article", name=re.compile("^100000. "))).to_be_focused()
    assert page.get_by_role("article").count() < 100
    longest = page.evaluate(
        """async () => {
          let longest = 0;
          for (let i = 0; i < 40; i += 1) {
            window.scrollTo(0, Math.random() * document.documentElement.scrollHeight);
            const before = performance.now();
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            longest = Math.max(longest, performance.now() - before);
          }
          return longest;
        }"""
    )
    assert longest < 1000


def test_pages_of_results_do_not_repeat_moments(page: Page) -> None:
    """Whatever the server sends: a moment that is already there is left out."""

    def answer(route: Route) -> None:
        more = (route.request.post_data_json or {}).get("cursor") is not None
        reply = {"items": found(10, 5 if more else 0), "next": None if more else "c", "notices": []}
        route.fulfill(json={**reply, "searched": {"frames": 9, "streams": ["a"], "seconds": 0.1}})

    page.route(re.compile("/search$"), answer)
    page.route(re.compile("/thumbnail"), lambda route: route.fulfill(status=404, json={}))
    go(page, "search?text=dog", "Search")
    expect(page.get_by_text("15 moments")).to_be_visible()


def test_names_and_sentences_of_the_server_are_text(page: Page) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">"
    items = [{**each, "stream_id": evil, "meaning": evil} for each in found(3, 0)]
    reply = {
        "items": items,
        "next": None,
        "notices": [evil],
        "searched": {"frames": 9, "streams": [evil], "seconds": 0},
    }
    page.route(re.compile("/search$"), lambda route: route.fulfill(json=reply))
    page.route(re.compile("/thumbnail"), lambda route: route.fulfill(status=404, json={}))
    go(page, "search?text=dog", "Search")
    expect(page.get_by_role("article").first).to_contain_text(evil)
    expect(page.get_by_text(evil).first).to_be_visible()
    assert page.title() == "dog · Sightline"


def test_a_slow_network_leaves_the_page_usable(page: Page) -> None:
    held: list[Route] = []

    def late(route: Route) -> None:
        """Not answered while the person goes elsewhere."""
        held.append(route)

    page.route(re.compile("/api/v1/search$"), late)
    go(page, "search?text=a+dog", "Search")
    expect(page.get_by_text("Searching…")).to_be_visible()
    page.get_by_role("link", name="Streams").click()
    expect(page.get_by_role("heading", level=1, name="Streams")).to_be_visible()
    expect(page.get_by_role("article", name="camera-1")).to_be_visible()
    assert held
    page.unroute(re.compile("/api/v1/search$"))
    page.go_back()
    expect(page.get_by_role("article").first).to_contain_text("camera-")


def test_a_server_that_is_away_is_said_and_tried_again(page: Page) -> None:
    page.route(re.compile("/api/v1/search$"), lambda route: route.abort("connectionrefused"))
    go(page, "search?text=a+dog", "Search")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute(re.compile("/api/v1/search$"))
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("article").first).to_be_visible()
