"""The desk, its MCP server and a model service over windows that do not fit into the memory allowed.

The keyframes are those of a large memory, and they are selected in passes over the store; the event `selected` stays
small, however many streams the question is about.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from model.selection import select_large
from pipeline.access.caller import Caller
from pipeline.desk.desk import Desk
from pipeline.mcp.server import make_server
from pipeline.questions.asker import WINDOW_BYTES, Asker
from pipeline.questions.curves import MOST_CURVES
from pipeline.service.store_frames import StoreFrames
from tests.support.command import Command
from tests.support.desk_app import API, DeskApp, desk_app, make_store

QUESTION = "what colour was the truck at the gate ?"
STREAMS = tuple(f"cam-{number:03d}" for number in range(100))
SECONDS = 50
MOST_BYTES = 60_000
"""Of the event: 16 curves of 50 frames and 32 keyframes. All curves would be four times as much."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 100 streams of 50 frames."""
    place = tmp_path_factory.mktemp("site") / "store"
    make_store(place, STREAMS, micro=True, seconds=SECONDS)
    return place


@pytest.fixture(scope="module")
def resident(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskApp]:
    """A desk that holds the vectors of a window in memory."""
    with closing(desk_app(tmp_path_factory.mktemp("resident"), users=False, store=site)) as made:
        yield made


@pytest.fixture(scope="module")
def bounded(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskApp]:
    """A desk that may hold the vectors of no frame."""
    with closing(desk_app(tmp_path_factory.mktemp("bounded"), users=False, store=site, window_bytes=0)) as made:
        yield made


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the windows that keyframes were selected from in passes over the store."""
    found: list[int] = []

    def counted(large: Any, *arguments: Any, **options: Any) -> Any:
        found.append(len(large.window))
        return select_large(large, *arguments, **options)

    monkeypatch.setattr("pipeline.questions.asker.select_large", counted)
    return found


def asked(desk: DeskApp, **more: Any) -> dict[str, str]:
    """The data of the events of a question, as text, by name."""
    reply = desk.ask("POST", f"{API}/ask", json={"question": QUESTION, "options": ["red", "blue"], **more})
    assert reply.status_code == 200, reply.text
    events = (block.split("\n") for block in reply.text.split("\n\n") if block.startswith("event: "))
    return {name.removeprefix("event: "): data.removeprefix("data: ") for name, data in events}


def test_the_desk_selects_the_same_keyframes_and_its_event_is_small(
    resident: DeskApp, bounded: DeskApp, passes: list[int]
) -> None:
    want = asked(resident)
    assert passes == []
    got = asked(bounded)
    assert passes == [len(STREAMS) * SECONDS]
    selected, expected = json.loads(got["selected"]), json.loads(want["selected"])
    assert [{**each, "score": 0} for each in selected["keyframes"]] == [
        {**each, "score": 0} for each in expected["keyframes"]
    ]
    scores = [each["score"] for each in selected["keyframes"]]
    assert scores == pytest.approx([each["score"] for each in expected["keyframes"]], abs=2e-6)
    assert json.loads(got["answer"])["option"] == json.loads(want["answer"])["option"]

    assert len(got["selected"].encode()) < MOST_BYTES
    assert (selected["window_frames"], selected["window_streams"]) == (len(STREAMS) * SECONDS, len(STREAMS))
    shown = [curve["stream_id"] for curve in selected["relevance"]]
    assert len(shown) == MOST_CURVES
    counts = Counter(each["stream_id"] for each in selected["keyframes"])
    assert min(counts[name] for name in shown) >= max(counts[name] for name in STREAMS if name not in shown)
    assert all(len(curve["times"]) == len(curve["scores"]) == SECONDS for curve in selected["relevance"])
    kept = bounded.ask("GET", f"{API}/questions/{selected['id']}").json()
    assert kept["selected"] == selected


def test_the_mcp_server_selects_the_same_keyframes(resident: DeskApp, bounded: DeskApp, passes: list[int]) -> None:
    async def keyframes(desk: Desk) -> tuple[dict[str, Any], int]:
        async with Client(make_server(desk, lambda: Caller.local(via="mcp"))) as client:
            arguments = {"question": QUESTION, "options": ["red", "blue"], "streams": ["cam-00*", "cam-01*"]}
            result: Any = await client.call_tool("ask", arguments)
            entry = result.structured_content
            shown = await client.call_tool("keyframes", {"question_id": entry["id"], "limit": 2})
            assert [block.type for block in shown.content] == ["text", "image"] * 2
            return entry, len(json.dumps(entry))

    want, _ = asyncio.run(keyframes(resident.desk))
    assert passes == []
    got, size = asyncio.run(keyframes(bounded.desk))
    assert passes == [20 * SECONDS]
    places = [
        [(each["stream_id"], each["captured_at"]) for each in entry["selected"]["keyframes"]] for entry in (want, got)
    ]
    assert places[0] == places[1]
    assert len(places[0]) > 1
    assert got["answer"]["option"] == want["answer"]["option"]
    assert "relevance" not in got["selected"]
    assert size < MOST_BYTES


def test_a_model_service_chooses_the_same_frames(site: Path, passes: list[int]) -> None:
    chosen = []
    for window_bytes in (WINDOW_BYTES, 0):
        frames = StoreFrames(Asker(str(site), "micro", "cpu", window_bytes=window_bytes))
        chosen.append(
            frames.choose(
                QUESTION, streams=None, start=None, end=None, k=12, tau=None, max_frames=lambda keyframes: 100
            )
        )
    assert passes == [len(STREAMS) * SECONDS]
    want, got = chosen
    assert got.keyframes == want.keyframes == 12
    for name in ("stream_ids", "footage_seconds"):
        assert getattr(got, name) == getattr(want, name)
    for name in ("stream_index", "captured_at", "keyframe"):
        assert getattr(got, name).tolist() == getattr(want, name).tolist()


@pytest.mark.parametrize("command", ["serve", "mcp", "model-service"])
def test_every_server_takes_the_setting(
    sightline: Command, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """What a server would run with, in place of running it."""
    seen: list[int] = []

    def asker(*arguments: Any, window_bytes: int) -> Asker:
        seen.append(window_bytes)
        return Asker(*arguments, window_bytes=window_bytes)

    monkeypatch.setenv("SIGHTLINE_WINDOW_BYTES", str(3 * 2**20))
    monkeypatch.setattr("pipeline.web.server.serve", lambda desk, **_: seen.append(desk.models.asker.window_bytes))
    monkeypatch.setattr("pipeline.mcp.server.make_server", lambda desk, _: seen.append(desk.models.asker.window_bytes))
    monkeypatch.setattr("pipeline.mcp.server.run_stdio", lambda _: None)
    monkeypatch.setattr("pipeline.service.store_frames.Asker", asker)
    monkeypatch.setattr("pipeline.service.store_frames.run_service", lambda *_, **__: None)
    done = sightline(command, "--store", site, "--profile", "micro")
    assert done.code == 0, done.err
    assert seen == [3 * 2**20]
