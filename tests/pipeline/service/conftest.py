"""A model service on loopback for each test, with tiny models and footage in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from model.answerer import Answerer
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from pipeline.service.limits import ServiceLimits
from tests.support.model_service import Footage, Script, Scripted, Serve, client, served
from tests.support.tiny_models import answerer, checkpoints, encoders, own_cache_folder, profile

__all__ = ["answerer", "checkpoints", "encoders", "own_cache_folder", "profile"]


@pytest.fixture
def footage() -> Footage:
    return Footage()


@pytest.fixture
def serve(answerer: Answerer, footage: Footage) -> Iterator[Serve]:
    """`serve(script, waiting=2, …)` starts a service and gives a client of it."""
    with ExitStack() as stack:

        def start(script: Script | None = None, *, token: str | None = None, **limits: Any) -> httpx.Client:
            service = ModelService(
                ServiceEngine(Scripted.of(answerer, script), footage),
                token=SecretStr(token) if token else None,
                limits=ServiceLimits(**{"stop_seconds": 5.0, **limits}),
            )
            opened = stack.enter_context(client(stack.enter_context(served(service)), token))
            opened.service = service  # type: ignore[attr-defined]
            return opened

        yield start
