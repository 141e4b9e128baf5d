"""VideoNIAH from a folder of the user, with rows and videos that cannot be used."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from index.errors import UsageError
from ingest.video_writer import VideoWriter
from pipeline.evaluation.needles.cases import Draw
from pipeline.evaluation.needles.entry import folder_video

ROWS = [
    {
        "video": "short.mp4",
        "question": "What was it?",
        "options": ["A. dog", "B. cat"],
        "answer": "B",
        "task_type": "OCR",
    },
    {"video": "short.mp4", "question": "Where was it?", "options": ["gate", "door"], "answer": 0},
    {"video": "short.mp4", "question": "Who?", "options": ["a", "b"], "answer": "c"},
    {"video": "gone.mp4", "question": "Who?", "options": ["a", "b"], "answer": "a"},
    {"video": "film.mp4", "question": "Who?", "options": ["a", "b"], "answer": "a"},
]


def write(path: Path, seconds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 32, 32, fps=1, gop=1, created=datetime(2024, 3, 1, tzinfo=UTC)) as writer:
        for _ in range(seconds):
            writer.write(np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8))


def test_a_folder_gives_needles_and_haystacks_and_says_what_it_leaves_out(profile: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "videos" / "short.mp4", 32, 1)
    write(data / "videos" / "film.mp4", 124, 2)
    write(data / "videos" / "unnamed.mp4", 128, 3)
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    draw = Draw(lengths=(200,), per_length=2)
    store, out = str(tmp_path / "store"), tmp_path / "run"
    summary, found = folder_video(
        data, "questions", store, out, profile=profile, device="cpu", draw=draw, settings=("spliced",)
    )
    assert [(each.kind, each.answer, each.frames) for each in found.needles] == [("OCR", 1, 32), ("question", 0, 32)]
    assert sorted(found.haystacks.values()) == [124, 128]
    assert len(found.missing) == 1
    assert found.missing[0].startswith("gone.mp4: no file of the video gone.mp4")
    assert [each.split(":")[0] for each in found.broken] == ["2"]
    assert summary.accuracy["spliced"]["200"].total == 2
    assert summary.evidence_hit == {}
    with pytest.raises(UsageError, match=r"needs 968 frames .* hold 252"):
        folder_video(data, "questions", store, out, profile=profile, draw=Draw(lengths=(1000,), per_length=1))


def test_a_benchmark_that_is_no_choice_is_refused(profile: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rows charades: give questions, or one of videomme"):
        folder_video(tmp_path, "charades", str(tmp_path / "s"), tmp_path / "r", profile=profile, draw=Draw())
