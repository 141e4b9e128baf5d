"""The export of a trained model: weights in the layouts that the loaders read, and a profile that names them.

Weights that were not trained stay where they are, and the new profile names their place. Trained weights are written in
float32, so that loading them gives the same bits:

    llm/                     the language model and its tokenizer, in transformers' layout
    siglip/                  the patch encoder, in transformers' layout
    connector.safetensors    MLP_k and MLP_n
    vilamp/                  weights in the authors' layout: a copy of the whole checkpoint in which the trained tensors
                             that came from it are replaced

`profile.toml` is written last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from index.files import write_atomically
from model.checkpoints.files import resolve, stream_tensors, tensor_files
from model.checkpoints.vilamp import language_names
from model.encoders.siglip import tower_names
from model.profiles.profile import ConnectorSpec, Profile, Source
from model.training.components import CONNECTOR_COMPONENTS
from model.training.trainable import TrainableModel
from model.visual.connector import Connector

__all__ = ["save_model"]

_BESIDE = (".json", ".txt", ".model", ".jinja")  # files of a checkpoint other than weights
_SIGLIP = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@torch.no_grad()
def save_model(trainable: TrainableModel, folder: Path) -> Path:
    """Write weights and `profile.toml` into `folder`, which must be empty.

    Returns:
        The path of the profile.

    Raises:
        WeightsNotFound: the checkpoint from which training started is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile, trained = trainable.profile, {count.name for count in trainable.counts if count.rate is not None}
    language, patch, connector = profile.language_model, profile.patch_encoder, profile.connector
    frame = profile.frame_encoder
    learned = not trained.isdisjoint(CONNECTOR_COMPONENTS)
    if not isinstance(trainable.connector, Connector):  # only the authors' layout has a learned merger
        shared = connector.source
        inside: dict[str, Tensor] = {}
        if learned:
            inside |= {f"model.{name}": tensor for name, tensor in trainable.connector.state_dict().items()}
        names = tensor_files(resolve(shared, needs=("*.safetensors",), what="connector"))
        if language.source == shared and "language_model" in trained:
            inside |= {name: trainable.language.state_dict()[name] for name in language_names(names)}
            trained.discard("language_model")
        if patch.tower == shared and "vision_encoder" in trained:
            own = trainable.patch_encoder.model.vision_model.state_dict()
            inside |= {name: own[new] for name, new in tower_names(names).items() if new in own}
            trained.discard("vision_encoder")
        if inside:
            _copy_with(resolve(shared, needs=("*.safetensors",), what="connector"), folder / "vilamp", inside)
            here = Source(folder=Path("vilamp"))
            connector = connector.model_copy(update={"source": here})
            language = language.model_copy(update={"source": here}) if language.source == shared else language
            patch = patch.model_copy(update={"tower": here}) if patch.tower == shared else patch
            frame = frame.model_copy(update={"tower": here}) if frame.tower == shared else frame
    elif learned:
        trainable.connector.save(folder / "connector.safetensors", dtype=torch.float32)
        connector = ConnectorSpec(source=Source(folder=Path("connector.safetensors")))
    if "language_model" in trained:
        _save_quietly(trainable.language, folder / "llm")
        trainable.tokenizer.save_pretrained(folder / "llm")
        language = language.model_copy(update={"source": Source(folder=Path("llm")), "layout": "causal_lm"})
    if "vision_encoder" in trained:
        _save_quietly(trainable.patch_encoder.model, folder / "siglip")
        whence = resolve(patch.source, needs=_SIGLIP[:2], what=f"patch encoder {patch.name}")
        for name in _SIGLIP:
            if (whence / name).is_file():
                shutil.copy(whence / name, folder / "siglip" / name)
        patch = patch.model_copy(update={"source": Source(folder=Path("siglip")), "tower": None})
    saved = profile.model_copy(
        update={
            "name": profile.name if profile.name.endswith("-trained") else f"{profile.name}-trained",
            "language_model": language,
            "patch_encoder": patch,
            "connector": connector,
            "frame_encoder": frame,
        }
    )
    path = folder / "profile.toml"
    write_atomically(path, _toml(saved))
    return path


def _save_quietly(model: Any, folder: Path) -> None:
    """Save a transformers model without its progress bar; the training has its own."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


def _copy_with(source: Path, folder: Path, replaced: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint folder with some tensors replaced, one shard at a time; files keep their names."""
    folder.mkdir()
    files = tensor_files(source)
    for shard in sorted(set(files.values())):
        names = [name for name, file in files.items() if file == shard]
        tensors = dict(stream_tensors(files, [name for name in names if name not in replaced]))
        tensors |= {name: replaced[name].detach().cpu().contiguous() for name in names if name in replaced}
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
    for path in source.iterdir():
        if path.suffix in _BESIDE and path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy(path, folder / path.name)
    if len(set(files.values())) > 1:
        index = {"metadata": {}, "weight_map": {name: file.name for name, file in files.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _toml(profile: Profile) -> str:
    """A profile as TOML."""
    lines = ["# Written by `sightline train run`."]

    def table(values: Mapping[str, Any], name: str) -> None:
        if name:
            lines.extend(["", f"[{name}]"])
        # Strings, numbers and booleans are written in TOML as in JSON.
        lines.extend(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in values.items()
            if not isinstance(value, dict)
        )
        for key, value in values.items():
            if isinstance(value, dict):
                table(value, f"{name}.{key}" if name else key)

    table(profile.model_dump(mode="json", exclude_none=True), "")
    return "\n".join(lines) + "\n"
