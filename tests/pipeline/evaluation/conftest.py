"""One small video and one store for every made benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benchmark_data import noise_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of noise, 5 frames a second."""
    return noise_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")
