"""The signature of a URL that gives access to footage is in nothing that is stored, sent or printed."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index.store import Store
from ingest.file_ingest import ingest_sources
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import KafkaSettings
from ingest.messages import DeadLetter, parse_segment
from ingest.sources.naming import read_name
from tests.support.footage import make_video
from tests.support.records import PAIR

SECRET = "hunter2hunter2"
QUERIES = (
    f"sv=2022-11-02&sr=b&sp=r&se=2030-01-01T00%3A00%3A00Z&sig={SECRET}%2B%2F%3D",  # Azure
    f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={SECRET}%2F20240301%2Fs3&X-Amz-Signature={SECRET}",  # S3
    f"GoogleAccessId=a%40b&Expires=1893456000&Signature={SECRET}",  # Google
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with one video; it ignores queries, as an object store does after it has checked them."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    folder = tmp_path_factory.mktemp("site")
    make_video(folder / "front_2024-03-01T08-00-00Z.mp4", seconds=3)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Encoder:
    """Vectors of ones."""

    def __init__(self, *, patches: bool) -> None:
        self.patches = patches

    def encode_frames(self, frames: Any, clips: Any = None) -> Any:
        n = len(frames)
        if self.patches:
            return np.ones((n, 12), np.float32), np.ones((n, 4, 12), np.float16)
        return np.full((n, 16), 0.25, np.float32)

    frame_features = encode_frames


class Outbox:
    """Keeps the bytes of all messages."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        self.sent += [topic.encode(), (key or "").encode(), value or b""]

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("query", QUERIES)
def test_a_stream_id_holds_no_signature(query: str) -> None:
    for host in ("account.blob.core.windows.net", f"user:{SECRET}@host"):
        name = read_name(f"https://{host}/footage/front_2024-03-01T08-00-00Z.mp4?{query}#{SECRET}")
        assert (name.stream, name.start) == ("front", datetime(2024, 3, 1, 8, tzinfo=UTC))
    # Neither where the path has no name of its own.
    assert SECRET not in read_name(f"https://account.blob.core.windows.net/?{query}").stream
    assert SECRET not in read_name(f"https://user:{SECRET}@host").stream


@pytest.mark.parametrize("query", QUERIES)
def test_a_store_and_its_report_hold_no_signature(site: str, tmp_path: Path, query: str) -> None:
    encoders: Any = SimpleNamespace(frame=Encoder(patches=False), patch=Encoder(patches=True), pair=PAIR)
    store = Store.create(tmp_path / "store", PAIR)
    urls = [f"{site}/front_2024-03-01T08-00-00Z.mp4?{query}", f"{site}/absent.mp4?{query}"]
    report = ingest_sources(urls, store=store, encoders=encoders)
    assert [(file.stream_id, file.frames, bool(file.problem)) for file in report.files] == [
        ("front", 3, False),
        ("absent", 0, True),
    ]
    assert SECRET not in report.model_dump_json()
    (segment,) = store.segments()
    assert segment.uri == f"{site}/front_2024-03-01T08-00-00Z.mp4?***"
    for path in (tmp_path / "store").rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("query", QUERIES)
def test_messages_hold_no_signature(site: str, query: str) -> None:
    outbox = Outbox()

    @contextmanager
    def sender() -> Iterator[Outbox]:
        yield outbox

    url = f"{site}/front_2024-03-01T08-00-00Z.mp4?{query}"
    (file,) = publish_files([url], settings=KafkaSettings(), sender=sender)
    assert (file.stream_id, file.segments, file.problem) == ("front", 1, None)
    assert SECRET not in file.model_dump_json()
    assert parse_segment(outbox.sent[2]).payload()
    assert all(SECRET.encode() not in each for each in outbox.sent)


@pytest.mark.parametrize("query", QUERIES)
def test_the_reason_of_a_dead_letter_holds_no_signature(query: str) -> None:
    """Its value is the message of somebody else, as it came, so that it can be replayed."""
    letter = DeadLetter.of(
        b"{}",
        topic="segments",
        partition=0,
        offset=1,
        key=b"front",
        reason=f"https://host/a.mp4?{query}: no such object",
        failed_at=datetime.now(UTC),
        error="SourceNotFound",
        where="fetch",
        attempt=1,
        group="g",
    )
    assert letter.reason == "https://host/a.mp4?***: no such object"
    assert SECRET.encode() not in letter.to_bytes()
