"""One small video and one store for every made benchmark."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ingest.video_writer import VideoWriter


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of noise, 5 frames a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    rng = np.random.default_rng(9)
    with VideoWriter(path, 64, 48, fps=5, gop=5, created=datetime(2024, 3, 1, tzinfo=UTC)) as writer:
        for _ in range(6):
            ground = rng.integers(0, 256, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            for _ in range(5):
                writer.write(ground)
    return path
