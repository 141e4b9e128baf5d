"""The short form of the messages driver."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.messages import fuzz_messages


def test_every_hostile_record_is_stored_or_kept_as_a_dead_letter(tmp_path: Path) -> None:
    result = fuzz_messages(tmp_path, seed=20_240_301, cases=18_000)
    assert result.failures == []
    assert result.outcomes["records"] == 18_000
    assert result.outcomes["stored"] > 500
    assert result.outcomes["MessageInvalid"] > 9_000
