"""Every adapter, end to end: a made data set of the true format, a tiny model, one store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.evaluation.benchmarks.registry import BENCHMARKS, benchmark
from pipeline.evaluation.runs.asking import Reading
from pipeline.evaluation.runs.export import export_run
from pipeline.evaluation.runs.record import AnswerLine, RunFolder
from pipeline.evaluation.runs.report import run_report
from pipeline.evaluation.runs.run import RunPlan, run_benchmark
from pipeline.evaluation.runs.summary import summarize, summary_text
from pipeline.questions.asker import Asker
from tests.support.benchmark_data import MAKERS, make_mlvu_test


@pytest.fixture(scope="module")
def asker(profile: str, tmp_path_factory: pytest.TempPathFactory) -> Asker:
    from index.store import Store

    encoders = load_encoders(load_profile(profile), "cpu")
    store = Store.create(tmp_path_factory.mktemp("stores") / "store", encoders.pair)
    return Asker(store, profile, "cpu")


def lines_of(folder: RunFolder) -> dict[str, AnswerLine]:
    return {line.id: line for (_, rotation), line in folder.answers().items() if rotation == 0}


def run(asker: Asker, name: str, data: Path, out: Path, **more: Any) -> RunFolder:
    bench = benchmark(name)
    reading = more.pop("reading", Reading("likelihood" if bench.task == "choice" else "generated"))
    plan = RunPlan(
        benchmark=bench, data=data, out=out, split=more.pop("split", bench.splits[0]), reading=reading, **more
    )
    return run_benchmark(plan, asker, lambda: asker.encoders)


EXPECTED = {
    "videomme": {"answered": 3},
    "lvbench": {"answered": 3},
    "egoschema": {"answered": 2},
    "longvideobench": {"answered": 2},
    "mlvu": {"answered": 7, "broken": 2},
    "mvbench": {"answered": 3},
    "charades": {"unparsed": 1, "broken": 1},
    "qvhighlights": {"answered": 1, "broken": 1},
    "actions": {"answered": 2},
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_adapter_runs_to_its_report(asker: Asker, clip: Path, tmp_path: Path, name: str) -> None:
    data = MAKERS[name](tmp_path / "data", clip)
    folder = run(asker, name, data, tmp_path / "out")
    summary = summarize(folder)
    states = dict(summary.states)
    if name == "charades" and states.get("answered"):  # a random model may name a span
        states["unparsed"] = states.pop("answered")
    assert states == EXPECTED[name]
    assert summary.accuracy.total == sum(EXPECTED[name].values())
    for line in lines_of(folder).values():
        if line.state == "answered" and name != "qvhighlights":
            assert line.frames > 0
            assert line.keyframes
            assert line.timings_seconds["total"] > 0
    page = run_report(folder, summary, store=asker.store, pictures=4)
    assert benchmark(name).title in page
    assert "published" in page
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    run(asker, name, data, tmp_path / "out")  # a run that is complete asks nothing again
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_groups_and_evidence_of_lvbench(asker: Asker, clip: Path, tmp_path: Path) -> None:
    folder = run(asker, "lvbench", MAKERS["lvbench"](tmp_path / "data", clip), tmp_path / "out")
    summary = summarize(folder)
    assert {name: share.total for name, share in summary.groups["question_type"].items()} == {
        "entity recognition": 1,
        "key information retrieval": 1,
        "reasoning": 2,
    }
    lines = lines_of(folder)
    assert lines["3"].evidence_hit is None  # "None-None" is no evidence
    for name, (start, end) in {"1": (2, 3), "2": (1, 5)}.items():  # a reversed span is swapped
        seconds = [frame.seconds for frame in lines[name].keyframes]
        assert lines[name].evidence_hit == any(second <= end and second + 1 > start for second in seconds)
    assert lines["1"].depth == pytest.approx(2.5 / 6)


def test_positions_of_longvideobench_are_frames_of_the_file(asker: Asker, clip: Path, tmp_path: Path) -> None:
    data = MAKERS["longvideobench"](tmp_path / "data", clip)
    folder = run(asker, "longvideobench", data, tmp_path / "out", reading=Reading("likelihood", subtitles="aligned"))
    line = lines_of(folder)["Zz9_0"]
    assert line.depth == pytest.approx(1.0 / 6)  # frame 5 at 5 frames a second is second 1
    assert line.subtitle_lines == 2  # 1 s and 3 s of the cut
    whole = [frame.seconds for frame in line.keyframes if frame.evidence]
    assert set(whole) <= {1.0, 2.0}


def test_a_part_of_a_video_is_read(asker: Asker, clip: Path, tmp_path: Path) -> None:
    folder = run(asker, "mvbench", MAKERS["mvbench"](tmp_path / "data", clip), tmp_path / "out")
    lines = lines_of(folder)
    assert lines["action_sequence-0"].window_frames == 3  # 1 s to 4 s
    assert {frame.seconds for frame in lines["action_sequence-0"].keyframes} <= {1.0, 2.0, 3.0}
    assert lines["episodic_reasoning-0"].window_frames == 2  # pictures at 3 a second, 0 s to 2 s
    assert lines["counterfactual_inference-0"].value == 1  # the only option


def test_keyframes_are_selected_for_the_bare_question(
    asker: Asker, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options and subtitles would exceed what the text encoder reads: the language model alone has them."""
    texts, asked = list[str](), list[str]()
    encoder, answer = asker.encoders.frame, Asker.answer
    encode = encoder.encode_text

    def noted(queries: list[str]) -> Any:
        """Note what is encoded."""
        texts.extend(queries)
        return encode(queries)

    def heard(self: Asker, question: str, *rest: Any, **more: Any) -> Any:
        """Note what is asked."""
        asked.append(question)
        return answer(self, question, *rest, **more)

    monkeypatch.setattr(encoder, "encode_text", noted)
    monkeypatch.setattr(Asker, "answer", heard)
    data = MAKERS["longvideobench"](tmp_path / "data", clip)
    folder = run(asker, "longvideobench", data, tmp_path / "out", reading=Reading("generated", subtitles="all"))
    assert set(texts) == {item.question for item in folder.items()}
    assert all("a bird" in prompt and "A. " in prompt for prompt in asked)
    note = "the annotation file has 2 rows, LongVideoBench val as published has 1,337"
    assert note in summary_text(summarize(folder))
    assert note in run_report(folder, summarize(folder), store=None, pictures=0)


def test_macro_means_and_the_ceiling_of_mlvu(asker: Asker, clip: Path, tmp_path: Path) -> None:
    folder = run(asker, "mlvu", MAKERS["mlvu"](tmp_path / "data", clip), tmp_path / "out")
    summary = summarize(folder)
    tasks = summary.groups["task"]
    assert tasks["needle"].total == 2
    assert tasks["needle"].share <= 0.5
    (average,) = summary.figures
    assert average.value == pytest.approx(100 * sum(share.share for share in tasks.values()) / 7)


def test_six_options(asker: Asker, clip: Path, tmp_path: Path) -> None:
    data = make_mlvu_test(tmp_path / "data", clip)
    folder = run(asker, "mlvu", data, tmp_path / "out", split="test", rotations=6)
    assert {item.answer for item in folder.items()} == {4, 5}
    rotations = summarize(folder).rotations
    assert rotations is not None
    assert len(rotations.accuracy) == 6


def test_hits_of_qvhighlights(asker: Asker, clip: Path, tmp_path: Path) -> None:
    folder = run(asker, "qvhighlights", MAKERS["qvhighlights"](tmp_path / "data", clip), tmp_path / "out")
    figures = {each.name: each.value for each in summarize(folder).figures}
    # Six frames and one best clip of two seconds in the first query; the second has no truth and scores 0.
    assert figures["Hit@1 random"] == pytest.approx(100 * (2 / 6) / 2)
    assert figures["Hit@30 top-k"] == 50
    detail = lines_of(folder)["1"].detail
    assert len(detail["saliency"]) == 3
    assert sorted(detail["top"]) == [0, 1, 2, 3, 4, 5]
    assert len(detail["selected"]["1"]) == 1
    assert export_run(folder, tmp_path / "submission.jsonl", "submission") == 1
    first, second = map(json.loads, (tmp_path / "submission.jsonl").read_text().splitlines())
    assert {**first, "pred_relevant_windows": [], "pred_saliency_scores": []} == {
        "qid": 1, "query": "A man paints a fence.", "vid": "aB3_60.0_210.0", "pred_relevant_windows": [],
        "pred_saliency_scores": []}  # fmt: skip
    assert first["pred_saliency_scores"] == detail["saliency"]
    assert all(len(window) == 3 and window[0] < window[1] for window in first["pred_relevant_windows"])
    assert (second["qid"], second["pred_relevant_windows"]) == (2, [])


def test_baselines_and_reference(asker: Asker, clip: Path, tmp_path: Path) -> None:
    data = MAKERS["egoschema"](tmp_path / "data", clip)
    blind = lines_of(run(asker, "egoschema", data, tmp_path / "blind", reading=Reading("likelihood", baseline="blind")))
    single = lines_of(
        run(asker, "egoschema", data, tmp_path / "single", reading=Reading("likelihood", baseline="single-frame"))
    )
    assert {(line.frames, line.visual_tokens) for line in blind.values()} == {(0, 0)}
    assert {(line.frames, line.keyframes[0].seconds) for line in single.values()} == {(1, 3.0)}
    folder = run(asker, "egoschema", data, tmp_path / "reference", reading=Reading("generated", reference=True))
    assert folder.head().decoding == "greedy"
    assert "600" in folder.head().frame_rule


def test_the_hidden_answers_of_egoschema_become_a_submission(asker: Asker, clip: Path, tmp_path: Path) -> None:
    data = MAKERS["egoschema"](tmp_path / "data", clip)
    (data / "subset_answers.json").unlink()
    folder = run(asker, "egoschema", data, tmp_path / "out", split="full")
    assert summarize(folder).hidden
    assert export_run(folder, tmp_path / "submission.json", "submission") == 3
    submitted = json.loads((tmp_path / "submission.json").read_text())
    assert set(submitted) == {"0a1b", "0c2d", "0e3f"}
    assert all(value in range(5) for value in submitted.values())
