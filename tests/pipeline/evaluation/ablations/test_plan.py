"""Rows of an ablation, paired tests of many rows, and counted operations."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.errors import UsageError
from model.profiles.profile import HicoSpec, Profile, load_profile
from pipeline.bench.cost import Counts
from pipeline.bench.counted.merging import merging_flops, question_flops
from pipeline.evaluation.ablations.plan import GROUPS, base_row, plan_rows
from pipeline.evaluation.scoring.pairs import holm


@pytest.fixture(scope="module")
def micro() -> Profile:
    """The shipped profile."""
    return load_profile("micro")


def test_rows_of_the_tables(micro: Profile) -> None:
    """Every group begins with the profile as it is, and has the settings of its table."""
    groups, base = plan_rows(micro), base_row(micro)
    assert list(groups) == list(GROUPS)
    assert all(rows[0] == base and len(set(rows)) == len(rows) for rows in groups.values())
    assert base.apply(micro) == micro
    selectors = {(row.selector, row.merging) for row in groups["selectors"]}
    assert selectors == {(s, m) for s in ("dks", "top-k", "uniform") for m in ("dfm", "none")}
    assert sorted(row.k for row in groups["keyframes"]) == [1, 2, 4, 8, 16, 32, 64]
    assert {(row.alpha, row.tau) for row in groups["temperature"]} == {
        (a, t) for a in (1, 0.1, 0.01, 0.001) for t in (0.35, 0.5, 0.85, 1)
    }
    assert sorted(row.lam for row in groups["similarity"]) == [0, 0.5, 1, 2]
    assert {(row.merging, row.k) for row in groups["mergers"]} == {
        (m, k) for m in ("dfm", "mean", "none", "dfm tuned", "mean tuned", "single token", "q-former") for k in (4, 32)
    }
    names = {row.name for rows in groups.values() for row in rows}
    assert len(names) == len({row for rows in groups.values() for row in rows})
    assert {row.merging for row in plan_rows(micro, trained=())["mergers"]} == {"dfm", "mean", "none"}


def test_a_row_changes_what_it_names(micro: Profile) -> None:
    changed = plan_rows(micro)["temperature"][1].apply(micro)
    assert (changed.dfm.alpha, changed.tau) == (1.0, 0.35)
    assert changed.model_copy(update={"dfm": micro.dfm, "tau": micro.tau}) == micro


def test_profiles_without_keyframes_or_settings_are_errors(micro: Profile) -> None:
    with pytest.raises(UsageError, match="reads clips"):
        plan_rows(micro.model_copy(update={"hico": HicoSpec()}))
    with pytest.raises(UsageError, match="learned"):
        plan_rows(load_profile("vilamp"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_against_its_definition(values: list[float]) -> None:
    """Step-down: the i-th smallest p times the tests that are left, never below the one before."""
    adjusted, highest = holm(values), 0.0
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
    for place, (p, got) in enumerate(sorted(zip(values, adjusted, strict=True))):
        highest = max(highest, min(1.0, (len(values) - place) * p))
        assert got == pytest.approx(highest)


def test_operations_of_mergings(micro: Profile) -> None:
    """A dot product and a weighted sum for DFM, one sum for the mean, keys and values for a Q-former."""
    shape = micro.shape
    assert shape is not None
    counts = Counts(merged=10, before=0, keyframes=2, keyframe_tokens=36)
    values = 10 * 36 * 192
    assert merging_flops(shape, "mean", counts) == values
    assert merging_flops(shape, "none", counts) == merging_flops(shape, "single token", counts) == 0
    assert 4 * values < merging_flops(shape, "dfm", counts) < 8 * values
    assert merging_flops(shape, "q-former", counts) == 2 * 10 * (2 * 36 * 192**2 + 2 * 36 * 192 + 6 * 192**2)
    with pytest.raises(ValueError, match="no merging"):
        merging_flops(shape, "sum", counts)
    whole = question_flops(shape, "dfm", 2, 10, 200)
    assert whole > question_flops(shape, "mean", 2, 10, 200) > question_flops(shape, "none", 2, 0, 190)
