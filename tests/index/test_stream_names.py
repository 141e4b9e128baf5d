"""Stream ids in any script: which names are valid, and every operation of the store on streams with such names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from index.commits import bulk
from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.errors import UnknownStream, UsageError
from index.patches.codec import PatchEncoding
from index.schemas import StreamId, check_stream_id, compose_stream_id, decode_stream_id, encode_stream_id
from index.standing_questions import StandingQuestionStore
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

NAMES = ("前门", "后门", "Straße", "Strasse", "الباب", "दरवाज़ा", "ประตู", "front", "Front", "café", "cafe")
"""Names in several scripts; some differ only by case, an accent or a combining mark."""

FORGET = {"whole": None, "before": BEGAN + 5 * SECOND}


@pytest.mark.parametrize("name", [*NAMES, "1", "٣", "a..b", "x" * 128, "cam_1.main-2"])
def test_valid_names(name: str) -> None:
    assert compose_stream_id(name) == unicodedata.normalize("NFC", name)
    assert decode_stream_id(encode_stream_id(name)) == name
    assert compose_stream_id(unicodedata.normalize("NFD", name)) == compose_stream_id(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 128 characters"),
        ("x" * 129, "1 to 128 characters"),
        ("门" * 23, "200 bytes"),  # 9 bytes each
        ("cafe\u0301", "composed"),
        *((name, "letters and digits") for name in (".", "..", ".a", "-a", "_a", "a/b", "a\\b", "a b", "a\tb", "a\n")),
        *((name, "letters and digits") for name in ("a\0", "a\u202eb", "\u0301a", "a\ud800", "a'b", "a%20b", "a:b")),
    ],
)
def test_invalid_names(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"cannot name a stream: .*{why}") as caught:
        check_stream_id(name)
    assert len(str(caught.value)) < 300


def test_a_huge_name_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="1 to 128 characters"):
        compose_stream_id("e\u0301" * 5_000_000)


def test_a_field_of_a_message_composes_the_name() -> None:
    assert TypeAdapter(StreamId).validate_python("cafe\u0301") == "café"


def test_a_store_refuses_a_decomposed_name(store: Store) -> None:
    records = make_records("cafe\u0301")
    with pytest.raises(UsageError, match="composed"):
        store.append(make_segment(records), records)


@pytest.mark.parametrize("kind", ["fp16", "differential"])
@pytest.mark.parametrize("how", ["append", "bulk", "offset"])
@pytest.mark.parametrize("before", FORGET.values(), ids=list(FORGET))
def test_every_operation_on_streams_of_any_script(tmp_path: Path, kind: str, how: str, before: int | None) -> None:
    encoding = PatchEncoding(kind=kind)
    store = Store.create(tmp_path / "store", PAIR, encoding)
    composed = tuple(compose_stream_id(name) for name in NAMES)
    for chunk in range(4):  # as many files as compaction needs
        _store_chunk(store, how, chunk)
    assert [s.stream_id for s in store.streams()] == sorted(composed)
    assert store.seal() == len(NAMES)
    compacted = {table.table: table.partitions for table in store.compact(composed[:2])}
    if how != "offset":  # which commits all streams together
        assert compacted["frames"] == 2
    assert store.verify() == []
    _check_streams(store, 0, 40)
    questions = StandingQuestionStore(store.url)
    for number, name in enumerate(composed):
        questions.write_state(name, str(number).encode())
    assert [questions.read_state(name) for name in composed] == [str(n).encode() for n in range(len(NAMES))]
    left = [name for name in composed if name not in composed[::2]]
    for name in composed[::2]:
        assert store.forget(unicodedata.normalize("NFD", name), before) == (40 if before is None else 5)
    assert store.verify() == []
    assert [s.stream_id for s in store.streams()] == sorted(left if before is None else composed)
    if before is None:
        gone = {encode_stream_id(name) for name in composed[::2]}
        assert not [
            p for p in Path(store.url).rglob("*") if p.stem in gone or p.name.removeprefix("stream_id=") in gone
        ]
    with pytest.raises(UnknownStream):
        store.forget("nothere")


def _store_chunk(store: Store, how: str, chunk: int) -> None:
    """Store ten seconds of every stream, in one way of storing."""
    batch = []
    for name in NAMES:
        records = make_records(compose_stream_id(name), BEGAN + 10 * chunk * SECOND, 10, seed=chunk)
        batch.append(OffsetSegment("footage/0", make_segment(records, chunk), records))
    if how == "append":
        for each in batch:
            assert store.append(each.segment, each.frames)
    elif how == "bulk":
        written = [bulk.write(store.tables, each.segment, each.frames) for each in batch]
        assert bulk.commit(store.tables, [each for each in written if each is not None]) == len(batch)
    else:
        advance = OffsetAdvance(chunk or None, chunk + 1)
        assert len(OffsetCommitter(store.tables).commit(batch, {"footage/0": advance})) == len(batch)


def _check_streams(store: Store, first: int, frames: int) -> None:
    """Assert that a window, patches, pictures and search find each stream's own frames under its decoded name."""
    for name in NAMES:
        composed = compose_stream_id(name)
        window = store.window([name])
        assert window.streams == [composed]
        assert len(window) == frames - first
        patches = store.patches(window)
        expected = np.concatenate([make_records(n=10, seed=chunk).patches for chunk in range(4)])
        assert np.allclose(patches, expected[first:], atol=0.05, rtol=0.05)
        assert len(store.pictures(window)) == len(window)
        assert {hit.stream_id for hit in store.search(window.frame_vectors[0], top=3, streams=[name])} == {composed}


def test_a_killed_forget_of_such_a_stream_is_completed(store: Store, fill: Callable[..., object]) -> None:
    fill("前门", "后门", chunks=1)
    for table in store.tables.all():
        table.delete("stream_id = '前门'")  # as a `forget` does that is killed before it removes files
    assert store.forget("前门") == 0
    assert not list(Path(store.url).rglob("stream_id=%E5%89%8D*"))
    assert store.verify() == []
    assert [s.stream_id for s in store.streams()] == ["后门"]
