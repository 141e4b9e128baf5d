"""The short form of the urls driver, and a case that it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import SourceNotFound
from ingest.sources.files import expand, fetched
from ingest.sources.url_policy import split_url
from tests.fuzz.urls import fuzz_urls

pytestmark = pytest.mark.system


def test_no_hostile_url_reaches_what_is_forbidden(tmp_path: Path) -> None:
    result = fuzz_urls(tmp_path, seed=7, cases=600)
    assert result.failures == []
    assert result.urls > 300
    for way in ("URL", "redirect", "redirect of a stream", "playlist"):  # the ways lead somewhere
        assert result.outcomes[f"{way}: reached"] > 5
    for way in ("URL", "redirect", "redirect of a stream", "playlist", "redirect of a playlist", "message"):
        assert result.outcomes[f"{way}: SourceDenied"] > 5


@pytest.mark.parametrize("text", ["http://[", "http://[/a*.mp4", "s3://[::g]/x", "http://a\u2100/"])
def test_what_python_cannot_split_is_not_a_url(text: str) -> None:
    with pytest.raises(SourceNotFound, match="not a URL"):
        split_url(text)
    with pytest.raises(SourceNotFound, match="not a URL"), fetched(text):
        pass
    ((shown, error),) = expand([text]).problems
    assert isinstance(error, SourceNotFound)
    assert shown
