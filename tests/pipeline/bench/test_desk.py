"""The store of the desk's benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.bench.desk import make_store


def test_the_store_is_valid_and_has_the_frames(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 500, picture_width=32)
    assert [(each.stream_id, each.frames) for each in store.streams()] == [("camera-1", 500)]
    window = store.window(["camera-1"])
    np.testing.assert_allclose(np.linalg.norm(window.frame_vectors, axis=1), 1, rtol=1e-6)
    assert store.pictures(window.take(slice(0, 1)))[0][:2] == b"\xff\xd8"
