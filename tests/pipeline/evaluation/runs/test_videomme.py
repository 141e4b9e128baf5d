"""Video-MME from the command line with a tiny profile, and everything that may be wrong with a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from index.errors import ServiceUnavailable
from pipeline.evaluation.runs.record import AnswerLine, RunFolder
from pipeline.questions.asker import Asked, Asker, Selection
from tests.support.benchmark_data import mme_row, place, write_parquet
from tests.support.command import Command, Result

OPTIONS = ("red", "orange", "blue", "cyan")


@pytest.fixture(scope="module")
def data(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows over two videos, a missing one and one that is text, and a row whose answer is no option."""
    folder = tmp_path_factory.mktemp("mme")
    place(clip, folder / "data" / "one.mp4", folder / "data" / "two.mp4")
    (folder / "data" / "text.mp4").write_text("this is no video")
    (folder / "subtitle").mkdir()
    (folder / "subtitle" / "one.srt").write_text("1\n00:00:02,000 --> 00:00:04,000\na red dog\n")
    question = "What colour was the dog at the door?"
    rows = [
        mme_row("001-1", "one", question, OPTIONS, "A"),
        mme_row("001-2", "one", question.replace("dog", "bird"), OPTIONS, "C"),
        mme_row("001-3", "one", question + " why" * 30000, OPTIONS, "B"),
        mme_row("002-1", "two", question, OPTIONS, "D", duration="medium"),
        mme_row("002-2", "two", question, OPTIONS, "E"),
        mme_row("003-1", "gone", question, OPTIONS, "A", duration="long"),
        mme_row("004-1", "text", question, OPTIONS, "A", duration="long"),
    ]
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    return folder


@pytest.fixture
def run(sightline: Command, data: Path, store: Path, profile: str) -> Command:
    """`run("--out", FOLDER, …)`: the command `eval run videomme` with data set, store and profile."""

    def command(*more: object) -> Result:
        common = ("eval", "run", "videomme", "--data", data, "--store", store, "--profile", profile)
        return sightline(*common, *more)

    return command


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "store"


def scripted(monkeypatch: pytest.MonkeyPatch, replies: dict[str, Any]) -> list[str]:
    """Let `Asker.answer` give replies in turn, by a word of the prompt; an exception is raised. Returns the prompts."""
    prompts: list[str] = []

    def answer(self: Asker, question: str, selection: Selection, **more: Any) -> Asked:
        """The reply of the first word that the prompt has."""
        prompts.append(question)
        reply = next(value for word, value in replies.items() if word in question)
        if isinstance(reply, Exception):
            raise reply
        return Asked(
            question=question,
            answer=reply,
            keyframes=[],
            frames=3,
            window_frames=3,
            visual_tokens=9,
            timings_seconds={},
        )

    monkeypatch.setattr(Asker, "answer", answer)
    return prompts


def by_id(folder: Path) -> dict[str, AnswerLine]:
    return {name: line for (name, _), line in RunFolder(folder).answers().items()}


def test_a_run_counts_everything_that_is_wrong(sightline: Command, run: Command, store: Path, tmp_path: Path) -> None:
    result = run("--out", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    assert result.data["states"] == {"answered": 3, "refused": 1, "broken": 1, "missing": 1, "undecodable": 1}
    assert result.data["accuracy"]["total"] == 7
    assert result.data["missing"] == ["gone"]
    lines = by_id(tmp_path / "run")
    assert len(lines) == 7
    assert result.data["accuracy"]["right"] == sum(line.predicted == key for line, key in
                                                   ((lines["001-1"], 0), (lines["001-2"], 2), (lines["002-1"], 3)))  # fmt: skip
    assert "context" in str(lines["001-3"].problem) or "tokens" in str(lines["001-3"].problem)
    assert "not among the options" in str(lines["002-2"].problem)
    assert sum(lines["001-1"].probabilities) == pytest.approx(1)
    head = result.data["head"]
    assert len(head["annotations"]) == 64
    assert (head["rows"], head["questions"], head["prompt_id"], head["decoding"]) == (
        7,
        7,
        "profile",
        "likelihood of options",
    )
    assert head["encoders"]["frame"]["weights_digest"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "67.7" in page
    assert "1 video is missing" in page
    shown = sightline("eval", "report", tmp_path / "run", "--store", store)
    assert "3 answered" in shown.out


def test_a_run_that_ended_early_goes_on_by_question(
    sightline: Command, run: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    arguments = ("--out", out, "--answers", "generated")
    with monkeypatch.context() as patch:
        failing = {"why": "B", "bird": ServiceUnavailable("the service is gone"), "dog": "The answer is (A)."}
        scripted(patch, failing)
        result = run(*arguments)
    assert result.code == 1
    assert set(by_id(out)) == {"001-1"}
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"id": "001-2", "state": "answ')  # what a killed process leaves
    early = sightline("eval", "report", out, "--store", store, "--json")
    assert early.data["states"] == {"answered": 1, "not asked": 6}
    assert early.data["accuracy"]["total"] == 7
    with monkeypatch.context() as patch:
        prompts = scripted(patch, {"why": "B", "bird": "I see a man.", "dog": "A man"})
        result = run(*arguments, "--json")
    assert result.code == 0, result.err
    assert len(prompts) == 3  # the question that has an answer is not asked again
    assert prompts[0].endswith("The best answer is:")
    assert "A. red\nB. orange\nC. blue\nD. cyan" in prompts[0]
    lines = by_id(out)
    assert (lines["001-1"].reply, lines["001-1"].predicted, lines["001-1"].value) == ("The answer is (A).", 0, 1.0)
    assert (lines["001-2"].state, lines["001-2"].reply, lines["001-2"].value) == ("unparsed", "I see a man.", 0.0)
    assert lines["002-1"].state == "unparsed"
    raw = (out / "answers.jsonl").read_text()
    assert raw.endswith("\n")
    assert [json.loads(line)["id"] for line in raw.splitlines()].count("001-2") == 1
    refused = run(*arguments[:-1], "likelihood")
    assert refused.code == 2
    assert "holds another run" in refused.err
    assert "mode" in refused.err


def test_subtitles_reach_the_prompt_by_rule(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = scripted(monkeypatch, {"dog": "A"})
    for rule in ("all", "none"):
        out = tmp_path / rule
        result = run(
            *("--out", out, "--answers", "generated", "--subtitles", rule, "--subset", "duration=medium", "--json")
        )
        assert result.data["head"]["questions"] == 1, result.err
    assert not any("subtitles" in prompt for prompt in prompts)  # the video `two` has none
    run(
        *("--out", tmp_path / "one", "--answers", "generated"),
        *("--subtitles", "aligned", "--subset", "duration=short"),
    )
    assert prompts[-1].startswith("This video's subtitles are listed below:\na red dog\nSelect the best answer")


def test_two_runs_are_compared_and_exported(
    sightline: Command, run: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, replies in (("a", {"why": "A", "bird": "C", "dog": "A"}), ("b", {"why": "A", "bird": "D", "dog": "D."})):
        scripted(monkeypatch, replies)
        result = run("--out", tmp_path / name, "--answers", "generated", "--quiet")
        assert result.code == 0, result.err
    compared = sightline("eval", "compare", tmp_path / "a", tmp_path / "b", "--json").data
    assert compared["questions"] == 7
    test = compared["test"]
    assert (test["only_first"], test["only_second"], test["both"]) == (2, 1, 0)
    assert set(compared["changed"]) == {"001-1", "001-2", "002-1"}
    assert compared["groups"]["duration"]["short"]["first"]["right"] == 2
    assert compared["groups"]["duration"]["medium"]["second"]["right"] == 1
    html = tmp_path / "compared.html"
    shown = sightline("eval", "compare", tmp_path / "a", tmp_path / "b", "--html", html, "--store", store)
    assert "McNemar p = 1" in shown.out
    page = html.read_text()
    assert "3 questions that only one run answers right" in page
    assert (page.count("first is right"), page.count("second is right")) == (2, 1)
    assert "right, first" in page
    assert "duration: 3 values" in page
    out = tmp_path / "logs" / "videomme.json"
    assert sightline("eval", "export", tmp_path / "b", "--out", out).code == 0
    log = json.loads(out.read_text())
    assert log["model_configs"]["task"] == "videomme"
    assert log["args"]["limit"] is None
    assert [row["doc_id"] for row in log["logs"]] == list(range(7))
    assert [row["resps"][0][0] for row in log["logs"]] == ["D.", "D", "A", "D.", "", "", ""]
    limited = run("--out", tmp_path / "c", "--answers", "generated", "--limit", 2)
    assert "2 questions of the 7 of the split" in limited.out
    assert "whole split" in sightline("eval", "export", tmp_path / "c", "--out", out).err


def test_wrong_usage_is_found_before_models_are_loaded(sightline: Command, data: Path, tmp_path: Path) -> None:
    base = ("eval", "run", "videomme", "--data", data, "--store", tmp_path / "s", "--out", tmp_path / "run")
    for more, word in (
        (("--split", "dev"), "--split dev"),
        (("--limit", 0), "--limit"),
        (("--rotations", 9), "--rotations"),
        (("--reference", "--answers", "likelihood"), "--reference"),
    ):
        result = sightline(*base, *more)
        assert result.code == 2
        assert word in result.err
    assert "is not a benchmark" in sightline("eval", "run", "mmu", *base[3:]).err
    assert not (tmp_path / "s").exists()
