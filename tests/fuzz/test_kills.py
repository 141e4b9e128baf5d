"""The short form of the kills driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.kills import WRITERS, fuzz_kills

pytestmark = pytest.mark.system


@pytest.mark.timeout(1800)
def test_after_a_kill_at_a_commit_boundary_the_same_command_gives_the_same_store(tmp_path: Path) -> None:
    result = fuzz_kills(tmp_path, seed=7, cases=6)
    assert result.failures == []
    assert result.kills >= 6
    for name in WRITERS:
        assert any(each.startswith(f"{name}: before") for each in result.outcomes), result.outcomes
