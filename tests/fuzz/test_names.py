"""The short form of the names driver."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.names import fuzz_names


def test_every_name_is_listed_lossless_and_stays_in_its_folder(tmp_path: Path) -> None:
    result = fuzz_names(tmp_path, seed=7, cases=120)
    assert result.failures == []
    assert result.outcomes["files planned"] > 200
    assert result.outcomes["files skipped"] > 40
    assert result.outcomes["streams valid"] > 40
    assert result.outcomes["streams refused"] > 100
    assert result.outcomes["streams stored"] == 5
