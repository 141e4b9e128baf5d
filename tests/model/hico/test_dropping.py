"""Selection of progressive dropping against loops in whole numbers and float64."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.hico.dropping import evenly_spaced, most_attended, remaining_rows
from model.profiles.profile import DroppingSpec

PUBLISHED = DroppingSpec()


def test_the_published_setting_saves_39_percent_of_visual_tokens() -> None:
    lengths = PUBLISHED.lengths(28, 160_090, 160_000)
    assert lengths == [160_090] * 4 + [120_090] * 14 + [40_090] * 10
    read = sum(length - 90 for length in lengths)
    assert read / (28 * 160_000) == pytest.approx(0.607, abs=0.0005)


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [(0, [0, 0, 0]), (1, [1, 0, 0]), (3, [3, 2, 0]), (4, [4, 3, 1]), (5, [5, 3, 1]), (64, [64, 48, 16])],
)
def test_shares_count_from_the_whole_prompt_and_round_down(tokens: int, counts: list[int]) -> None:
    assert PUBLISHED.kept(tokens) == counts


def test_classes_of_the_published_code_have_four_groups() -> None:
    spec = DroppingSpec(layers=(8, 16, 24), ratios=(1, 0.5, 0.25, 0.125), kind="attention")
    assert spec.kept(1000) == [1000, 500, 250, 125]
    assert spec.lengths(28, 1090, 1000) == [1090] * 8 + [590] * 8 + [340] * 8 + [215] * 4


@pytest.mark.parametrize(
    ("kind", "uniform"),
    [
        ("uniform", [True, True, True]),
        ("attention", [False, False, False]),
        ("uniform0_attention", [True, False, False]),
        ("uniform1_attention", [True, True, False]),
    ],
)
def test_which_stages_space_evenly(kind: str, uniform: list[bool]) -> None:
    spec = DroppingSpec.model_validate({"layers": [8, 16, 24], "ratios": [1, 0.5, 0.25, 0.125], "kind": kind})
    assert [spec.spaces_evenly(stage) for stage in range(3)] == uniform


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count))))
def test_even_spacing_is_linspace_rounded_down(sizes: tuple[int, int]) -> None:
    count, kept = sizes
    expected = [int(Fraction(i * (count - 1), kept - 1)) if kept > 1 else 0 for i in range(kept)]
    assert evenly_spaced(count, kept).tolist() == expected
    assert len(set(expected)) == kept
    if kept > 1:
        assert (expected[0], expected[-1]) == (0, count - 1)


def test_even_spacing_of_many_tokens_is_exact() -> None:
    count, kept = 3 * (119_999) + 1, 120_000  # every third
    assert torch.equal(evenly_spaced(count, kept), 3 * torch.arange(kept))


@given(st.lists(st.sampled_from([0.0, 0.1, 0.1 + 1e-9, 0.25, 0.5]), min_size=1, max_size=64), st.data())
def test_the_most_attended_are_those_of_a_loop_and_of_equals_the_earlier(
    values: list[float], data: st.DataObject
) -> None:
    kept = data.draw(st.integers(0, len(values)))
    left, expected = list(range(len(values))), list[int]()
    for _ in range(kept):
        best = left[0]
        for index in left:
            if values[index] > values[best]:
                best = index
        left.remove(best)
        expected.append(best)
    got = most_attended(torch.tensor(values, dtype=torch.float64), kept)
    assert got.tolist() == sorted(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_text_remains_whatever_is_chosen(mask: list[bool], data: st.DataObject) -> None:
    visual = [row for row, flag in enumerate(mask) if flag]
    chosen = sorted(data.draw(st.sets(st.integers(0, len(visual) - 1)))) if visual else []
    expected = [row for row, flag in enumerate(mask) if not flag or row in {visual[i] for i in chosen}]
    given_mask = torch.tensor(mask)
    assert remaining_rows(given_mask, torch.tensor(chosen, dtype=torch.int64)).tolist() == expected
    assert given_mask.tolist() == mask
