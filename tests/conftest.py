"""Models of a few thousand random weights, in the layouts of real ones, and what tests need a GPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# An example that a busy machine makes wait is no slow example. All else is as Hypothesis chooses, also for CI.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")

PROFILE = """
name = "tiny"
notice = "random weights"
k = 4
tau = 0.999
max_frames = 500
timestamps = true
frame_encoder = { name = "tiny-clip", source = { folder = "clip" } }
patch_encoder = { name = "tiny-siglip", source = { folder = "siglip" } }
language_model = { source = { folder = "llm" }, max_context = 1500, max_new_tokens = 6 }
connector = { source = { folder = "connector.safetensors" } }
"""

CLIPS = """
[hico]
clip_tokens = 8
head_width = 12
min_frames = 8
max_frames = 16
"""


def pytest_configure() -> None:
    """Have programs that tests start obey SIGINT: a shell starts what runs in its background with it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` fail without a GPU where SIGHTLINE_GPU=1 promises one, and are skipped elsewhere."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if torch.cuda.is_available():
        return
    if os.environ.get("SIGHTLINE_GPU") == "1":
        pytest.fail("SIGHTLINE_GPU=1 promises a GPU and torch finds none")
    pytest.skip("needs a GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run system tests first: side by side, the run must not end with one long file that has a core to itself."""
    items.sort(key=lambda item: item.get_closest_marker("system") is None)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny checkpoints and `tiny.toml`, the profile that names them."""
    from tests.support import tiny_checkpoints as tiny  # imports torch, which tests of other rooms do without

    folder = tmp_path_factory.mktemp("models")
    tiny.save_clip(folder / "clip")
    tiny.save_siglip(folder / "siglip")
    tiny.save_language(folder / "llm")
    tiny.save_connector(folder / "connector.safetensors")
    (folder / "tiny.toml").write_text(PROFILE)
    return folder


@pytest.fixture(scope="session")
def profile(models: Path) -> str:
    return str(models / "tiny.toml")


@pytest.fixture(scope="session")
def clip_profile(models: Path) -> str:
    """A profile of the same checkpoints that reads footage by clips of four frames, two tokens a frame."""
    path = models / "tiny-hico.toml"
    path.write_text(PROFILE.replace('"tiny"', '"tiny-hico"') + CLIPS)
    return str(path)
