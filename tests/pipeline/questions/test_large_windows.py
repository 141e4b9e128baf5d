"""Questions over windows that are larger than the memory allowed: the same keyframes and answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import UsageError
from index.selectors.selector import REDUNDANCIES
from pipeline.questions.asker import Asker
from tests.support.command import FRAMES, Command

QUESTION = "what colour was the truck at the gate ?"


@pytest.fixture
def bounded(filled: str, profile: str) -> Asker:
    """An asker that may hold the vectors of no frame."""
    return Asker(filled, profile, "cpu", window_bytes=0)


@pytest.mark.parametrize("redundancy", REDUNDANCIES)
@pytest.mark.parametrize("fill", [False, True])
def test_keyframes_do_not_depend_on_the_memory(
    filled: str, profile: str, bounded: Asker, redundancy: str, fill: bool
) -> None:
    want = Asker(filled, profile, "cpu").select(QUESTION, redundancy=redundancy, fill=fill)  # type: ignore[arg-type]
    got = bounded.select(QUESTION, redundancy=redundancy, fill=fill)  # type: ignore[arg-type]
    assert got.window.frame_vectors.shape == (FRAMES, 0)
    assert got.keyframes.tolist() == want.keyframes.tolist()
    assert (got.tau, got.distinct, got.wanted) == (want.tau, want.distinct, want.wanted)
    assert got.scores == pytest.approx(want.scores, abs=1e-6)


def test_the_answer_is_the_same(filled: str, profile: str, bounded: Asker) -> None:
    want = Asker(filled, profile, "cpu").ask(QUESTION, options=["red", "blue"])
    got = bounded.ask(QUESTION, options=["red", "blue"])
    assert got.model_copy(update={"timings_seconds": {}}) == want.model_copy(update={"timings_seconds": {}})


def test_some_frames_of_a_large_window(filled: str, profile: str, bounded: Asker) -> None:
    want, got = (asker.select(QUESTION, among=7) for asker in (Asker(filled, profile, "cpu"), bounded))
    assert got.keyframes.tolist() == want.keyframes.tolist()
    assert got.window.frame_vectors.tobytes() == want.window.frame_vectors.tobytes()
    assert len(got.window) == 7


def test_a_selector_that_needs_every_vector_says_so(bounded: Asker) -> None:
    with pytest.raises(UsageError, match=rf"the selector dpp needs the vectors of all {FRAMES} frames.*window_bytes"):
        bounded.select(QUESTION, selector="dpp")


def test_the_command_names_the_streams_of_the_keyframes(
    sightline: Command, filled: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_WINDOW_BYTES", str(2**20))
    where = ("ask", QUESTION, "--option", "red", "--option", "blue", "--store", filled, "--profile", profile)
    data = sightline(*where, "--json").data
    counts: dict[str, int] = {}
    for frame in data["keyframes"]:
        counts[frame["stream_id"]] = counts.get(frame["stream_id"], 0) + 1
    assert data["streams"] == counts
    assert data["window_streams"] == 2
    named = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    assert f"keyframes from {len(counts)} of 2 streams: {named}" in sightline(*where).out
    assert "keyframes from" not in sightline(*where, "--stream", next(iter(counts))).out


def test_a_question_over_many_cameras(
    sightline: Command, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("--streams", "12", "--days", "2", "--frames", "60", "--every", "1000", "--segments", "4")
    made = sightline("bench", "store", tmp_path / "site", *size, "--profile", profile)
    assert made.code == 0, made.err
    where = ("--store", tmp_path / "site", "--profile", profile, "--k", "20", "--tau", "1")
    resident = sightline("keyframes", QUESTION, *where, "--json").data
    monkeypatch.setattr("pipeline.questions.asker.Asker.__init__", _without_memory(Asker.__init__))
    asked = sightline("ask", QUESTION, "--option", "red", "--option", "blue", *where, "--json", "--sheet", "a.jpg")
    assert asked.code == 0, asked.err
    assert asked.data["keyframes"] == resident
    assert (asked.data["window_frames"], asked.data["window_streams"]) == (1440, 12)
    assert list(asked.data["streams"]) == sorted(
        asked.data["streams"], key=lambda name: (-asked.data["streams"][name], name)
    )
    assert set(asked.data["streams"]) == {frame["stream_id"] for frame in resident}
    assert sum(asked.data["streams"].values()) == 20
    assert "contact sheet: " in asked.err
    one = next(iter(asked.data["streams"]))
    only = sightline("ask", QUESTION, *where, "--stream", one, "--json").data
    assert (only["window_streams"], set(only["streams"])) == (1, {one})


def _without_memory(real: Callable[..., None]) -> Callable[..., None]:
    """An initializer of `Asker` that holds no vectors, though the least setting would hold those of a small test."""

    def init(self: Asker, *args: Any, **options: Any) -> None:
        real(self, *args, **{**options, "window_bytes": 0})

    return init
