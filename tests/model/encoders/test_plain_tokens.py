"""Control tokens in texts of users, through the tokenizers of every encoder: they are ordinary text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizerFast

from index.errors import UsageError, WeightsNotFound
from model.encoders.clip import ClipEncoder, load_clip
from model.encoders.plain_tokens import controls_of, plain_tokenize
from model.encoders.siglip import SiglipEncoder, load_siglip
from model.profiles.profile import FrameEncoderSpec, PatchEncoderSpec, Source, load_profile
from tests.support import tiny_checkpoints as tiny

CPU = torch.device("cpu")
TOKENS = (
    *("<|endoftext|>", "<|startoftext|>", "<|im_end|>", "<|im_start|>", "<image>", "<end_of_text>", "<start_of_text>"),
    *("<eos>", "<pad>", "</s>", "<unk>", "<END_OF_TEXT>", "&lt;end_of_text&gt;", "&amp;lt;end_of_text&amp;gt;"),
)


def published_clip(folder: Path) -> Path:
    """A CLIP in the layout of ViT-B/32 as published, with open_clip's own tokenizer and few weights."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    half = (0.5, 0.5, 0.5)
    preprocess = {"size": 32, "mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    state = {name: tensor.contiguous() for name, tensor in CLIP(**config).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def reference_tokenizer() -> CLIPTokenizerFast:
    """transformers' tokenizer of CLIP, with the published vocabulary, which open_clip has too."""
    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in own.encoder.items()}
    return CLIPTokenizerFast(vocab=vocabulary, merges=list(own.bpe_ranks))


def reference_clip(folder: Path) -> Path:
    """A CLIP whose folder has the files of transformers' tokenizer too, as on the hub."""
    reference_tokenizer().save_pretrained(published_clip(folder))
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClipEncoder | SiglipEncoder]:
    """Encoders of every layout: published CLIP, CLIP with a tokenizer of transformers, SigLIP, and those of `micro`."""
    folder = tmp_path_factory.mktemp("encoders")
    micro, vilamp = load_profile("micro"), load_profile("vilamp")
    siglip = tiny.save_siglip(folder / "siglip")
    return {
        "published CLIP": load_clip(
            FrameEncoderSpec(name="b", source=Source(folder=published_clip(folder / "b"))), CPU
        ),
        "reference CLIP": load_clip(
            FrameEncoderSpec(
                name="r", source=Source(folder=reference_clip(folder / "r")), tokenizer=vilamp.frame_encoder.tokenizer
            ),
            CPU,
        ),
        "tiny CLIP": load_clip(FrameEncoderSpec(name="c", source=Source(folder=tiny.save_clip(folder / "c"))), CPU),
        "tiny SigLIP": load_siglip(PatchEncoderSpec(name="s", source=Source(folder=siglip)), CPU),
        "micro CLIP": load_clip(micro.frame_encoder, CPU),
        "micro SigLIP": load_siglip(micro.patch_encoder, CPU),
    }


LAYOUTS = ("published CLIP", "reference CLIP", "tiny CLIP", "tiny SigLIP", "micro CLIP", "micro SigLIP")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_follows_a_control_token_is_read(encoders: dict[str, ClipEncoder | SiglipEncoder], layout: str) -> None:
    encoder = encoders[layout]
    for token in TOKENS:
        if "&" in token and layout != "published CLIP":
            continue  # no other tokenizer reads entities, and one of a dozen tokens would cut what follows
        one, other = encoder.encode_text([f"red {token} truck", f"red {token} gate"])
        assert np.abs(one - other).max() > 1e-4, token
    assert encoder.tokenize(["red truck", "a <eos> b"]).shape == (2, len(encoder.tokenize(["a"])[0]))


CURIOUS = {
    "curly quotes": "the driver\u2019s \u201cred\u201d truck",
    "a ligature": "an o\ufb03ce with a \ufb01re",
    "HTML entities": "a man &amp; a dog &lt;b&gt; caf&eacute;",
    "mojibake": "a caf\u00c3\u00a9 sign, it\u00e2\u20ac\u2122s red",
    "full width": "\uff32\uff45\uff44 truck",
}


@pytest.mark.parametrize("text", CURIOUS.values(), ids=list(CURIOUS))
def test_the_profile_names_the_tokenizer_that_the_weights_were_trained_with(
    encoders: dict[str, ClipEncoder | SiglipEncoder], text: str
) -> None:
    reference = reference_tokenizer()(text).input_ids
    ids = {layout: encoders[layout].tokenize([text])[0].tolist() for layout in ("reference CLIP", "published CLIP")}
    assert ids["reference CLIP"] == reference + [0] * (77 - len(reference))
    assert ids["published CLIP"] == SimpleTokenizer()([text])[0].tolist()
    assert ids["reference CLIP"] != ids["published CLIP"]  # else the text would show nothing


@pytest.mark.parametrize(
    "text", ["a red truck", "", "word " * 200, "it's 12:30", "\u524d\u95e8 \U0001f3a5", "A  b\n c"]
)
def test_both_tokenizers_of_clip_agree_on_plain_texts(
    encoders: dict[str, ClipEncoder | SiglipEncoder], text: str
) -> None:
    one, other = (encoders[layout].tokenize([text])[0].tolist() for layout in ("reference CLIP", "published CLIP"))
    assert one == other
    assert len(one) == 77


def test_a_folder_without_the_files_of_the_tokenizer_says_so(tmp_path: Path) -> None:
    spec = FrameEncoderSpec(name="r", source=Source(folder=published_clip(tmp_path / "r")), tokenizer="transformers")
    with pytest.raises(WeightsNotFound, match=r"tokenizer\.json or vocab\.json"):
        load_clip(spec, CPU)


def test_texts_without_control_tokens_have_the_ids_of_the_tokenizer_itself() -> None:
    from open_clip import get_tokenizer

    own = get_tokenizer("ViT-B-32")
    plain = plain_tokenize(lambda texts: own(list(texts)), controls_of(own))
    texts = ["a red truck", "", "A <b> & c | <", "word " * 200, "前门 🎥", "&lt;b&gt;"]
    assert plain(texts).tolist() == own(texts).tolist()
    one, other = plain(["red <end_of_text> truck"]), own(["red < end_of_text> truck"])
    assert one.tolist() == other.tolist()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([*TOKENS, "red", " ", "<", "&lt;", "end_of_text", ">", "\n", "&amp;"]), max_size=12))
def test_no_combination_is_a_control_token(
    encoders: dict[str, ClipEncoder | SiglipEncoder], parts: Sequence[str]
) -> None:
    text = "".join(parts)
    for encoder in encoders.values():
        row = encoder.tokenize([text])[0].tolist()
        empty = encoder.tokenize(["a"])[0].tolist()
        last = max(range(len(row)), key=lambda at: (row[at] != row[-1], at)) + 1  # before the padding
        for control in set(empty) - {row[-1]}:
            if empty.count(control) == 1 and control not in encoder.tokenize(["b"])[0].tolist():
                continue  # the word itself
            assert row[:last].count(control) <= max(1, empty.count(control))


def test_a_tokenizer_that_makes_control_tokens_of_letters_raises() -> None:
    def tokenize(texts: Sequence[str]) -> Tensor:
        return torch.tensor([[9 if "e" in word else 1 for word in f"{text} x x x".split()[:4]] for text in texts])

    plain: Callable[[Sequence[str]], Tensor] = plain_tokenize(tokenize, {"e": 9})
    assert plain(["truck"]).tolist() == [[1, 1, 1, 1]]
    with pytest.raises(UsageError, match="control token"):
        plain(["truck", "red"])
