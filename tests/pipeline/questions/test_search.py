"""What a search does before it loads a model."""

from __future__ import annotations

import pytest

from index.errors import EmptyWindow, UnknownStream
from pipeline.questions import search as module
from pipeline.questions.search import find


@pytest.fixture
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        """Fail: a model is loaded."""
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "load_encoders", fail)


@pytest.mark.usefixtures("_no_models")
def test_streams_and_windows_are_checked_before_models_are_loaded(filled: str) -> None:
    with pytest.raises(UnknownStream, match=r"^frnt: the store has no such stream; did you mean front\? It has back"):
        find("a car", store=filled, streams=["frnt"])
    with pytest.raises(EmptyWindow, match="no frames in that time; the store has back 2024-03-01T08:01:00Z to"):
        find("a car", store=filled, end="2020-01-01T00:00:00Z")
    with pytest.raises(EmptyWindow, match="the store has front 2024-03-01T08:00:00Z to"):
        find("a car", store=filled, streams=["front"], start="2024-03-02T08:00:00Z")
