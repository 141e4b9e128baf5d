"""The desk's page in Chromium, against a real `sightline serve` over rendered footage.

Pictures of every page are written to the folder that DESK_SCREENSHOTS names, or to one of pytest's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support.browser import Window, chromium, desk_server, violations, window
from tests.support.processes import environment

pytestmark = pytest.mark.system

SECONDS = 40
CAMERAS = ("camera-1", "camera-2")
WAIT = 60_000.0
Open = Callable[..., AbstractContextManager[Window]]


def sightline(home: Path, *arguments: object) -> None:
    """Run a command to its end."""
    command = [sys.executable, "-m", "sightline", *map(str, arguments)]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with footage of two cameras, and a store of it."""
    folder = tmp_path_factory.mktemp("desk")
    minutes = SECONDS / 60
    sightline(folder, "render", "--seed", 7, "--minutes", minutes, "--cameras", len(CAMERAS), "--out", "footage")
    sightline(folder, "ingest", "footage", "--store", "store", "--profile", "micro")
    return folder


@pytest.fixture(scope="module")
def desk(home: Path) -> Iterator[str]:
    """The URL of the desk of one user, on loopback; the first search, which loads the encoders, is done."""
    with desk_server(home, home / "store") as url:
        httpx.post(f"{url}/api/v1/search", json={"text": "a dog"}, timeout=WAIT / 1000).raise_for_status()
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def streams(desk: str) -> list[dict[str, Any]]:
    """What the desk says of its streams."""
    items: list[dict[str, Any]] = httpx.get(f"{desk}/api/v1/streams").json()["items"]
    return items


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are kept."""
    chosen = os.environ.get("DESK_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(browser: Browser, desk: str) -> Iterator[Page]:
    """A page of the desk; no script fails in it, and nothing breaks its content security policy."""
    with window(browser, desk) as opened:
        opened.page.set_default_timeout(WAIT)
        expect.set_options(timeout=WAIT)
        yield opened.page


def go(page: Page, route: str, heading: str) -> None:
    """Open a view."""
    page.goto(f"/#/{route}")
    expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()


def moment_of(stream: dict[str, Any]) -> str:
    """The route of the newest moment of a stream."""
    return f"moment?stream={stream['stream_id']}&at={quote(stream['last'])}"


# Streams


def test_streams_show_what_the_store_has(page: Page, streams: list[dict[str, Any]]) -> None:
    go(page, "streams", "Streams")
    for stream in streams:
        card = page.get_by_role("article", name=stream["stream_id"])
        expect(card).to_contain_text(str(stream["frames"]))
        expect(card.get_by_role("img").first).to_have_js_property("complete", True)
        assert card.locator("img").evaluate("image => image.naturalWidth") > 100
        bars = card.get_by_role("slider", name=f"Footage of {stream['stream_id']} by day")
        bars.focus()
        assert "UTC" in (bars.get_attribute("aria-valuetext") or "")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name=streams[-1]["stream_id"])).to_be_visible()


def test_a_time_is_shown_in_the_chosen_zone_and_in_utc(page: Page, streams: list[dict[str, Any]]) -> None:
    utc = streams[0]["first"][11:19]
    go(page, "streams", "Streams")
    card = page.get_by_role("article", name=streams[0]["stream_id"])
    expect(card).to_contain_text(f"+02:00UTC {utc}")
    page.get_by_label("Time zone").select_option("Asia/Tokyo")
    expect(card).to_contain_text(f"+09:00UTC {utc}")
    page.reload()
    expect(page.get_by_label("Time zone")).to_have_value("Asia/Tokyo")


def test_the_page_is_small_and_soon_there(page: Page) -> None:
    sizes: list[int] = []
    page.on("response", lambda reply: sizes.append(len(reply.body())) if "/api/" not in reply.url else None)
    go(page, "streams", "Streams")
    page.wait_for_load_state("load")
    assert 50_000 < sum(sizes) <= 500_000


# Search


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
    picture = httpx.get(f"{desk}/api/v1/frame", params={"stream": stream["stream_id"], "at": stream["last"]}).content
    go(page, "search", "Search")
    with page.expect_request(re.compile(r"/search$")) as sent:
        page.set_input_files("input[type=file]", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": picture})
    assert set(json.loads(sent.value.post_data or "")) == {"picture", "limit"}
    expect(page.get_by_text("Uploaded picture")).to_be_visible()
    expect(page.get_by_role("article").first).to_contain_text(stream["stream_id"])


def test_a_picture_is_dropped_on_the_search(page: Page, desk: str, streams: list[dict[str, Any]]) -> None:
    at = {"stream": streams[0]["stream_id"], "at": streams[0]["last"]}
    picture = httpx.get(f"{desk}/api/v1/frame", params=at).content
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


def found(number: int, first: int, verdict: str = "not_looked") -> list[dict[str, Any]]:
    """Moments, as `POST /search` replies."""
    return [
        {
            "id": f"m{first + i}",
            "stream_id": f"camera-{i % 9}",
            "start": "2024-05-01T09:12:00Z",
            "end": "2024-05-01T09:12:04Z",
            "best": "2024-05-01T09:12:02Z",
            "score": 0.3,
            "percentile": 99.1,
            "meaning": "higher than 99.1 % of the frames",
            "thumbnail": "/api/v1/thumbnail?stream=camera-1&at=2024-05-01T09:12:02Z",
            "verification": {"state": verdict, "why": "", "probability": None},
        }
        for i in range(number)
    ]


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


# Ask


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


# Text of others


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


# Slow and broken connections


def test_a_slow_network_leaves_the_page_usable(page: Page) -> None:
    def late(route: Route) -> None:
        time.sleep(1.5)
        route.continue_()

    page.route(re.compile("/api/v1/search$"), late)
    go(page, "search?text=a+dog", "Search")
    expect(page.get_by_text("Searching…")).to_be_visible()
    page.get_by_role("link", name="Streams").click()
    expect(page.get_by_role("heading", level=1, name="Streams")).to_be_visible()
    expect(page.get_by_role("article", name="camera-1")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("article").first).to_contain_text("camera-")


def test_a_server_that_is_away_is_said_and_tried_again(page: Page) -> None:
    page.route(re.compile("/api/v1/search$"), lambda route: route.abort("connectionrefused"))
    go(page, "search?text=a+dog", "Search")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute(re.compile("/api/v1/search$"))
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("article").first).to_be_visible()


# Moment


def test_a_moment_shows_player_strip_and_other_streams(page: Page, streams: list[dict[str, Any]]) -> None:
    first, second = streams[0], streams[1]
    go(page, moment_of(first), first["stream_id"])
    clock = page.locator(".player-clock")
    expect(clock).to_contain_text(f"UTC {first['last'][11:19]}")
    expect(page.locator(".strip-frame[aria-current]")).to_have_attribute("aria-label", re.compile(first["last"][11:19]))
    page.keyboard.press("ArrowLeft")
    expect(clock).not_to_contain_text(f"UTC {first['last'][11:19]}")
    page.get_by_role("link", name=re.compile(f"^{second['stream_id']} at ")).click()
    expect(page.get_by_role("heading", level=1, name=second["stream_id"])).to_be_visible()


# Keys, colours, help


def test_keys_theme_and_help(page: Page) -> None:
    go(page, "streams", "Streams")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Light or dark")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") != before
    page.keyboard.press("g")
    page.keyboard.press("f")
    expect(page.get_by_role("heading", level=1, name="Search")).to_be_visible()
    page.keyboard.type("d")  # into the query, which has the focus
    expect(page.get_by_label("What to search for")).to_have_value("d")


# A store that grows


def test_a_stream_that_arrives_appears_by_itself(page: Page, home: Path) -> None:
    go(page, "streams", "Streams")
    expect(page.get_by_role("article", name="late-camera")).to_have_count(0)
    sightline(home, "render", "--seed", 9, "--minutes", 0.1, "--cameras", 1, "--out", "more")
    (home / "more" / "camera-1.mp4").rename(home / "more" / "late-camera.mp4")
    sightline(home, "ingest", "more/late-camera.mp4", "--store", "store", "--profile", "micro")
    expect(page.get_by_role("article", name="late-camera")).to_be_visible()


# Two users


def test_two_users_see_their_own_streams_and_actions(page: Page, browser: Browser, home: Path) -> None:
    """The desk of two users: an administrator, who adds a viewer of one camera in the page."""
    state, password = home / "state-of-two", "a long pass phrase 7"
    command = [sys.executable, "-m", "sightline", "users", "add", "ada", "--grant", "admin", "--password-file", "-"]
    command += ["--state", str(state), "--store", str(home / "store")]
    done = subprocess.run(command, input=password, env=environment(home), text=True, check=False)
    assert done.returncode == 0
    with desk_server(home, home / "store", state=state) as url, window(browser, url) as admin:
        admin.page.set_default_timeout(WAIT)
        log_in(admin.page, "ada", "wrong wrong wrong")
        expect(admin.page.get_by_role("alert")).to_contain_text("wrong")
        log_in(admin.page, "ada", password)
        expect(admin.page.get_by_role("article", name="camera-2")).to_be_visible()
        go(admin.page, "admin", "Administration")
        admin.page.get_by_role("button", name="Add a user").click()
        box = admin.page.get_by_role("dialog")
        box.get_by_label("Name", exact=True).fill("grace")
        box.get_by_label("Password").fill(password)
        box.get_by_label(re.compile("Streams: a name")).fill("camera-1")
        box.get_by_role("button", name="Save").click()
        expect(admin.page.get_by_role("row", name=re.compile("grace"))).to_contain_text("viewer: camera-1")
        with window(browser, url) as viewer:
            viewer.page.set_default_timeout(WAIT)
            log_in(viewer.page, "grace", password)
            expect(viewer.page.get_by_role("article", name="camera-1")).to_be_visible()
            expect(viewer.page.get_by_role("article")).to_have_count(1)
            links = viewer.page.get_by_role("navigation", name="Views").get_by_role("link").all_inner_texts()
            assert links == ["Streams", "Search", "Moment"]
            go(viewer.page, "admin", "Your role does not include this page")
            viewer.page.goto("/#/moment?stream=camera-2&at=2024-05-01T09:12:00Z")
            expect(viewer.page.get_by_role("alert")).to_contain_text("camera-2")
            viewer.page.get_by_label("Account of grace").click()
            viewer.page.get_by_role("button", name="Log out").click()
            expect(viewer.page.get_by_role("heading", name="Log in")).to_be_visible()
        admin.page.goto("/#/admin?tab=audit")
        expect(admin.page.get_by_role("row", name=re.compile("users.add")).first).to_contain_text("grace")


def log_in(page: Page, name: str, password: str) -> None:
    """Fill in the form of the log-in."""
    page.goto("/")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


# Every page


PAGES = {
    "streams": "Streams",
    "search?text=a+red+dog&min_percentile=50": "Search",
    "search?text=a+dog&time_of_day=01:00-02:00": "Search",
    "ask": "Ask",
    "moment": "Moment",
    "exports": "Export",
    "standing": "Standing questions",
    "history": "History",
    "admin": "Administration",
    "admin?tab=audit": "Administration",
}
WIDTHS = {"light": (360, 1280), "dark": (390, 2560)}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_accessible(browser: Browser, desk: str, pictures: Path, theme: str) -> None:
    """axe finds nothing on any page, on a phone and on a wide screen; pictures of them are kept."""
    streams: list[dict[str, Any]] = httpx.get(f"{desk}/api/v1/streams").json()["items"]
    routes = {**PAGES, moment_of(streams[0]): streams[0]["stream_id"]}
    found: dict[str, list[str]] = {}
    for width in WIDTHS[theme]:
        size = {"width": width, "height": 800 if width < 1000 else 1000}
        # axe is a script of the test, which the policy of the page would refuse.
        with window(browser, desk, color_scheme=theme, viewport=size, bypass_csp=True) as opened:
            page = opened.page
            for route, heading in routes.items():
                go(page, route, heading)
                expect(page.locator(".spinner")).to_have_count(0)
                page.wait_for_timeout(150)
                name = re.sub(r"\W+", "-", route)[:32].strip("-")
                page.screenshot(path=pictures / f"{name}-{theme}-{width}.png")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (route, width)
                if wrong := violations(page):
                    found[f"{route} {width}"] = wrong
    assert found == {}
