"""What adapters read: the true formats of the files, with the rows that break naive readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.errors import UsageError
from pipeline.evaluation.benchmarks.actions import Actions
from pipeline.evaluation.benchmarks.benchmark import Item
from pipeline.evaluation.benchmarks.charades import CharadesSta
from pipeline.evaluation.benchmarks.egoschema import EgoSchema
from pipeline.evaluation.benchmarks.longvideobench import LongVideoBench
from pipeline.evaluation.benchmarks.lvbench import LvBench
from pipeline.evaluation.benchmarks.mlvu import Mlvu
from pipeline.evaluation.benchmarks.registry import BENCHMARKS, benchmark
from pipeline.evaluation.benchmarks.rows import (
    AnswerForm,
    answer_index,
    options_in_text,
    read_rows,
    seconds_of,
    strip_options,
)
from pipeline.evaluation.benchmarks.videomme import VideoMme
from pipeline.evaluation.runs.footage import stream_name
from pipeline.evaluation.runs.run import choose
from tests.support.benchmark_data import MAKERS, make_action_csv, mme_row, write_json, write_lines, write_parquet


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_ids_are_unique_and_answers_are_options(name: str, video: Path, tmp_path: Path) -> None:
    bench = benchmark(name)
    items = bench.read(MAKERS[name](tmp_path / "data", video), bench.splits[0]).items
    assert len({item.id for item in items}) == len(items) > 0
    for item in items:
        if item.problem is None and bench.task == "choice":
            assert item.answer in range(len(item.options))
            assert any(path.exists() for path in bench.video_paths(tmp_path / "data", item)), item.video
        if item.problem is None:
            assert item.question in bench.prompt(item, item.options, [])


@pytest.mark.parametrize(
    ("answer", "options", "index"),
    [
        ("B", ("red", "blue"), 1),
        ("(B) blue", ("red", "blue"), 1),
        ("B. blue", ("red", "blue"), 1),
        ("Blue", ("red", "blue"), 1),
        (1, ("red", "blue"), 1),
        ("1", ("red", "blue"), 1),
        ("1", ("1", "2"), 0),  # a text that is an option is no index
        ("F", tuple("uvwxyz"), 5),
        (None, ("red",), None),
        (-1, ("red",), None),
    ],
)
def test_answers_become_indices(answer: object, options: tuple[str, ...], index: int | None) -> None:
    assert answer_index(answer, options) == index


COUNTS = ("1", "2", "4", "5")


@pytest.mark.parametrize(
    ("answer", "forms", "index"),
    [
        ("2", ("text",), 1),
        (2, ("text",), 1),
        ("2", ("index",), 2),
        (2, ("index", "text"), 2),
        ("-1", ("index",), None),
        ("(B) 2", ("letter", "text"), 1),
        ("B", ("letter",), 1),
    ],
)
def test_an_answer_is_read_in_the_form_of_its_file(
    answer: object, forms: tuple[AnswerForm, ...], index: object
) -> None:
    assert answer_index(answer, COUNTS, forms) == index


def test_a_number_that_no_option_has_is_no_index() -> None:
    """The answer "3" of a file of texts is none of the counts 1, 2, 4 and 5, and not the fourth option."""
    for forms in (("text",), ("letter", "text")):
        with pytest.raises(ValueError, match="not among"):
            answer_index("3", COUNTS, forms)
    assert answer_index("B", ("B", "A"), ("letter",)) == 1
    assert answer_index("B", ("B", "A"), ("text", "letter")) == 0


@pytest.mark.parametrize(("answer", "options"), [("E", ("a", "b")), ("green", ("red", "blue")), (7, ("red",))])
def test_an_answer_that_is_no_option_is_an_error(answer: object, options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not among"):
        answer_index(answer, options)


def test_labels_are_stripped_only_where_all_options_have_them() -> None:
    assert strip_options(["A. C cooks.", "B. C sits."]) == ("C cooks.", "C sits.")
    assert strip_options(["A. M. Turing", "Grace Hopper"]) == ("A. M. Turing", "Grace Hopper")
    assert strip_options(["red", "blue", "N/A", "N/A"]) == ("red", "blue")
    assert strip_options(None) == ()


def test_options_in_the_question() -> None:
    assert options_in_text("What year?\n(A) 1636\n(B) 1366") == ("What year?", ("1636", "1366"))
    assert options_in_text("What year?\nA. 1636\nB. 1366\n") == ("What year?", ("1636", "1366"))
    assert options_in_text("A man ran.\nWhy?") == ("A man ran.\nWhy?", ())


def test_clock_texts() -> None:
    assert seconds_of("132:45") == 132 * 60 + 45
    assert seconds_of("01:02:03.5") == 3723.5
    assert seconds_of("00:00:01,250") == 1.25
    assert seconds_of("None") is None


def test_json_lines_under_a_json_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "MLVU_val.json", [{"a": 1}, {"a": 2}])
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(UsageError, match=r"broken\.json"):
        read_rows(tmp_path / "broken.json")


def test_a_folder_without_the_files_names_them(tmp_path: Path) -> None:
    for bench in BENCHMARKS.values():
        with pytest.raises(UsageError, match=str(tmp_path)):
            bench.read(tmp_path, bench.splits[0])


def test_groups_of_videomme_go_by_field(tmp_path: Path) -> None:
    row = mme_row("1-1", "x", "What?", ("a", "b"), "A", domain="Multilingual", sub_category="Multilingual")
    write_parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", [row, {**row, "answer": "C"}])
    items = VideoMme().read(tmp_path, "test").items
    assert items[0].groups["domain"] == items[0].groups["sub_category"] == ("Multilingual",)
    assert [item.id for item in items] == ["1-1", "1-1#2"]
    assert items[1].problem is not None


def test_letters_of_videomme_are_letters(tmp_path: Path) -> None:
    """An option may be a letter itself: "Which letter is on the door?"."""
    row = mme_row("1-1", "x", "Which letter?", ("B", "A", "D", "C"), "B")
    write_parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", [row])
    (item,) = VideoMme().read(tmp_path, "test").items
    assert (item.options, item.answer) == (("B", "A", "D", "C"), 1)


def test_answers_of_mlvu_are_texts_and_of_its_parquet_letters(video: Path, tmp_path: Path) -> None:
    data = MAKERS["mlvu"](tmp_path / "dev", video)
    row = {"video": "v_1.mp4", "duration": 6.0, "question": "How many?", "question_type": "count"}
    rows = [{**row, "candidates": list(COUNTS), "answer": answer} for answer in ("2", "3", 5)]
    write_json(data / "json" / "4_count.json", rows)
    items = [item for item in Mlvu().read(data, "dev").items if item.groups["task"] == ("count",)]
    assert [item.answer for item in items] == [1, None, 3]
    assert [item.problem is None for item in items] == [True, False, True]
    listed = {
        "video_name": "a.mp4",
        "task_type": "plotQA",
        "question_id": "p1",
        "candidates": ["B", "A"],
        "answer": "B",
    }
    write_parquet(tmp_path / "lmms" / "dev-0.parquet", [{**listed, "question": "Which letter?\n(A) B\n(B) A"}])
    (item,) = Mlvu().read(tmp_path / "lmms", "dev").items
    assert (item.options, item.answer) == (("B", "A"), 1)


def test_indices_of_longvideobench_are_indices(tmp_path: Path) -> None:
    row = {"id": "a_0", "video_id": "a", "video_path": "a.mp4", "question": "How many?", "candidates": list(COUNTS),
           "correct_choice": 2}  # fmt: skip
    write_json(tmp_path / "lvb_val.json", [row, {**row, "id": "a_1", "correct_choice": 4}])
    first, second = LongVideoBench().read(tmp_path, "val").items
    assert (first.answer, second.answer) == (2, None)
    assert "not among" in (second.problem or "")


PROMPTS = {
    "lvbench": "Which?\n(A) A cup\n(B) A saw\nAnswer the question with the option letter",
    "egoschema": "Which?\nA. A cup\nB. A saw\nAnswer with the option's letter from the given choices directly.",
    "longvideobench": "Subtitles of the video:\nhello\nthere\nWhich?\nA. A cup\nB. A saw\n"
    "Answer with the option's letter from the given choices directly.\n",
    "mlvu": "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
    "option that accurately addresses the question.\nQuestion: Which?\nOptions:\n(A) A cup\n(B) A saw\n"
    "Only give the best option.\nBest option: (",
    "mvbench": "Question: Which?\nOption:\n(A) A cup\n(B) A saw\nOnly give the best option.",
    "actions": "Which?\nA. A cup\nB. A saw\nAnswer with the option's letter from the given choices directly.",
    "charades": "Please find the visual event described by a sentence in the video, determining its starting and ending "
    "times. The format should be: 'The event happens in the start time - end time'. For example, The event 'person turn "
    "a light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: Which?. Please return its "
    "start time and end time.",
    "qvhighlights": "Which?",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name: str) -> None:
    item = Item(id="1", video="x", question="Which?", options=("A cup", "A saw"))
    assert benchmark(name).prompt(item, item.options, ["hello", "there"]) == PROMPTS[name]


def test_the_official_prompt_of_videomme() -> None:
    item = Item(id="1", video="x", question="Which?", options=("A cup", "A saw"))
    assert VideoMme().prompt(item, item.options, ["hello", "there"]) == (
        "This video's subtitles are listed below:\nhello\nthere\n"
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nWhich?\nA. A cup\nB. A saw\nThe best answer is:"
    )


def test_released_lists_of_lvbench(tmp_path: Path) -> None:
    row = {
        "video": "00000005", "type": "tv", "question": "How many?", "candidates": ["(A) Two", "(B) Six", "(C) One", "(D) Ten"],
        "answer": "(B) Six", "question_type": ["entity recognition", "reasoning"], "time_reference": "132:45-132:55",
    }  # fmt: skip
    write_lines(tmp_path / "lvbench_clean.json", [row])
    (item,) = LvBench().read(tmp_path, "test").items
    assert (item.options, item.answer) == (("Two", "Six", "One", "Ten"), 1)
    assert item.spans == ((7965.0, 7975.0),)
    assert item.groups == {"question_type": ("entity recognition", "reasoning"), "type": ("tv",)}
    references = {"00:05-00:05": ((5.0, 5.0),), "01:00:05-01:00:09": ((3605.0, 3609.0),), "": (), "None": ()}
    for text, spans in references.items():
        write_lines(tmp_path / "lvbench_clean.json", [{**row, "time_reference": text}])
        (item,) = LvBench().read(tmp_path, "test").items
        assert item.spans == spans


def test_three_forms_of_egoschema(video: Path, tmp_path: Path) -> None:
    data = MAKERS["egoschema"](tmp_path / "official", video)
    assert [item.answer for item in EgoSchema().read(data, "subset").items] == [3, 0]
    assert [item.answer for item in EgoSchema().read(data, "full").items] == [3, 0, None]
    options = ["A. C cooks.", "B. C sits.", "C. C runs.", "D. C eats.", "E. C reads."]
    write_parquet(
        tmp_path / "lmms" / "test.parquet",
        [{"question_idx": "12", "question": "What?", "video_idx": "0a1b", "option": options, "answer": "3"}],
    )
    (item,) = EgoSchema().read(tmp_path / "lmms", "subset").items
    assert (item.id, item.video, item.answer, item.options[0]) == ("12", "0a1b", 3, "C cooks.")
    write_lines(
        tmp_path / "lines" / "ego.json",
        [{"videoID": "0a1b.mp4", "question": "?", "options": options, "answer": options[4]}],
    )
    (item,) = EgoSchema().read(tmp_path / "lines", "subset").items
    assert (item.video, item.answer) == ("0a1b", 4)


def test_filled_columns_and_hidden_answers_of_longvideobench(tmp_path: Path) -> None:
    row = {"id": "a_0", "video_id": "a", "video_path": "a.mp4", "question": "?", "option0": "x", "option1": "y",
           "option2": "z", "option3": "N/A", "option4": "N/A", "correct_choice": -1, "position": "[1, 2]"}  # fmt: skip
    write_parquet(tmp_path / "test-00000.parquet", [row])
    (item,) = LongVideoBench().read(tmp_path, "test").items
    assert (item.options, item.answer, item.frames, item.problem) == (("x", "y", "z"), None, (1, 2), None)


def test_broken_rows_of_mlvu_stay(video: Path, tmp_path: Path) -> None:
    data = MAKERS["mlvu"](tmp_path / "data", video)
    items = Mlvu().read(data, "dev").items
    problems = {item.groups["task"][0]: item.problem for item in items if item.problem}
    assert set(problems) == {"needle", "topic_reasoning"}
    assert len(items) == 9
    (data / "json" / "4_count.json").unlink()
    with pytest.raises(UsageError, match=r"lacks 4_count\.json"):
        Mlvu().read(data, "dev")


def test_questions_with_options_inside_of_mlvu(tmp_path: Path) -> None:
    row = {"video_name": "ego_9.mp4", "duration": "402", "question": "Which?\n(A) a cup\n(B) a saw", "candidates": ["a cup", "a saw"],
           "answer": "B", "task_type": "ego", "question_id": "e1"}  # fmt: skip
    write_parquet(tmp_path / "dev-00000.parquet", [row])
    (item,) = Mlvu().read(tmp_path, "dev").items
    assert (item.question, item.options, item.answer, item.video) == ("Which?", ("a cup", "a saw"), 1, "ego_9")


def test_three_forms_of_charades(tmp_path: Path) -> None:
    forms = {
        "a": write_json(
            tmp_path / "a" / "charades.json", [{"video": "Q.mp4", "caption": "person runs.", "timestamp": [9.8, 3.1]}]
        ),
        "b": write_lines(
            tmp_path / "b" / "test.jsonl",
            [{"qid": 7, "query": "person runs", "vid": "Q", "relevant_windows": [[3.1, 9.8]]}],
        ),
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "charades_sta_test.txt").write_text("Q 3.1 9.8##person runs.\n\n")
    for form in (*forms, "c"):
        (item,) = CharadesSta().read(tmp_path / form, "test").items
        assert (item.video, item.question, item.spans) == ("Q", "person runs", ((3.1, 9.8),))
    assert "sentence: person runs. Please" in CharadesSta().prompt(item, (), ())


def test_options_of_actions_depend_on_the_seed_alone(video: Path, tmp_path: Path) -> None:
    data = MAKERS["actions"](tmp_path / "data", video)
    first, again, other = (Actions().read(data, "test", seed).items for seed in (1, 1, 2))
    assert first == again != other
    assert all(
        len(set(item.options)) == 4 and item.options[item.answer or 0] == item.groups["label"][0] for item in first
    )
    assert first[1].groups["label"] == ("bench press",)
    labels = [item.groups["label"][0] for item in Actions().read(make_action_csv(tmp_path / "csv"), "test").items]
    assert labels == ["spinning something", "long jump"]
    release = {"database": {
        "q1": {"subset": "validation", "annotations": [{"label": "Long jump", "segment": [1.0, 4.0]}]},
        "q2": {"subset": "training", "annotations": [{"label": "Archery", "segment": [0.0, 2.0]}]},
        "q3": {"subset": "validation", "annotations": [{"label": "Archery", "segment": [0.0, 2.0]}]},
    }}  # fmt: skip
    write_json(tmp_path / "net" / "activity_net.v1-3.min.json", release)
    items = Actions().read(tmp_path / "net", "test").items
    assert [(item.video, item.clip) for item in items] == [("q1", (1.0, 4.0)), ("q3", (0.0, 2.0))]


def test_a_larger_limit_keeps_the_rows_of_a_smaller_one(video: Path, tmp_path: Path) -> None:
    items = Mlvu().read(MAKERS["mlvu"](tmp_path / "data", video), "dev").items
    three, five = (choose(items, subset=None, limit=limit, seed=4) for limit in (3, 5))
    assert {item.id for item in three} < {item.id for item in five}
    assert choose(items, subset="task=ego", limit=None, seed=0)[0].groups["task"] == ("ego",)
    for wrong in ("task=nothing", "colour=red", "task"):
        with pytest.raises(UsageError, match="FIELD=VALUE"):
            choose(items, subset=wrong, limit=None, seed=0)


def test_streams_of_videos_are_valid_and_distinct() -> None:
    from index.schemas import check_stream_id

    paths = [
        "data/-x1.mp4",
        "data/_x1.mp4",
        "data/a b.mp4",
        "data/a_b.mp4",
        "é/1.mp4",
        "x" * 300 + ".mp4",
        "frames/castle_s01",
    ]
    names = [check_stream_id(stream_name("videomme", Path(path))) for path in paths]
    assert len(set(names)) == len(paths)


def test_rows_survive_their_file(video: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from pipeline.evaluation.runs.record import item_of

    for name, maker in MAKERS.items():
        for item in benchmark(name).read(maker(tmp_path / name, video), benchmark(name).splits[0]).items:
            assert item_of(json.loads(json.dumps(asdict(item)))) == item
