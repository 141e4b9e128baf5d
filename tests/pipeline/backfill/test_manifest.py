"""Manifests in every format, patterns of file names, and errors that name the row."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import SourceNotFound, UsageError
from pipeline.backfill.manifest import Entry, is_manifest, read_manifest

AT = datetime(2024, 3, 1, 8, tzinfo=UTC)
ROWS: list[dict[str, str | None]] = [
    {"uri": "s3://bucket/a.mp4", "stream": "front", "start": "2024-03-01T09:00:00+01:00"},
    {"uri": "/data/back.mp4", "stream": None, "start": None},
    {"uri": "clips/side_20240301T080000Z.mkv", "stream": "", "start": ""},
]


def write(path: Path, rows: list[dict[str, str | None]]) -> str:
    if path.suffix == ".csv":
        lines = ["uri,stream,start", *(",".join(row[k] or "" for k in ("uri", "stream", "start")) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet":
        columns = {k: [row[k] or None for row in rows] for k in ("uri", "stream")}
        times = [datetime.fromisoformat(str(row["start"])) if row["start"] else None for row in rows]
        pq.write_table(pa.table({**columns, "start": pa.array(times, pa.timestamp("us", "UTC"))}), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "ndjson"])
def test_every_format_gives_the_same_entries(tmp_path: Path, suffix: str) -> None:
    assert read_manifest(write(tmp_path / f"m.{suffix}", ROWS)) == [
        Entry(uri="s3://bucket/a.mp4", stream="front", start=AT),
        Entry(uri="/data/back.mp4", stream="back"),
        Entry(uri=str(tmp_path / "clips/side_20240301T080000Z.mkv"), stream="side"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"uri": "a.mp4", "camera": "x"}', "row 1: camera: this key is not known"),
        ('{"stream": "x"}', "row 1: uri: Field required"),
        ('{"uri": " "}', "row 1: uri: the uri is empty"),
        ('{"uri": "a.mp4"}\n{"uri": "b.mp4", "start": "2024-03-01T08:00:00"}', "row 2: start: .* has no time zone"),
        ('{"uri": "a.mp4", "start": "noon"}', "row 1: start"),
        ('{"uri": "a.mp4", "start": 5}', "row 1: start: 5 is not a time"),
        ('{"uri": "a.mp4", "stream": "../x"}', "row 1: '../x' cannot name a stream"),
        ('{"uri": "a.mp4"}\n{"uri": "b.mp4"}\n{"uri": "./a.mp4"}', "row 3: .*a.mp4 is in row 1 already"),
        ('{"uri": "a.mp4"}\n["b.mp4"]', "line 2: not an object"),
        ('{"uri": "a.mp4"}\n{oops', "line 2: not JSON"),
        ("", "names no file"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UsageError, match=expected):
        read_manifest(str(tmp_path / "m.jsonl"))


def test_other_kinds_of_wrong_manifests(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("uri,stream,start\na.mp4,x\n")
    with pytest.raises(UsageError, match="line 2: not 3 columns"):
        read_manifest(str(tmp_path / "short.csv"))
    (tmp_path / "m.parquet").write_text("uri,stream")
    with pytest.raises(UsageError, match="not a parquet manifest"):
        read_manifest(str(tmp_path / "m.parquet"))
    (tmp_path / "latin.csv").write_bytes("uri\nstraße.mp4\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_manifest(str(tmp_path / "latin.csv"))
    pq.write_table(pa.table({"uri": ["a.mp4"], "start": pa.array([0], pa.timestamp("us"))}), tmp_path / "naive.parquet")
    with pytest.raises(UsageError, match="no time zone"):
        read_manifest(str(tmp_path / "naive.parquet"))
    with pytest.raises(SourceNotFound, match="no manifest there"):
        read_manifest(str(tmp_path / "absent.csv"))
    with pytest.raises(UsageError, match="leave --names out"):
        read_manifest(write(tmp_path / "m.csv", ROWS), names="{stream}.mp4")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("gate/20240301/080000.mp4", "door.2/20240301/093015.mp4", "door.2/20240301/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_names_are_read_by_a_pattern(tree: Path) -> None:
    names = "{stream}/{start:%Y%m%d/%H%M%S}.*"
    assert read_manifest(str(tree), names=names) == [
        Entry(
            uri=str(tree / "door.2/20240301/093015.mp4"),
            stream="door.2",
            name_start=datetime(2024, 3, 1, 9, 30, 15, tzinfo=UTC),
            name_zone="UTC",
        ),
        Entry(uri=str(tree / "gate/20240301/080000.mp4"), stream="gate", name_start=AT, name_zone="UTC"),
    ]
    assert [e.stream for e in read_manifest(f"{tree}/*/*/*.mp4", names="{stream}/*/*.mp4")] == ["door.2", "gate"]
    day_of_year = tree / "gate" / "cam_2024061_0800.mp4"
    day_of_year.write_bytes(b"x")
    [entry] = read_manifest(str(day_of_year), names="{stream}_{start:%Y%j_%H%M}.mp4")
    assert (entry.stream, entry.name_start) == ("cam", AT)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("{stream}-*.mp4", "does not match"),
        ("{camera}/*", r"\{camera\} is unknown"),
        ("{start:%Y-%q}.mp4", "%q is unknown"),
        ("{start:%H%M%S}.mp4", "needs a year and a day"),
        ("{stream}/{stream}.mp4", "once"),
    ],
)
def test_patterns_that_do_not_fit(tree: Path, names: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        read_manifest(str(tree), names=names)


def test_a_time_in_a_name_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "cam_20240231.mp4").write_bytes(b"x")
    with pytest.raises(UsageError, match="the time in its name is invalid"):
        read_manifest(str(tmp_path), names="{stream}_{start:%Y%m%d}.mp4")


def test_without_a_pattern_names_are_read_as_ingest_reads_them(tmp_path: Path) -> None:
    (tmp_path / "front_2024-03-01T08-00-00Z.mp4").write_bytes(b"x")
    [entry] = read_manifest(str(tmp_path))
    assert (entry.stream, entry.start) == ("front", None)
    with pytest.raises(SourceNotFound):
        read_manifest(str(tmp_path / "*.mkv"))
    assert is_manifest("s3://b/M.CSV")
    assert not is_manifest("s3://b/*.mp4")


def test_a_manifest_of_a_web_server_names_no_local_file(tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    (tmp_path / "good.csv").write_text("uri,stream\nhttps://example.org/a.mp4,front\n")
    (tmp_path / "url.csv").write_text("uri,stream\nfile:///etc/a.mp4,front\n")
    (tmp_path / "path.csv").write_text("uri,stream\nhttps://example.org/a.mp4,front\na.mp4,front\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{server.server_port}"
    try:
        assert read_manifest(f"{site}/good.csv") == [Entry(uri="https://example.org/a.mp4", stream="front")]
        for name, row in (("url", 1), ("path", 2)):
            with pytest.raises(UsageError, match=f"row {row}: a manifest of a web server must not name a local file"):
                read_manifest(f"{site}/{name}.csv")
        with pytest.raises(SourceNotFound, match="no such file"):
            read_manifest(f"{site}/absent.csv")
    finally:
        server.shutdown()
        server.server_close()
