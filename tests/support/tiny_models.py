"""Fixtures of tiny random checkpoints, shared by all tests of a session, and of the profile that names them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.answerer import Answerer, load_answerer
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import (
    ConnectorSpec,
    FrameEncoderSpec,
    LanguageModelSpec,
    PatchEncoderSpec,
    Profile,
    Source,
)
from tests.support import tiny_checkpoints as tiny


def make_checkpoints(folder: Path) -> Path:
    """Write `clip`, `siglip`, `llm` and `connector.safetensors` into a folder, as `micro` has them; returns it."""
    tiny.save_clip(folder / "clip")
    tiny.save_siglip(folder / "siglip")
    tiny.save_language(folder / "llm")
    tiny.save_connector(folder / "connector.safetensors")
    return folder


def make_profile(checkpoints: Path) -> Profile:
    """A profile of tiny checkpoints."""
    return Profile(
        name="tiny",
        notice="random weights",
        timestamps=True,
        max_frames=500,
        frame_encoder=FrameEncoderSpec(name="tiny-clip", source=Source(folder=checkpoints / "clip"), batch=3),
        patch_encoder=PatchEncoderSpec(name="tiny-siglip", source=Source(folder=checkpoints / "siglip"), batch=3),
        language_model=LanguageModelSpec(source=Source(folder=checkpoints / "llm"), max_context=400, max_new_tokens=6),
        connector=ConnectorSpec(source=Source(folder=checkpoints / "connector.safetensors")),
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests use a cache folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clip`, `siglip`, `llm` and `connector.safetensors`, as `micro` has them."""
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def profile(checkpoints: Path) -> Profile:
    """A profile of the tiny checkpoints."""
    return make_profile(checkpoints)


@pytest.fixture(scope="session")
def encoders(profile: Profile) -> Encoders:
    """Its encoders on the CPU."""
    return load_encoders(profile, "cpu")


@pytest.fixture(scope="session")
def answerer(profile: Profile, encoders: Encoders) -> Answerer:
    """Its answerer on the CPU."""
    return load_answerer(profile, encoders, "cpu")
