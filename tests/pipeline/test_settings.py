"""Settings: environment over file over defaults, unknown names refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import UsageError
from pipeline.settings import load_settings


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.store, settings.profile, settings.device) == ("sightline-store", "micro", None)
    assert settings.segment_seconds == 300


def test_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sightline.toml").write_text('profile = "edge"\nsegment_seconds = 60\n')
    monkeypatch.setenv("SIGHTLINE_SEGMENT_SECONDS", "30")
    settings = load_settings()
    assert (settings.profile, settings.segment_seconds, settings.store) == ("edge", 30, "sightline-store")


def test_a_file_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sightline.toml").write_text('profile = "edge"')
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text('profile = "vilamp"')
    given.write_text('device = "cpu"')
    monkeypatch.setenv("SIGHTLINE_CONFIG", str(named))
    assert load_settings().profile == "vilamp"
    assert load_settings(given).device == "cpu"
    assert load_settings(given).profile == "micro"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('stroe = "x"', "stroe"),
        ("segment_seconds = 0", "segment_seconds"),
        ('segment_seconds = "soon"', "segment_seconds"),
        ("store = ", "not a settings file"),
        ("stall_seconds = -1", "stall_seconds"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "sightline.toml").write_text(text)
    with pytest.raises(UsageError, match=says) as refused:
        load_settings()
    assert "sightline.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_STROE", "x")
    with pytest.raises(UsageError, match=r"SIGHTLINE_STROE: no such setting; known are .*SIGHTLINE_DEVICE"):
        load_settings()
    monkeypatch.delenv("SIGHTLINE_STROE")
    monkeypatch.setenv("SIGHTLINE_SEGMENT_SECONDS", "soon")
    with pytest.raises(UsageError, match="segment_seconds"):
        load_settings()


def test_a_missing_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a settings file"):
        load_settings(tmp_path / "none.toml")
