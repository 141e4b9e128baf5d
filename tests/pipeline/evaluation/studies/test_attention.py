"""The study and an ablation over a made store with a tiny profile, their reports, and their commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index.errors import UsageError
from index.records import FrameRecords, Segment
from index.store import Store
from model.answerer import Answerer
from model.encoders.encoder import Encoders
from model.language.query_attention import read_attention
from pipeline.evaluation.studies.attention import CONDITIONS, study_answerer, study_attention
from pipeline.evaluation.studies.looking import Subject, evidence_frames, look, video_frames
from pipeline.evaluation.studies.report import study_pictures, study_text, write_study

FRAMES, BEGAN = 45, 1_709_280_000_000_000
SUBJECT = Subject("a", "what is the truck ?", ("red", "white"), 1, ((3.0, 6.0),))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, encoders: Encoders) -> Store:
    """Two streams of random frames."""
    made = Store.create(tmp_path_factory.mktemp("study") / "store", encoders.pair)
    rng, pair = np.random.default_rng(4), encoders.pair
    for name in ("a", "b"):
        vectors = rng.normal(size=(FRAMES, pair.frame.dimension)).astype(np.float32)
        seconds = np.arange(FRAMES)
        records = FrameRecords(
            stream_id=name,
            clock_source="given",
            captured_at=BEGAN + seconds * 1_000_000,
            pts_seconds=seconds.astype(np.float64),
            frame_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            patch_pooled=rng.normal(size=(FRAMES, pair.patch.dimension)).astype(np.float32),
            patches=rng.normal(size=(FRAMES, pair.patches, pair.patch.dimension)).astype(np.float16),
            pictures=[b"JPEG"] * FRAMES,
        )
        end = BEGAN + FRAMES * 1_000_000
        made.append(
            Segment(
                stream_id=name,
                source=name,
                chunk=0,
                uri=name,
                start=BEGAN,
                end=end,
                frames=FRAMES,
                decode_mode="all",
                clock_source="given",
            ),
            records,
        )
    return made


@pytest.fixture(scope="module")
def models(answerer: Answerer) -> Answerer:
    """The tiny models with room for all tokens of all frames."""
    spec = answerer.profile.language_model.model_copy(update={"max_context": 4000})
    profile = answerer.profile.model_copy(update={"language_model": spec})
    return study_answerer(profile, answerer.encoders, "cpu")


def test_a_look_splits_the_attention_by_place(models: Answerer, store: Store) -> None:
    """Shares sum to one, frames in another order keep their own rows, and the question's rows are those of its words."""
    video = video_frames(store, "a", 40)
    plain, asked = look(models, SUBJECT, video)
    assert plain.attention.shape == (40, models.visual.keyframe_tokens)
    total = np.sum(list(plain.mass.values()), axis=0)
    np.testing.assert_allclose(total, np.ones(len(plain.by_layer)), atol=1e-5)
    np.testing.assert_allclose(plain.by_layer.sum(axis=1), plain.mass["frames"], rtol=1e-5)
    np.testing.assert_allclose(plain.by_layer.mean(axis=0), plain.attention.sum(axis=1), rtol=1e-5)
    assert not np.allclose(plain.attention, asked.attention)
    order = np.arange(40)[::-1].copy()
    mixed, _ = look(models, SUBJECT, video, order)
    np.testing.assert_allclose(mixed.tokens, plain.tokens[::-1], atol=1e-6)


def test_the_study_has_null_tests_and_a_report(models: Answerer, store: Store, tmp_path: Path) -> None:
    subjects = [SUBJECT, Subject("a", "where is the bus ?", ("gate", "bridge"), 0), Subject("b", "where ?", (), None)]
    lines = tmp_path / "out" / "videos.jsonl"
    study = study_attention(models, store, subjects, source="noise", frames=40, lines=lines)
    assert (study.videos, study.questions, set(study.conditions)) == (2, 3, set(CONDITIONS))
    assert set(study.right) == {"as it is", "shuffled"}
    for figures in study.conditions.values():
        assert figures.frames_curve[0] == 0
        assert figures.frames_curve[-1] == pytest.approx(1)
        assert np.all(np.diff(figures.frames_curve) >= -1e-12)
        assert figures.frames_curve[5] == pytest.approx(figures.top_five)
        assert sum(figures.mass.values()) == pytest.approx(1, abs=1e-5)
        assert figures.patches_curve is not None
        assert figures.patches_curve[-1] == pytest.approx(1)
        assert figures.evidence_frames == pytest.approx(4 / 40, abs=0.03)
    path = write_study(study, tmp_path)
    assert "random weights" in path.read_text()
    assert set(study_pictures(study)) == {"frames", "patches", "layers"}
    assert (tmp_path / "frames.svg").read_text().startswith("<svg xmlns=")
    assert "| frames that hold 90 % |" in study_text(study)
    assert json.loads((tmp_path / "study.json").read_text())["questions"] == 3


def test_a_study_goes_on_with_its_next_video(
    models: Answerer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is not looked at again, unless a setting differs; a torn line is passed over."""
    subjects = [SUBJECT, Subject("b", "where ?", (), None)]
    lines, asked = tmp_path / "videos.jsonl", list[str]()
    whole = study_attention(models, store, subjects, source="noise", frames=20)

    def heard(models: Answerer, subject: Subject, *more: Any) -> Any:
        """Note which video is looked at."""
        asked.append(subject.stream)
        return look(models, subject, *more)

    monkeypatch.setattr("pipeline.evaluation.studies.attention.look", heard)
    study_attention(models, store, subjects[:1], source="noise", frames=20, lines=lines)
    assert asked == ["a"] * 3
    lines.write_bytes(lines.read_bytes()[:-1] + b'\n{"key": "torn')
    again = study_attention(models, store, subjects, source="noise", frames=20, lines=lines)
    assert asked == ["a"] * 3 + ["b"] * 3
    assert {**again.model_dump(), "load": 0} == {**whole.model_dump(), "load": 0}
    study_attention(models, store, subjects, source="noise", frames=20, lines=lines)
    assert len(asked) == 6
    study_attention(models, store, subjects, source="noise", frames=20, seed=1, lines=lines)
    assert len(asked) == 12


def test_invalid_studies(models: Answerer, store: Store) -> None:
    with pytest.raises(UsageError, match="no questions"):
        study_attention(models, store, [], source="")
    with pytest.raises(UsageError, match="20 frames"):
        study_attention(models, store, [SUBJECT], source="", frames=5)


def test_evidence_frames_are_those_within_a_span() -> None:
    assert evidence_frames(SUBJECT, [2.9, 3.0, 6.0, 6.1]).tolist() == [False, True, True, False]


def test_random_weights_have_even_attention(models: Answerer) -> None:
    """A layer whose queries are zero attends to everything before it alike: the recorder sees 1/t for row t."""
    language = models.language
    embeddings = torch.zeros(50, language.width)
    shares, _ = read_attention(language, embeddings, [[49]])
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 50), rtol=1e-4, atol=1e-6)
