"""Patch encodings: sizes, error bounds, damaged rows, and stores of every encoding."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.delta.table import StoreTable
from index.errors import StoreCorrupt, UsageError
from index.patches.codec import (
    CHAIN,
    PatchEncoding,
    check_row,
    decode_chain,
    decode_int8,
    drop_first_rows,
    encode_chain,
    encode_int8,
    split_chains,
)
from index.records import FrameRecords
from index.schemas import TABLES
from index.store import Store
from tests.support.killed_append import KILLED, start
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

Patches = NDArray[np.float16]
DIFFERENTIAL = PatchEncoding(kind="differential", epsilon=1e-2)
DAY = 86_400 * SECOND


def scene(seed: int, n: int, m: int, d: int, noise: float, changes: float, scale: float = 1.0) -> Patches:
    """Still patches with camera noise, of which a share becomes something else in each frame."""
    rng = np.random.default_rng(seed)
    current = rng.normal(size=(m, d)) + rng.normal(size=d)
    frames = []
    for _ in range(n):
        new = rng.random(m) < changes
        current[new] = rng.normal(size=(int(new.sum()), d))
        frames.append(scale * (current + noise * rng.normal(size=(m, d))))
    return np.array(frames).astype(np.float16)


def decoded(rows: list[NDArray[np.uint8]], m: int, d: int) -> Patches:
    out = np.full((len(rows), m, d), np.nan, np.float16)
    decode_chain(rows, m, d, list(out))
    return out


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.asarray((x * y).sum(-1) / np.maximum(lengths, 1e-300))


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 19), st.integers(1, 24))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    SHAPES,
    st.sampled_from([0.0, 1e-3, 0.03, 0.5]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([1e-4, 1.0, 300.0]),
    st.sampled_from([0.0, 1e-5, 1e-3, 0.05, 0.5]),
)
def test_the_bound_holds_for_every_patch_and_every_query(
    seed: int, shape: tuple[int, int, int], noise: float, changes: float, scale: float, epsilon: float
) -> None:
    n, m, d = shape
    true = scene(seed, n, m, d, noise, changes, scale)
    rows = encode_chain(true, epsilon)
    rebuilt = decoded(rows, m, d)
    # What quantising alone leaves: the rows of a chain in which every patch is written.
    written = np.ones((n, m), bool)
    for place in range(1, n):
        written[place] = np.unpackbits(rows[place][2 : 2 + (m + 7) // 8], count=m).astype(bool)
    alive = np.linalg.norm(true.astype(np.float64), axis=-1) > 0
    cosine = cosines(true, rebuilt)
    assert (cosine[alive & ~written] >= 1 - epsilon - 1e-12).all()
    # A written patch is off by half a step a channel at most: its cosine is the quantiser's own.
    step = rows[0][2 + 2 * d : 2 + 4 * d].view("<f2").astype(np.float64)
    off = np.abs(rebuilt.astype(np.float64) - true.astype(np.float64))[written]
    assert (off <= 0.5 * step + 2e-3 * np.abs(true.astype(np.float64))[written] + 1e-6).all()
    rng = np.random.default_rng(seed)
    worst = true.astype(np.float64) / np.maximum(
        np.linalg.norm(true.astype(np.float64), axis=-1, keepdims=True), 1e-300
    )
    apart = rebuilt.astype(np.float64)
    apart = worst - apart / np.maximum(np.linalg.norm(apart, axis=-1, keepdims=True), 1e-300)
    for query in (*rng.normal(size=(5, d)), *apart.reshape(-1, d)[:20]):  # at random, and the worst there is
        moved = np.abs(cosines(true, query) - cosines(rebuilt, query))
        limit = np.sqrt(2 * np.maximum(epsilon, 1 - cosine))
        assert (moved <= limit + 1e-7)[alive].all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), SHAPES, st.sampled_from([1e-6, 1.0, 65_504.0]))
def test_int8_is_within_half_a_step(seed: int, shape: tuple[int, int, int], largest: float) -> None:
    n, m, d = shape
    rng = np.random.default_rng(seed)
    true = (rng.uniform(-1, 1, size=(n, m, d)) * largest).astype(np.float16)
    out = np.empty_like(true)
    decode_int8(encode_int8(true), m, d, list(out))
    wide = true.astype(np.float64)
    step = (wide.max(1) - wide.min(1)) / 255
    # 6e-8: the smallest step that float16 has; a thousandth: rounding of step and result. Where the last level would
    # lie beyond float16, the one before stands for it.
    limit = np.where(np.abs(wide) > 65_000, 1.01 * step[:, None] + 64, 0.502 * step[:, None]) + np.abs(wide) * 1e-3
    assert np.isfinite(out).all()
    assert (np.abs(out.astype(np.float64) - wide) <= limit + 6e-8).all()


def test_a_still_picture_costs_bits_not_patches() -> None:
    true = np.repeat(scene(1, 1, 20, 8, 0.0, 0.0), 50, axis=0)
    rows = encode_chain(true, 1e-3)
    assert [len(row) for row in rows] == [2 + 4 * 8 + 20 * 8, *[2 + 3] * 49]


def test_only_what_changed_is_written() -> None:
    true = np.repeat(scene(1, 1, 20, 8, 0.0, 0.0), 3, axis=0)
    true[1:, 13] = -true[0, 13]
    rows = encode_chain(true, 1e-3)
    assert [len(row) for row in rows[1:]] == [2 + 3 + 8, 2 + 3]
    assert np.flatnonzero(np.unpackbits(rows[1][2:5])).tolist() == [13]
    assert (cosines(decoded(rows, 20, 8), true) > 0.999).all()


def test_slow_drift_never_leaves_the_bound() -> None:
    angles = np.linspace(0, np.pi, CHAIN)
    true = np.stack([np.cos(angles), np.sin(angles)], -1)[:, None].astype(np.float16)
    cosine = cosines(true, decoded(encode_chain(true, 0.01), 1, 2))
    assert cosine.min() >= 0.99
    assert cosine.min() < 0.999  # it does skip


def test_a_chain_without_its_first_rows_decodes_the_same() -> None:
    true = scene(3, 30, 9, 8, 0.02, 0.1)
    rows = encode_chain(true, 1e-3)
    whole = decoded(rows, 9, 8)
    for first in (1, 7, 29):
        left = drop_first_rows(rows, first, 9, 8)
        assert check_row(left[0], 9, 8) == 0
        assert np.array_equal(decoded(left, 9, 8), whole[first:])


@pytest.mark.parametrize("lost", [0, 1, 11])
def test_a_lost_row_is_noticed(lost: int) -> None:
    rows = encode_chain(scene(3, 12, 9, 8, 0.02, 0.5), 1e-3)
    del rows[lost]
    if lost == 11:  # the last one leaves a whole, shorter chain
        decoded(rows, 9, 8)
    else:
        with pytest.raises(ValueError, match="missing"):
            decoded(rows, 9, 8)


def test_a_row_of_another_size_is_noticed() -> None:
    rows = encode_chain(scene(3, 3, 9, 8, 0.02, 0.5), 1e-3)
    with pytest.raises(ValueError, match="bytes"):
        decoded([*rows[:2], rows[2][:-1]], 9, 8)
    with pytest.raises(ValueError, match="bytes"):
        decode_int8([np.zeros(7, np.uint8)], 9, 8, [np.empty((9, 8), np.float16)])


@pytest.mark.parametrize("encode", [encode_int8, lambda p: encode_chain(p, 1e-3)])
def test_values_that_are_not_finite_are_refused(encode: object) -> None:
    broken = scene(1, 2, 3, 4, 0.0, 0.0)
    broken[1, 2, 3] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        encode(broken)  # type: ignore[operator]


def test_chains_cover_everything() -> None:
    assert split_chains(2 * CHAIN + 1) == [slice(0, CHAIN), slice(CHAIN, 2 * CHAIN), slice(2 * CHAIN, 2 * CHAIN + 1)]


# ---- stores --------------------------------------------------------------------------------------------------------


def records(n: int = 300, began: int = BEGAN, stream: str = "front", seed: int = 0) -> FrameRecords:
    plain = make_records(stream, began, n, seed)
    values = {name: getattr(plain, name) for name in plain.__slots__ if name != "patches"}
    return FrameRecords(**values, patches=scene(seed, n, 4, 12, 0.01, 0.05))


def made(tmp_path: Path, encoding: PatchEncoding = DIFFERENTIAL) -> Store:
    return Store.create(tmp_path / "made", PAIR, encoding)


@pytest.mark.parametrize("kind", ["fp16", "int8", "differential"])
def test_any_window_rebuilds_as_the_whole_does(tmp_path: Path, kind: str) -> None:
    store = made(tmp_path, PatchEncoding.model_validate({"kind": kind, "epsilon": 1e-2}))
    written = [records(), records(150, BEGAN + 300 * SECOND, seed=1), records(stream="back", seed=2)]
    for chunk, some in enumerate(written):
        assert store.append(make_segment(some, chunk), some)
    window = store.window()
    whole = store.patches(window)
    true = np.concatenate([written[2].patches, written[0].patches, written[1].patches])
    assert cosines(whole, true).min() >= (1.0 if kind == "fp16" else 0.99) - 1e-9
    assert np.array_equal(whole, true) == (kind == "fp16")
    for rows in (np.array([299]), np.arange(140, 460, 7), np.arange(300, 310), np.array([0, 427, 428, 749])):
        assert np.array_equal(store.patches(window.take(rows)), whole[rows])
    inside = store.window(["front"], BEGAN + 200 * SECOND, BEGAN + 330 * SECOND)
    assert np.array_equal(store.patches(inside), whole[500:630])
    assert store.verify() == []


def test_a_differential_store_is_smaller(tmp_path: Path) -> None:
    sizes = {}
    for kind in ("fp16", "int8", "differential"):
        store = made(tmp_path / kind, PatchEncoding.model_validate({"kind": kind, "epsilon": 1e-2}))
        some = records(600)
        store.append(make_segment(some), some)
        sizes[kind] = sum(p.stat().st_size for p in Path(store.url, "patches").rglob("*.parquet"))
    assert sizes["differential"] < sizes["int8"] < sizes["fp16"]


def test_a_segment_over_midnight_rebuilds_on_both_sides(tmp_path: Path) -> None:
    store = made(tmp_path)
    midnight = BEGAN - BEGAN % DAY + DAY
    some = records(40, midnight - 15 * SECOND)
    store.append(make_segment(some), some)
    assert len(list(Path(store.url, "patches").rglob("*.parquet"))) == 2
    assert (cosines(store.patches(store.window()), some.patches) > 0.989).all()
    later = store.window(["front"], midnight + 5 * SECOND)
    assert np.array_equal(store.patches(later), store.patches(store.window())[20:])
    store.forget("front", midnight + 3 * SECOND)
    assert np.array_equal(store.patches(later), store.patches(store.window())[2:])
    assert store.verify() == []


def test_frames_stored_before_leave_no_gap(tmp_path: Path) -> None:
    store = made(tmp_path)
    first, again = records(20, BEGAN + 10 * SECOND), records(40, seed=5)
    store.append(make_segment(first), first)
    store.append(make_segment(again, 0, "other file"), again)
    window = store.window()
    assert len(window) == 40
    true = np.concatenate([again.patches[:10], first.patches, again.patches[30:]])
    assert (cosines(store.patches(window), true) > 0.989).all()
    assert store.verify() == []


@pytest.mark.parametrize("cut", [1, 77, CHAIN, CHAIN + 1, 299])
def test_what_is_left_after_forgetting_rebuilds_the_same(tmp_path: Path, cut: int) -> None:
    store = made(tmp_path)
    some, other = records(), records(stream="back", seed=2)
    store.append(make_segment(some), some)
    store.append(make_segment(other), other)
    before, untouched = store.patches(store.window(["front"])), store.patches(store.window(["back"]))
    assert store.forget("front", BEGAN + cut * SECOND) == cut
    assert np.array_equal(store.patches(store.window(["front"])), before[cut:])
    assert np.array_equal(store.patches(store.window(["back"])), untouched)
    assert store.verify() == []
    # Interrupted and done again, or done twice: the same.
    assert store.forget("front", BEGAN + cut * SECOND) == 0
    assert np.array_equal(store.patches(store.window(["front"])), before[cut:])


def test_a_crash_between_cutting_and_deleting_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path)
    some = records()
    store.append(make_segment(some), some)
    before = store.patches(store.window())

    def crash(self: StoreTable, *_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoreTable, "delete_once", crash)
        with pytest.raises(KeyboardInterrupt):
            store.forget("front", BEGAN + 50 * SECOND)
    again = Store.open(store.url)
    assert np.array_equal(again.patches(again.window()), before)
    (problem,) = again.verify()
    assert "`forget`, which did not finish" in problem
    assert again.forget("front", BEGAN + 50 * SECOND) == 50
    assert np.array_equal(again.patches(again.window()), before[50:])
    assert again.verify() == []


def test_verify_and_reading_notice_a_lost_row(tmp_path: Path) -> None:
    store = made(tmp_path)
    some = records(20)
    store.append(make_segment(some), some)
    at = f"arrow_cast({BEGAN + 4 * SECOND}, 'Timestamp(Microsecond, Some(\"UTC\"))')"
    store.tables.patches.delete(f"captured_at = {at}")
    assert any("cannot be decoded" in problem for problem in store.verify())
    with pytest.raises(StoreCorrupt, match="front: patches from 2024-03-01T08:00:00Z on cannot be decoded"):
        store.patches(store.window())


@pytest.mark.system
@pytest.mark.parametrize("stop", ["patches", "frames", "segments"])
def test_a_killed_append_is_finished_in_a_differential_store(tmp_path: Path, stop: str) -> None:
    store = made(tmp_path, PatchEncoding(kind="differential", epsilon=1e-3))
    child = start(KILLED, store.url, stop)
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    again = Store.open(store.url)
    assert again.segments() == []
    plain = make_records()
    assert again.append(make_segment(plain), plain)
    assert again.verify() == []
    assert (cosines(again.patches(again.window()), plain.patches) > 0.998).all()


def test_the_encoding_belongs_to_the_store(tmp_path: Path) -> None:
    store = made(tmp_path)
    assert Store.open(store.url).encoding == DIFFERENTIAL
    assert Store.open_or_create(store.url, PAIR).encoding == DIFFERENTIAL
    assert Store.open_or_create(store.url, PAIR, DIFFERENTIAL).encoding == DIFFERENTIAL
    with pytest.raises(UsageError, match=r"differential with ε = 0\.01, asked for int8"):
        Store.open_or_create(store.url, PAIR, PatchEncoding(kind="int8"))


def test_an_fp16_store_is_what_older_versions_read(store: Store) -> None:
    configuration = store.tables.segments.configuration()
    assert configuration["sightline.format"] == "1"
    assert "sightline.patches" not in configuration
    assert store.encoding.kind == "fp16"
    assert store.tables.patches.schema == TABLES["patches"][0]


def test_other_encodings_are_refused_by_older_versions(tmp_path: Path) -> None:
    assert made(tmp_path).tables.segments.configuration()["sightline.format"] == "2"
