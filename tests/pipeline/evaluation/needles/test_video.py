"""A run of VideoNIAH over a made store: splices against a naive copy, baselines, resuming, the heat map."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from index.errors import UsageError
from index.records import FrameRecords, Segment
from index.store import Store
from model.answerer import Answerer, AnswerRequest, load_answerer
from model.answers import AnswerPiece
from model.encoders.clips import clip_numbers
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from pipeline.evaluation.needles.asking import Shown, SpliceAsker
from pipeline.evaluation.needles.cases import Case, Draw, Needle, Piece, draw_cases
from pipeline.evaluation.needles.heatmap import heat_map, heat_picture
from pipeline.evaluation.needles.record import AnswerLine, NeedleFolder
from pipeline.evaluation.needles.splice import Splice, Streams
from pipeline.evaluation.needles.video import run_cases

BEGAN = 978_307_200_000_000
LENGTHS = {"needle": 30, "hay-a": 60, "hay-b": 44, "hay-c": 50}
NEEDLE = Needle(
    id="q",
    stream="needle",
    frames=30,
    kind="what",
    question="what is it ?",
    options=("a dog", "a cat"),
    answer=1,
    evidence=((3.0, 8.0),),
)


def fill(folder: Path, encoders: Encoders) -> Store:
    """A store with random vectors of the profile's shapes; hay-b lacks two seconds."""
    store = Store.create(folder, encoders.pair)
    rng = np.random.default_rng(4)
    pair = encoders.pair
    for name, n in LENGTHS.items():
        seconds = np.delete(np.arange(n + 2), [9, 10]) if name == "hay-b" else np.arange(n)
        vectors = rng.normal(size=(n, pair.frame.dimension)).astype(np.float32)
        records = FrameRecords(
            stream_id=name,
            clock_source="given",
            captured_at=BEGAN + seconds * 1_000_000,
            pts_seconds=seconds.astype(np.float64),
            frame_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            patch_pooled=rng.normal(size=(n, pair.patch.dimension)).astype(np.float32),
            patches=rng.normal(size=(n, pair.patches, pair.patch.dimension)).astype(np.float16),
            pictures=[b"JPEG"] * n,
        )
        end = BEGAN + int(seconds[-1] + 1) * 1_000_000
        store.append(
            Segment(
                stream_id=name,
                source=name,
                chunk=0,
                uri=name,
                start=BEGAN,
                end=end,
                frames=n,
                decode_mode="all",
                clock_source="given",
            ),
            records,
        )
    return store


@pytest.fixture(scope="module")
def answerer(profile: str) -> Answerer:
    loaded = load_profile(profile)
    return load_answerer(loaded, load_encoders(loaded, "cpu"), "cpu")


@pytest.fixture(scope="module")
def store(answerer: Answerer, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill(tmp_path_factory.mktemp("stores") / "store", answerer.encoders)


def cases(length: int = 120, count: int = 3) -> list[Case]:
    hay = {name: frames for name, frames in LENGTHS.items() if name != "needle"}
    return draw_cases([NEEDLE], hay, Draw(lengths=(length,), per_length=count))


def naive(store: Store, pieces: list[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Vectors and patches of pieces, each stream read whole."""
    windows = [store.window([piece.stream]) for piece in pieces]
    cuts = [slice(piece.first, piece.stop) for piece in pieces]
    vectors = np.concatenate([w.frame_vectors[cut] for w, cut in zip(windows, cuts, strict=True)])
    return vectors, np.concatenate([store.patches(w)[cut] for w, cut in zip(windows, cuts, strict=True)])


def test_a_splice_has_the_rows_of_its_pieces(store: Store) -> None:
    for case in cases(count=10):
        splice = Splice(Streams(store), case.pieces(), whole_clips=False)
        vectors, patches = naive(store, case.pieces())
        np.testing.assert_array_equal(splice.vectors, vectors)
        assert len(splice) == case.length
        assert (np.diff(splice.captured_at) > 0).all()
        assert splice.captured_at[0] == BEGAN
        rows = np.unique(np.random.default_rng(case.insertion).integers(0, case.length, 50))
        out = np.zeros((len(rows), *patches.shape[1:]), np.float16)
        splice.read_patches(rows, out)
        np.testing.assert_array_equal(out, patches[rows])
        needle = splice.rows_of("needle")
        np.testing.assert_array_equal(needle, case.insertion + np.arange(30))
        np.testing.assert_array_equal(splice.seconds_of("needle"), np.arange(30))


def test_clips_of_a_splice_are_those_of_the_store_also_where_seconds_are_missing(store: Store) -> None:
    pieces = [
        Piece(stream="hay-b", first=0, stop=16),
        Piece(stream="needle", first=0, stop=30),
        Piece(stream="hay-b", first=16, stop=44),
    ]
    splice = Splice(Streams(store), pieces, whole_clips=True)
    window = store.window(["hay-b"])
    clips = clip_numbers(window.captured_at, window.stream_index)
    cut = int(np.flatnonzero(clips == clips[16])[0])  # row 16 is inside a clip, because two seconds are missing
    assert cut < 16
    sizes = np.bincount(clip_numbers(splice.captured_at, splice.stream_index)).tolist()
    stored = np.bincount(clips).tolist()
    before = int(clips[cut])
    assert sizes == stored[:before] + [4] * 7 + [2] + stored[before:]
    assert len(Splice(Streams(store), pieces, whole_clips=False)) == len(splice) == 74


def test_windows_that_are_kept_are_bounded(store: Store) -> None:
    streams = Streams(store, most_frames=100)
    for name in LENGTHS:
        assert len(streams.window(name)) == LENGTHS[name]
    assert streams.window("hay-c") is streams.window("hay-c")
    first = streams.window("needle")
    streams.window("hay-a")
    streams.window("hay-b")
    assert streams.window("needle") is not first


def test_a_run_asks_every_setting_once_and_goes_on(store: Store, answerer: Answerer, tmp_path: Path) -> None:
    asked = cases(120, 2) + cases(130, 2)
    seen: list[tuple[int, int]] = []
    summary = run_cases(
        asked, Streams(store), answerer, tmp_path / "run", source="made", on_progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (16, 16)
    assert summary.asked == dict.fromkeys(("spliced", "needle alone", "haystack alone", "blind"), 4)
    lines = NeedleFolder(tmp_path / "run").answers()
    for case in asked:
        assert lines[case.id, "spliced"].frames == case.length
        assert lines[case.id, "haystack alone"].frames == case.length - 30
        assert lines[case.id, "haystack alone"].needle_keyframes == 0
        assert lines[case.id, "needle alone"].frames == 30
        assert lines[case.id, "needle alone"].needle_keyframes == lines[case.id, "needle alone"].keyframes > 0
        assert (lines[case.id, "blind"].frames, lines[case.id, "blind"].visual_tokens) == (0, 0)
        assert all(
            sum(lines[case.id, setting].probabilities) == pytest.approx(1, abs=1e-4) for setting in summary.asked
        )
    for setting, shares in summary.accuracy.items():
        assert shares["all"].right == sum(lines[case.id, setting].predicted == 1 for case in asked)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| needle alone |" in report
    assert json.loads((tmp_path / "run" / "heatmap.json").read_text())["lengths"] == [120, 130]

    path = tmp_path / "run" / "answers.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-2]) + whole[-2][:40])  # killed while it wrote
    again = run_cases(asked, Streams(store), answerer, tmp_path / "run", source="made")
    assert len(NeedleFolder(tmp_path / "run").answers()) == 16
    assert again.accuracy == summary.accuracy
    with pytest.raises(UsageError, match="holds another run"):
        run_cases(asked[:1], Streams(store), answerer, tmp_path / "run", source="made")


def test_what_no_haystack_changes_is_asked_once(
    store: Store, answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker, asked = SpliceAsker(Streams(store), answerer), []
    real = Answerer.answer

    def answer(self: Answerer, request: AnswerRequest) -> Iterator[AnswerPiece]:
        """Count the requests by their frames."""
        asked.append(len(request.captured_at))
        return real(self, request)

    monkeypatch.setattr(Answerer, "answer", answer)
    needle = Piece(stream="needle", first=0, stop=30)
    question = NEEDLE.question, NEEDLE.options, NEEDLE.answer

    def look(line: AnswerLine, shown: Shown) -> None:
        """Note the keyframes."""
        line.needle_keyframes = len(shown.keyframes)

    first = asker.ask(*question, [needle], case="1", setting="needle alone", look=look)
    second = asker.ask(*question, [needle], case="2", setting="needle alone", look=look)
    assert asked == [30]
    assert second == first.model_copy(update={"case": "2"})
    assert second.needle_keyframes == second.keyframes > 0
    asker.ask(*question, [], case="1", setting="blind")
    asker.ask("where is it ?", *question[1:], [needle], case="3", setting="needle alone")
    asker.ask(*question, [needle.model_copy(update={"stop": 20})], case="3", setting="needle alone")
    assert asked == [30, 0, 30, 20]


def test_a_profile_of_clips_has_the_same_cases(clip_profile: str, tmp_path: Path) -> None:
    loaded = load_profile(clip_profile)
    encoders = load_encoders(loaded, "cpu")
    store = fill(tmp_path / "store", encoders)
    asked = cases(100, 1)
    summary = run_cases(
        asked,
        Streams(store),
        load_answerer(loaded, encoders, "cpu"),
        tmp_path / "run",
        source="made",
        settings=("spliced",),
    )
    assert summary.asked == {"spliced": 1}
    (line,) = NeedleFolder(tmp_path / "run").answers().values()
    assert line.problem is None
    assert line.frames == 16  # the most that this profile reads: four whole clips


def test_the_heat_map_counts_cells_and_means() -> None:
    listed, lines = [], []
    for length in (200, 400):
        for number in range(6):
            depth = (0.05, 0.05, 0.05, 0.55, 0.95, 1.0)[number]
            needle = NEEDLE.model_copy(update={"id": f"q{number}"})
            listed.append(
                Case(
                    id=f"{length}-{number}", seed=0, length=length, depth=depth, insertion=0, haystack=(), needle=needle
                )
            )
            right = length == 200 and number < 2
            lines.append(AnswerLine(case=listed[-1].id, setting="spliced", predicted=0, right=right))
    heat = heat_map(listed, lines, "made")
    assert [(cell.right, cell.total) for cell in heat.cells[0]] == [(2, 3), (0, 3)]
    assert [cell.total for cell in heat.cells[9]] == [2, 2]
    assert heat.cells[3][0].total == 0
    assert [(mean.right, mean.total) for mean in heat.columns] == [(2, 6), (0, 6)]
    assert (heat.rows[0].right, heat.rows[0].total) == (2, 6)
    assert heat.overall.share == pytest.approx(2 / 12)
    image = Image.open(io.BytesIO(heat_picture(heat)))
    colours = {pixel for _, pixel in image.getcolors(1 << 20) or []}
    assert (196, 60, 57) in colours  # 0 %
    assert (236, 236, 238) in colours  # no cases


def test_a_long_title_is_drawn_whole() -> None:
    heat = heat_map([], [], "chains of pictures " * 8)
    image = Image.open(io.BytesIO(heat_picture(heat))).convert("L")
    dark = np.flatnonzero((np.asarray(image)[:30] < 128).any(0))
    assert dark.max() < image.width - 6
    assert image.width > 1000
