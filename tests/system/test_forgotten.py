"""What is forgotten is gone from the disk, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.records import rfc3339
from index.store import Store
from pipeline.demo.render import render
from tests.support.processes import Process

pytestmark = pytest.mark.system


def _contents(store: Path) -> bytes:
    """All bytes under the store: every file as it is, and every column of its Parquet files decompressed.

    All but the audit trail, which says that the stream was forgotten.
    """
    parts: list[bytes] = []
    for path in sorted(path for path in store.rglob("*") if path.relative_to(store).parts[0] != "audit"):
        parts.append(path.relative_to(store).as_posix().encode())
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".parquet":
            for column in pq.read_table(path, partitioning=None).columns:
                parts += [bytes(b) for chunk in column.chunks for b in chunk.buffers() if b is not None]
    return b"\0".join(parts)


def test_a_forgotten_stream_leaves_no_byte(profile: str, tmp_path: Path, sightline: Process) -> None:
    footage, store = tmp_path / "footage", tmp_path / "store"
    render(6, 0.5, 2, footage)
    (footage / "camera-1.mp4").rename(footage / "secret-yard.mp4")
    assert sightline("ingest", footage, "--store", store, "--profile", profile).returncode == 0
    assert sightline("reindex", "--store", store).returncode == 0  # vectors are in FAISS shards, too
    opened = Store.open(store)

    def marks(stream: str) -> list[bytes]:
        """What would betray a stream: its name, a picture, a frame's vector, a frame's patches."""
        window = opened.window([stream])
        some = window.take(np.array([3]))
        picture = opened.pictures(some)[0]
        return [
            stream.encode(),
            picture,
            picture[len(picture) // 2 :][:64],
            window.frame_vectors[3].tobytes(),
            opened.patches(some)[0].astype("<f2").tobytes(),
        ]

    secret, public = marks("secret-yard"), marks("camera-2")
    before = _contents(store)
    assert all(mark in before for mark in (*secret, *public))  # the search does find what is there

    done = sightline("forget", "--stream", "secret-yard", "--yes", "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 30
    after = _contents(store)
    assert [mark in after for mark in secret] == [False] * len(secret)
    assert all(mark in after for mark in public)
    streams = json.loads(sightline("streams", "--store", store, "--json").stdout)
    assert [(row["stream_id"], row["frames"]) for row in streams] == [("camera-2", 30)]
    assert sightline("verify", "--store", store).returncode == 0


def test_forgetting_until_a_time_leaves_the_rest(profile: str, tmp_path: Path, sightline: Process) -> None:
    footage, store = tmp_path / "footage", tmp_path / "store"
    render(6, 0.5, 1, footage)
    assert sightline("ingest", footage, "--store", store, "--profile", profile).returncode == 0
    opened = Store.open(store)
    window = opened.window()
    patches = opened.patches(window).astype("<f2")
    cut = int(window.captured_at[12])
    done = sightline("forget", "--stream", "camera-1", "--before", rfc3339(cut), "--yes", "--store", store, "--json")
    assert json.loads(done.stdout)["frames"] == 12
    after = _contents(store)
    present = [patches[row].tobytes() in after for row in range(30)]
    assert present == [False] * 12 + [True] * 18
