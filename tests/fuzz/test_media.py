"""The short form of the media driver."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.media import fuzz_media, mutations


def test_no_damaged_file_ends_the_parent_or_escapes_its_error(tmp_path: Path) -> None:
    result = fuzz_media(tmp_path, seed=7, cases=300)
    assert result.failures == []
    assert sum(result.outcomes.values()) == 300
    assert result.outcomes["frames"] > 30  # mutations that hit nothing
    assert result.outcomes["NotVideo"] > 10


def test_a_case_is_made_again_by_its_number() -> None:
    files = [b"abcdefgh" * 100, b"12345678" * 100]
    whole = list(mutations(files, 3, 20))
    assert list(mutations(files, 3, 1, first=13)) == [whole[13]]
    assert len(set(whole)) > 15


def test_a_picture_that_cannot_be_converted_is_a_typed_error(tmp_path: Path) -> None:
    """A case that a long run found: the decoder gives a picture in a format that the scaler does not take."""
    result = fuzz_media(tmp_path, seed=2026, cases=1, first=7528)
    assert result.failures == []
