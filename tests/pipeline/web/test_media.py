"""Playing over HTTP: ranges, videos that grow, clients that leave, and a browser that plays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.records import rfc3339
from index.store import Store
from pipeline.access.caller import Grant
from pipeline.access.roles import Role
from pipeline.web.guard import session_cookie
from pipeline.web.ranges import requested_range
from tests.support.desk_server import ServedDesk, served_desk
from tests.support.played import decoded, record_segments, render_pattern, store_file
from tests.support.records import BEGAN, PAIR, SECOND


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    render_pattern(folder / "h264.mp4", seconds=20)
    render_pattern(folder / "h265.mp4", seconds=20, codec="libx265")
    render_pattern(folder / "mjpeg.avi", seconds=20, codec="mjpeg")
    return folder


@pytest.fixture(scope="module")
def served(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDesk]:
    folder = tmp_path_factory.mktemp("served")
    store = Store.create(folder / "store", PAIR)
    for path in sorted(films.iterdir()):
        store_file(store, path, path.stem, 20)
    store_file(store, films / "h264.mp4", "taped", 20, uri="/nowhere/taped.mp4")
    store_file(store, films / "h264.mp4", "lost", 20, uri="/nowhere/lost.mp4")
    place = record_segments(folder / "recordings", films / "h264.mp4", "taped", 20)
    with served_desk(store.url, folder / "state", recordings=(place,)) as desk:
        yield desk


@pytest.fixture(scope="module")
def client(served: ServedDesk) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served.url}/api/v1", timeout=300) as opened:
        yield opened


def at(second: float) -> str:
    """A time, `second` seconds after the footage begins."""
    return rfc3339(BEGAN + round(second * SECOND))


def play_of(client: httpx.Client, stream: str, second: float) -> dict[str, Any]:
    """What `/moment` says about playing."""
    reply = client.get("/moment", params={"stream": stream, "at": at(second)})
    assert reply.status_code == 200, reply.text
    play: dict[str, Any] = reply.json()["play"]
    return play


def test_a_moment_says_how_it_is_played(client: httpx.Client) -> None:
    plain = play_of(client, "h264", 7)
    assert (plain["kind"], plain["type"], plain["start_offset_seconds"], plain["why"]) == ("video", "video/mp4", 7, "")
    assert (plain["start"], plain["end"]) == (at(0), None)
    taped = play_of(client, "taped", 7)
    assert (taped["kind"], taped["start_offset_seconds"], taped["start"], taped["end"]) == ("video", 0, at(7), at(20))
    for name in ("h265", "mjpeg"):
        play = play_of(client, name, 7)
        assert (play["kind"], play["start_offset_seconds"]) == ("video", 0)
        assert "transcode=1" in play["url"]
        assert "so it is encoded anew" in play["why"]
    lost = play_of(client, "lost", 7)
    assert lost["kind"] == "stepper"
    assert lost["why"].startswith("There is no recording of this time, and the ingested file is not there.")
    steps = client.get(lost["url"].removeprefix("/api/v1")).json()
    assert [item["captured_at"] for item in steps["items"]] == [at(second) for second in range(7, 20)]


def test_ranges_of_a_file(client: httpx.Client, films: Path) -> None:
    data = (films / "h264.mp4").read_bytes()
    url = play_of(client, "h264", 7)["url"].removeprefix("/api/v1")
    whole = client.get(url)
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, data, "bytes")
    assert whole.headers["cache-control"] == "private, no-cache"
    size = len(data)
    for header, first, last in (
        ("bytes=0-", 0, size - 1), ("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), (f"bytes={size - 1}-", size - 1, size - 1),
        ("bytes=-5", size - 5, size - 1), ("bytes=-999999999", 0, size - 1), ("bytes=10-99999999", 10, size - 1),
    ):  # fmt: skip
        part = client.get(url, headers={"Range": header})
        assert part.status_code == 206, header
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.content == data[first : last + 1]
    for header in ("bytes=0-1,5-6", "bytes=9-3", "bytes=-", "bytes=x-y", "items=0-5", "bytes"):
        assert client.get(url, headers={"Range": header}).content == data, header
    beyond = client.get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert (beyond.headers["content-type"], beyond.json()["status"]) == ("application/problem+json", 416)
    etag = whole.headers["etag"]
    assert client.get(url, headers={"Range": "bytes=0-3", "If-Range": etag}).status_code == 206
    assert client.get(url, headers={"Range": "bytes=0-3", "If-Range": '"other"'}).status_code == 200


@given(st.text(max_size=30) | st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True), st.integers(0, 2000))
def test_any_header_means_a_range_within_the_file(text: str, size: int) -> None:
    try:
        found = requested_range(text, size)
    except ValueError:
        return
    if found is not None:
        assert 0 <= found[0] <= found[1] < size


@pytest.mark.parametrize("name", ["h265", "mjpeg"])
def test_what_is_encoded_anew_comes_while_it_is_made_and_in_ranges_afterwards(client: httpx.Client, name: str) -> None:
    url = play_of(client, name, 3)["url"].removeprefix("/api/v1")
    first = client.get(url)
    assert (first.status_code, first.headers["content-type"]) == (200, "video/mp4")
    codec, times, pictures = decoded(first.content)
    assert (codec, len(times)) == ("h264", 170)
    assert round(float(pictures[0].mean()) / 8) - 1 == 3
    again = client.get(url, headers={"Range": "bytes=100-199"})
    assert (again.status_code, again.content) == (206, first.content[100:200])


def test_a_client_that_leaves_ends_the_encoding(client: httpx.Client, served: ServedDesk) -> None:
    with client.stream("GET", "/play", params={"stream": "h265", "at": at(0.5), "transcode": 1}) as reply:
        assert reply.status_code == 200
        next(reply.iter_bytes(16))
    deadline = time.monotonic() + 300
    while served.desk.player.active and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.desk.player.active == 0


def test_errors_are_problem_documents(client: httpx.Client) -> None:
    for params, status, code in (
        ({"stream": "vault", "at": at(1)}, 404, "unknown_stream"),
        ({"stream": "h264", "at": at(99)}, 404, "empty_window"),
        ({"stream": "lost", "at": at(1)}, 404, "empty_window"),
        ({"stream": "h264", "at": "yesterday"}, 422, "invalid_request"),
        ({"stream": "h264"}, 422, "invalid_request"),
    ):
        reply = client.get("/play", params=params)
        assert (reply.status_code, reply.json()["status"]) == (status, status), params
        assert reply.headers["content-type"].startswith("application/problem+json")
        if code != "invalid_request":
            assert reply.json()["code"] == code


def test_playing_is_one_record_of_the_audit_trail(client: httpx.Client, served: ServedDesk) -> None:
    served.audited.clear()
    for first in (100, 200, 0):
        client.get("/play", params={"stream": "h264", "at": at(11)}, headers={"Range": f"bytes={first}-{first + 9}"})
    assert [(r[1].value, list(r[2]), r[3]) for r in served.audited] == [("view", ["h264"], {"play": at(11)})]


def test_a_stream_without_a_grant_does_not_exist(films: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for name in ("gate", "gate-2"):
        store_file(store, films / "h264.mp4", name, 20)
    with served_desk(store.url, tmp_path / "state") as desk:
        desk.authentication.users.add("root", "correct horse battery", (Grant("*", Role.ADMIN),))
        desk.authentication.users.add("ada", "correct horse battery", (Grant("gate", Role.VIEWER),))
        with httpx.Client(base_url=f"{desk.url}/api/v1", timeout=300) as client:
            assert client.get("/play", params={"stream": "gate", "at": at(1)}).status_code == 401
            port = httpx.URL(desk.url).port
            assert port is not None
            client.cookies.set(
                session_cookie(secure=False, port=port), desk.authentication.sessions.begin("ada", "session")
            )
            assert client.get("/play", params={"stream": "gate", "at": at(1)}).status_code == 200
            hidden = client.get("/play", params={"stream": "gate-2", "at": at(1)})
            absent = client.get("/play", params={"stream": "gate-3", "at": at(1)})
            assert hidden.status_code == absent.status_code == 404
            assert hidden.json()["detail"].replace("gate-2", "X") == absent.json()["detail"].replace("gate-3", "X")


_PLAYS = """
async (url) => {
  const video = document.createElement('video');
  video.muted = true;
  video.src = url;
  document.body.append(video);
  await video.play();
  const began = performance.now();
  while (video.currentTime < 1.5 && performance.now() - began < 20000 && !video.error)
    await new Promise((done) => setTimeout(done, 50));
  const canvas = document.createElement('canvas');
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0);
  const grey = context.getImageData(80, 60, 1, 1).data[0];
  return { at: video.currentTime, width: video.videoWidth, error: video.error?.message ?? null, grey };
}
"""


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_browser_plays_all_of_them(served: ServedDesk, client: httpx.Client) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(f"{served.url}/healthz")
            for name in ("h264", "taped", "h265", "mjpeg"):
                play = play_of(client, name, 6)
                found = page.evaluate(_PLAYS, f"{served.url}{play['url']}")
                assert found["error"] is None, (name, found)
                assert found["at"] >= 1.5, (name, found)
                assert found["width"] == 160, (name, found)
        finally:
            browser.close()
