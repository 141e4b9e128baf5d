"""The short form of the sequences driver."""

from __future__ import annotations

import pytest

from tests.fuzz.sequences import fuzz_sequences


@pytest.mark.timeout(1800)
def test_no_frame_is_lost_or_doubled_in_any_order_of_operations_kills_and_full_disks() -> None:
    result = fuzz_sequences(seed=3, cases=100)
    assert result.failures == []
    assert result.outcomes["sequences"] >= 100
    assert result.kills > 50
    for name in ("ingest", "backfill", "consume", "forget", "compact"):
        assert result.outcomes[f"kills of {name}"] > 0, result.outcomes
    assert result.outcomes["holds"] > 5, result.outcomes
    assert result.outcomes["refused deletions"] > 0, result.outcomes
    assert sum(count for name, count in result.outcomes.items() if name.startswith("full disks")) > 10
