"""Downloads from the hub: one format of weights, verified; the hub itself is a stand-in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from index.errors import WeightsInvalid
from model.checkpoints.files import resolve
from model.encoders.pretrained import identify
from model.profiles.profile import FrameEncoderSpec, Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "a.safetensors": b"weights",
    "b.safetensors": b"the same weights under another name",
    "pytorch_model.bin": b"the same weights as a pickle",
    "tokenizer.json": b"{}",
    "README.md": b"text",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A hub with one repository; the list has the files of each download."""
    fetched: list[list[str]] = []
    folder = tmp_path / "snapshots" / COMMIT

    def info(repo: str, **_: Any) -> SimpleNamespace:
        sizes = [
            SimpleNamespace(
                rfilename=name,
                lfs=SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if "safe" in name else None,
            )
            for name, content in FILES.items()
        ]
        return SimpleNamespace(siblings=sizes)

    def download(repo: str, *, allow_patterns: list[str], local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise FileNotFoundError(repo)
        folder.mkdir(parents=True)
        fetched.append(allow_patterns)
        for name in allow_patterns:
            (folder / name).write_bytes(FILES[name] if "damaged" not in repo else b"damaged")
        return str(folder)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.model_info", info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return fetched


def test_one_format_of_weights_is_downloaded(hub: list[list[str]]) -> None:
    source = Source(hub="someone/model", revision="main", allow_pickle=True)
    needs = ("config.json", "missing.safetensors|b.safetensors|a.safetensors|pytorch_model.bin")
    folder = resolve(source, needs=needs, takes=("tokenizer*",), what="weights")
    assert hub == [["b.safetensors", "config.json", "tokenizer.json"]]
    spec = FrameEncoderSpec(name="clip", source=source)
    identity = identify(spec, weights=[folder / "b.safetensors"], preprocessing_digest="0" * 64, dimension=4)
    assert identity.revision == COMMIT  # what was loaded, not the name of a branch


def test_a_damaged_download_is_refused(hub: list[list[str]]) -> None:
    with pytest.raises(WeightsInvalid, match=r"a\.safetensors differs from the file of damaged/model; delete it"):
        resolve(Source(hub="damaged/model", revision="main"), needs=("a.safetensors",), what="weights")


def test_a_pinned_revision_stays() -> None:
    spec = FrameEncoderSpec(name="clip", source=Source(hub="a/b", revision="f" * 40))
    identity = identify(spec, weights=[Path(__file__)], preprocessing_digest="0" * 64, dimension=4)
    assert identity.revision == "f" * 40
