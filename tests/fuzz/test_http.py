"""The short form of the http driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.http import fuzz_http

pytestmark = pytest.mark.system


@pytest.mark.timeout(1800)
def test_no_request_fails_in_the_service_or_stops_it(tmp_path: Path) -> None:
    result = fuzz_http(tmp_path, seed=7, cases=250)
    assert result.failures == []
    assert result.health_checks >= 26
    kinds = {name.partition(":")[0] for name in result.outcomes}
    assert kinds == {"fields", "head", "chunks", "bytes", "half", "path", "noise", "pipeline"}
    for outcome in (
        "fields: 200",
        "fields: 422",
        "chunks: 200",
        "chunks: 400",
        "head: 400",
        "path: 405",
        "half: left open",
    ):
        assert result.outcomes[outcome] > 0, result.outcomes
