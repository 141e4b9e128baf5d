"""Selection from a profile, and the rows that are read beside the keyframes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import UsageError
from index.keyframes import select_keyframes
from model.profiles.profile import DfmSpec, load_profile
from model.selection import check_selection, keyframe_mask, rows_to_read, select_rows

RNG = np.random.default_rng(5)
QUERY = RNG.standard_normal(8).astype(np.float32)
VECTORS = (QUERY + 1.5 * RNG.standard_normal((200, 8))).astype(np.float32)


def test_a_profile_gives_k_tau_floor_fill_and_the_rule_for_equality() -> None:
    micro = load_profile("micro").model_copy(update={"k": 6, "tau": 0.6, "redundancy": "fixed"})
    assert select_rows(VECTORS, QUERY, micro).rows.tolist() == select_keyframes(VECTORS, QUERY, k=6, tau=0.6).tolist()
    released = micro.model_copy(update={"dfm": DfmSpec(mode="released", relevance_floor=0.8, gap_fill=True)})
    expected = select_keyframes(VECTORS, QUERY, k=6, tau=0.6, fill=True, floor=0.8, inclusive=True)
    assert select_rows(VECTORS, QUERY, released).rows.tolist() == expected.tolist()
    assert len(select_keyframes(VECTORS, QUERY, k=6, tau=0.6, floor=0.8, inclusive=True)) < len(expected) == 6


def test_a_cosine_equal_to_tau_is_accepted_in_released_mode_alone() -> None:
    vectors, query = np.array([[1, 0], [3, 4]], np.float32), np.array([1, 0], np.float32)
    paper = load_profile("micro").model_copy(update={"tau": 0.6, "redundancy": "fixed"})
    released = paper.model_copy(update={"dfm": DfmSpec(mode="released")})
    assert select_rows(vectors, query, paper).rows.tolist() == [0]
    assert select_rows(vectors, query, released).rows.tolist() == [0, 1]


def test_k_and_tau_override_the_profile() -> None:
    micro = load_profile("micro").model_copy(update={"redundancy": "fixed"})
    expected = select_keyframes(VECTORS, QUERY, k=5, tau=0.5, fill=True)
    assert select_rows(VECTORS, QUERY, micro, k=5, tau=0.5, fill=True).rows.tolist() == expected.tolist()
    with pytest.raises(UsageError, match="k must be at least 1"):
        select_rows(VECTORS, QUERY, micro, k=0)


def test_mask() -> None:
    assert keyframe_mask(np.array([3, 0]), 5).tolist() == [True, False, False, True, False]
    assert keyframe_mask(np.zeros(0, np.int64), 2).tolist() == [False, False]


@pytest.mark.parametrize(
    ("question", "k", "tau", "message"),
    [(" ", None, None, "empty"), ("what", 0, None, "k must"), ("what", None, -1.0, "tau must")],
)
def test_what_is_invalid_before_anything_is_loaded(
    question: str, k: int | None, tau: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_selection(question, k, tau)


@given(st.data())
def test_thinning_keeps_keyframes_and_spreads_the_rest(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300))
    k = data.draw(st.integers(0, min(n, 20)))
    most = data.draw(st.integers(max(1, k), 320))
    keyframes = np.array(data.draw(st.permutations(range(n)))[:k], np.int64)
    rows = rows_to_read(n, keyframes, most)
    assert (np.diff(rows) > 0).all()
    assert len(rows) == min(n, most)
    assert set(keyframes.tolist()) <= set(rows.tolist())
    others = np.setdiff1d(np.arange(n), keyframes)
    kept = np.searchsorted(others, np.setdiff1d(rows, keyframes))
    if len(kept) > 1:  # evenly: the steps between kept ones differ by one at most
        steps = np.diff(kept)
        assert steps.max() - steps.min() <= 1


def test_thinning_is_in_the_middle_of_equal_stretches() -> None:
    assert rows_to_read(10, np.array([0]), 4).tolist() == [0, 2, 5, 8]
    assert rows_to_read(10, np.array([9, 1]), 2).tolist() == [1, 9]
