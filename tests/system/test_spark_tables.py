"""Spark reads the current rows of a store, by the recipe that the page about the tables prints."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from index.store import Store
from tests.support.processes import ROOT
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment
from tests.support.tools import need

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
PAGE = (ROOT / "docs" / "reference" / "tables.md").read_text(encoding="utf-8")
CHUNK = 10  # frames
OFFSET = 123_457  # microseconds: the times are not of whole seconds
STREAMS = ("007", "front", "süd")
"""A name that looks like a number, and one that is not ASCII."""

# After the page's own lines: every table as Spark sees it, in files that keep types, and what is said against globs.
REST = """
for (name <- Seq("patches", "segments")) spark.read.format("delta").load(s"store/$name").write.parquet(s"read/$name")
frames.selectExpr("*", "CAST(captured_at AS STRING) AS shown").write.parquet("read/frames")
println("globbed: " + spark.read.parquet("store/frames").count())
def names(path: String) = spark.read.option("basePath", "store/frames").parquet(path).select("stream_id").distinct()
println("named: " + names("store/frames").as[String].collect().sorted.mkString(" "))
println("numbers: " + names("store/frames/stream_id=007").dtypes.mkString(" "))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that was appended to, lost the begin of a stream, was compacted, and was appended to again.

    Its logs begin with a checkpoint; the files that `compact` replaced are there.
    """
    store = Store.create(tmp_path / "store", PAIR)

    def append(chunk: int) -> None:
        for name in STREAMS:
            records = make_records(name, BEGAN + OFFSET + chunk * CHUNK * SECOND, CHUNK, seed=chunk, mark=name)
            store.append(make_segment(records, chunk), records)

    for chunk in range(2):
        append(chunk)
    assert store.forget("007", before=BEGAN + 5 * SECOND) > 0
    for chunk in range(2, 6):
        append(chunk)
    store.compact()
    append(6)
    return store


@pytest.fixture
def printed(store: Store, tmp_path: Path) -> str:
    """What Spark's shell prints for the page's lines and `REST`, on a machine in Japan."""
    need("java", "mvn")
    (command,) = re.findall(r"```sh\n(spark-shell .*?)```", PAGE, re.S)
    (lines,) = re.findall(r"```scala\n(.*?)```", PAGE, re.S)
    settings = re.findall(r"--conf (\S+)", command)
    options = [
        word
        for setting in [*settings, "spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS"]
        for word in ("--conf", setting)
    ]
    done = subprocess.run(
        [str(ROOT / "infra" / "spark" / "server.sh"), "shell", *options],
        input=lines + REST,
        cwd=tmp_path,
        env=os.environ | {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


def read(folder: Path, name: str) -> pa.Table:
    """A table as Spark read it, by stream and time or chunk."""
    table = pq.read_table(folder / "read" / name)
    return table.sort_by([("stream_id", "ascending"), ("chunk" if name == "segments" else "captured_at", "ascending")])


def matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """The vectors of a list column as float32[N, D]."""
    return np.stack(column.to_numpy())


def test_the_rows_are_those_of_the_store(store: Store, printed: str, tmp_path: Path) -> None:
    window = store.window()
    frames = read(tmp_path, "frames")
    assert frames.num_rows == len(window) == 3 * 7 * CHUNK - 5
    assert frames["stream_id"].to_pylist() == [window.stream_ids[i] for i in window.stream_index]
    assert frames["captured_at"].type == pa.timestamp("us", "UTC")
    assert frames["captured_at"].cast(pa.int64()).to_pylist() == window.captured_at.tolist()
    assert frames["date"].to_pylist() == ["2024-03-01"] * len(window)
    assert frames["shown"][-1].as_py() == "2024-03-01 08:01:09.123457", "the time is UTC, not Japan's"
    assert frames["pts_seconds"].to_pylist() == window.pts_seconds.tolist()
    np.testing.assert_array_equal(matrix(frames["frame_vector"]), window.frame_vectors)
    pooled = np.concatenate([make_records(n=CHUNK, seed=chunk).patch_pooled for chunk in range(7)])
    np.testing.assert_array_equal(matrix(frames["patch_pooled"]), np.tile(pooled, (3, 1))[5:])
    assert frames["picture"].to_pylist() == store.pictures(window)
    patches = read(tmp_path, "patches")
    assert patches["captured_at"].equals(frames["captured_at"])
    assert b"".join(patches["patches"].to_pylist()) == store.patches(window).tobytes()
    segments = read(tmp_path, "segments")
    assert segments["frames"].to_pylist() == [segment.frames for segment in store.segments()]
    assert pc.sum(segments["frames"]).as_py() == len(window)

    rows = re.findall(r"\|\s*(\S+)\|(\d{4}-\d\d-\d\d)\|\s*(\d+)\|", printed)
    assert rows == [("007", "2024-03-01", "65"), ("front", "2024-03-01", "70"), ("süd", "2024-03-01", "70")]

    # What the page warns of is so; if it no longer is, the warning can go.
    assert int(re.findall(r"^globbed: (\d+)", printed, re.M)[0]) > len(window)
    assert re.findall(r"^named: (.*)", printed, re.M) == ["007 front sÃ¼d"]
    assert re.findall(r"^numbers: (.*)", printed, re.M) == ["(stream_id,IntegerType)"]


def test_the_page_names_the_connector_that_is_tested() -> None:
    pom = (ROOT / "infra" / "spark" / "pom.xml").read_text(encoding="utf-8")
    version = re.findall(r"<delta.version>(.*)</delta.version>", pom)
    assert re.findall(r"io\.delta:delta-spark_2\.12:(\S+)", PAGE) == version
