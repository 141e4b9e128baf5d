"""Made data sets in the true formats of the benchmarks: invented rows over one small video, with the broken rows."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ingest.video_writer import VideoWriter

__all__ = ["MAKERS", "mme_row", "noise_clip", "write_json", "write_lines", "write_parquet"]

Row = dict[str, Any]


def write_json(path: Path, value: Any) -> Path:
    """Write JSON, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_lines(path: Path, rows: Sequence[Row]) -> Path:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    """Write Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def noise_clip(path: Path) -> Path:
    """Write six seconds of noise, 5 frames a second."""
    rng = np.random.default_rng(9)
    with VideoWriter(path, 64, 48, fps=5, gop=5, created=datetime(2024, 3, 1, tzinfo=UTC)) as writer:
        for _ in range(6):
            ground = rng.integers(0, 256, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            for _ in range(5):
                writer.write(ground)
    return path


def place(video: Path, *paths: Path) -> None:
    """Copy the video to some places."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)


def mme_row(number: str, video: str, question: str, options: Sequence[str], answer: str, **more: str) -> Row:
    """A row of Video-MME."""
    row = {
        "video_id": number.split("-")[0],
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Law",
        "url": f"https://example.org/{video}",
        "videoID": video,
        "question_id": number,
        "task_type": "Object Recognition",
        "question": question,
        "options": [f"{letter}. {option}" for letter, option in zip("ABCDEF", options, strict=False)],
        "answer": answer,
    }
    return {**row, **more}


def make_videomme(data: Path, video: Path) -> Path:
    """Two videos, one with subtitles."""
    place(video, data / "data" / "aB3_x-9Zq0k.mp4", data / "data" / "-x1.MP4")
    (data / "subtitle").mkdir(parents=True)
    (data / "subtitle" / "aB3_x-9Zq0k.srt").write_text(
        '\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<font color="white">A red\r\ndog</font>\r\n\r\n'
        "2\r\n00:10:00,000 --> 00:10:02,000\r\nlater\r\n"
    )
    options = ("One.", "Two.", "Six.", "Ten.")
    rows = [
        mme_row("001-1", "aB3_x-9Zq0k", "How many?", options, "B"),
        mme_row("001-2", "aB3_x-9Zq0k", "Which?", options, "C", task_type="OCR Problems"),
        mme_row(
            "002-1", "-x1", "What?", options, "D", duration="long", domain="Multilingual", sub_category="Multilingual"
        ),
    ]
    write_parquet(data / "videomme" / "test-00000-of-00001.parquet", rows)
    return data


def make_lvbench(data: Path, video: Path) -> Path:
    """The official file: options in the question, a reversed span and one that is no time."""
    place(video, data / "all_videos" / "Cm73ma6Ibcs.mp4")
    text = "What year?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633"
    base = {"question": text, "answer": "D"}
    qa = [
        {**base, "uid": "1", "question_type": ["key information retrieval"], "time_reference": "00:02-00:03"},
        {**base, "uid": "2", "question_type": ["entity recognition", "reasoning"], "time_reference": "00:05-00:01"},
        {**base, "uid": "3", "question_type": ["reasoning"], "time_reference": "None-None"},
    ]
    write_lines(data / "video_info.meta.jsonl", [{"key": "Cm73ma6Ibcs", "type": "cartoon", "video_info": {}, "qa": qa}])
    return data


def make_egoschema(data: Path, video: Path) -> Path:
    """The official files: three questions, of which two have public answers."""
    names = ["0a1b", "0c2d", "0e3f"]
    place(video, *(data / "videos" / f"{name}.mp4" for name in names))
    rows = [
        {
            "q_uid": name,
            "google_drive_id": "x",
            "question": "What does C do?",
            **{f"option {i}": f"C {i}." for i in range(5)},
        }
        for name in names
    ]
    write_json(data / "questions.json", rows)
    write_json(data / "subset_answers.json", {"0a1b": 3, "0c2d": 0})
    return data


def make_longvideobench(data: Path, video: Path) -> Path:
    """`lvb_val.json`, with positions in frames and subtitles of a cut."""
    place(video, data / "videos" / "Zz9.mp4")
    write_json(
        data / "subtitles" / "Zz9_en.json",
        [
            {"start": "00:01:41.000", "end": "00:01:41.500", "line": "the red dog"},
            {"timestamp": [103.0, None], "text": "a bird"},
        ],
    )
    row = {
        "video_id": "Zz9",
        "video_path": "Zz9.mp4",
        "subtitle_path": "Zz9_en.json",
        "question": "When the subtitle says 'the red dog', what is shown?",
        "question_wo_referring_query": "what is shown?",
        "topic_category": "News-Programs",
        "level": "L1-Perception",
        "duration": 6.0,
        "duration_group": 15,
        "starting_timestamp_for_subtitles": 100.0,
        "view_count": 7,
    }
    rows = [
        {
            **row,
            "id": "Zz9_0",
            "candidates": ["red", "blue", "grey"],
            "correct_choice": 2,
            "position": [5, 12],
            "question_category": "T2A",
        },
        {
            **row,
            "id": "Zz9_1",
            "candidates": ["a", "b", "c", "d", "e"],
            "correct_choice": 4,
            "position": [],
            "question_category": "SSS",
        },
    ]
    write_json(data / "lvb_val.json", rows)
    return data


def make_mlvu(data: Path, video: Path) -> Path:
    """The seven dev files, with the needle row whose answer is no candidate and the empty topic row."""
    row = {
        "video": "v_1.mp4",
        "duration": 6.0,
        "question": "Which?",
        "candidates": ["a cup", "a saw", "a hat", "a key"],
    }
    tasks = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    for task in tasks:
        kind = task.partition("_")[2]
        rows = [{**row, "answer": "a saw", "question_type": "findNeedle" if kind == "needle" else kind}]
        if kind == "needle":
            rows.append({**rows[0], "question": "Where?", "answer": "a lake shore"})
        if kind == "topic_reasoning":
            rows.append(
                {
                    "video": "movie101_89.mp4",
                    "duration": 0,
                    "question": "",
                    "candidates": [],
                    "answer": "",
                    "question_type": kind,
                }
            )
        write_json(data / "json" / f"{task}.json", rows)
        place(video, data / "video" / task / "v_1.mp4")
    write_json(
        data / "json" / "9_summary.json",
        [{"video": "v_1.mp4", "question": "Sum up.", "answer": "…", "question_type": "summary"}],
    )
    return data


def make_mlvu_test(data: Path, video: Path) -> Path:
    """The test split: six options, the answer in the last."""
    place(video, data / "video" / "test_AR-1.mp4")
    options = ["one", "two", "three", "four", "five", "six"]
    rows = [
        {"video": "test_AR-1.mp4", "duration": 6, "question": "Which?", "candidates": options, "answer": "F",
         "question_type": "anomaly_reco", "question_id": "AR_0"},
        {"video": "test_AR-1.mp4", "duration": 6, "question": "How many?", "candidates": options, "answer": "E",
         "question_type": "count", "question_id": "AC_0"},
    ]  # fmt: skip
    write_json(data / "test_multi_choice_tasks.json", rows)
    return data


def make_mvbench(data: Path, video: Path) -> Path:
    """A task with bounds, one whose video is a folder of pictures, and a question with a single option."""
    row = {
        "video": "QX4AB.mp4",
        "question": "What happened?",
        "candidates": ["Ran.", "Sat.", "Ate.", "Hid."],
        "answer": "Sat.",
    }
    write_json(data / "json" / "action_sequence.json", [{**row, "start": 1.0, "end": 4.0}])
    place(video, data / "video" / "star" / "Charades_v1_480" / "QX4AB.mp4")
    folder = data / "video" / "tvqa" / "frames_fps3_hq" / "castle_s01e01"
    folder.mkdir(parents=True)
    for number in range(9):
        Image.fromarray(np.full((49, 64, 3), number * 20, np.uint8)).save(folder / f"{number + 1:05}.jpg")
    episodic = {"video": "castle_s01e01", "question": "Who?", "candidates": ["A.", "B.", "C.", "D.", "E."], "answer": "C.",
                "subtitle": "…", "show_name": "Castle", "start": 0.0, "end": 2.0, "fps": 3}  # fmt: skip
    write_json(data / "json" / "episodic_reasoning.json", [episodic])
    single = {"video": "video_10.mp4", "question": "What if?", "candidates": ["Nothing."], "answer": "Nothing."}
    write_json(data / "json" / "counterfactual_inference.json", [single])
    place(video, data / "video" / "clevrer" / "video_validation" / "video_10.mp4")
    return data


def make_charades(data: Path, video: Path) -> Path:
    """The list of VideoChat-Flash and lmms-eval; one sentence has no span."""
    place(video, data / "Charades_v1_480" / "QX4AB.mp4")
    rows = [
        {"video": "QX4AB.mp4", "caption": "person opens a box.", "timestamp": [1.0, 4.0]},
        {"video": "QX4AB.mp4", "caption": "person closes a box.", "timestamp": []},
    ]
    write_json(data / "charades.json", rows)
    return data


def make_qvhighlights(data: Path, video: Path) -> Path:
    """The validation file."""
    place(video, data / "videos" / "aB3_60.0_210.0.mp4")
    row = {"query": "A man paints a fence.", "duration": 6, "vid": "aB3_60.0_210.0"}
    rows = [
        {
            **row,
            "qid": 1,
            "relevant_windows": [[2, 6]],
            "relevant_clip_ids": [1, 2],
            "saliency_scores": [[4, 3, 2], [3, 3, 1]],
        },
        {**row, "qid": 2, "relevant_windows": [], "relevant_clip_ids": [], "saliency_scores": []},
    ]
    write_lines(data / "highlight_val_release.jsonl", rows)
    return data


def make_actions(data: Path, video: Path) -> Path:
    """UCF-101's lists."""
    (data / "UCF-101").mkdir(parents=True)
    (data / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n3 BabyCrawling\n4 Basketball\n5 BenchPress\n")
    (data / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\nBenchPress/v_BenchPress_g01_c01.avi\n")
    place(
        video,
        data / "UCF-101" / "Archery" / "v_Archery_g01_c01.mp4",
        data / "UCF-101" / "BenchPress" / "v_BenchPress_g01_c01.mp4",
    )
    return data


def make_action_csv(data: Path) -> Path:
    """A CSV of clips."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("video", "label"), ("a.mp4", "Spinning [something]"), ("b.mp4", "long_jump")])
    return data


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "videomme": make_videomme,
    "lvbench": make_lvbench,
    "egoschema": make_egoschema,
    "longvideobench": make_longvideobench,
    "mlvu": make_mlvu,
    "mvbench": make_mvbench,
    "charades": make_charades,
    "qvhighlights": make_qvhighlights,
    "actions": make_actions,
}
"""The maker of each benchmark's default split: a folder and a small video give the data folder."""

__all__ += ["make_action_csv", "make_mlvu_test", "place"]
