"""The comparison of DFM and HiCo: counted FLOPs, and one short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import UsageError
from model.profiles.profile import DroppingSpec, load_profile
from pipeline.bench.cost import prefill
from pipeline.evaluation.readings import bench_readings, prefill_flops


def test_flops_are_those_of_the_benchmark_of_the_model() -> None:
    profile = load_profile("micro-hico")
    assert profile.shape is not None
    assert prefill_flops(profile, 1000, 900) == prefill(profile.shape, 1000, 2048, 2).products


def test_dropping_saves_what_its_layers_do_not_read() -> None:
    profile = load_profile("micro-hico")
    assert profile.shape is not None
    dropping = DroppingSpec(layers=(1, 3), ratios=(1, 0.5, 0.25))
    language = profile.language_model.model_copy(update={"dropping": dropping})
    dropped = profile.model_copy(update={"language_model": language})
    per_layer = [prefill(profile.shape, tokens, 2048, 2).products for tokens in (1000, 550, 550, 325)]
    head = 2 * profile.shape.width * profile.shape.vocabulary
    expected = sum(products - head for products in per_layer) // profile.shape.layers + head
    assert prefill_flops(dropped, 1000, 900) == expected


def test_a_length_that_no_stream_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 60"):
        bench_readings(tmp_path, lengths=[59])


def test_a_short_run_reads_all_frames(tmp_path: Path) -> None:
    (hico,) = bench_readings(tmp_path, profiles=["micro-hico"], lengths=[60], each=1, dropping=False).rows
    assert (hico.profile, hico.dropping, hico.frames) == ("micro-hico", "", 60)
    assert hico.visual_tokens == 60 * 4
    assert hico.stored_bytes == 60 * 4 * 192 * 2
    assert hico.accuracy["all"].total > 0
    assert hico.peak_bytes > 0
