from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from index.errors import ProfileInvalid, WeightsNotFound
from model.encoders.encoder import load_encoders
from model.language.loader import load_language
from model.profiles import profile as profiles
from model.profiles.profile import DfmSpec, DroppingSpec, ModelShape, Profile, load_profile, profile_names

MINIMAL = """
name = "own"
[frame_encoder]
name = "clip"
source = { folder = "weights/clip" }
[patch_encoder]
name = "siglip"
source = { hub = "google/siglip", revision = "abc" }
[language_model]
source = { folder = "/somewhere/llm" }
max_context = 100
[connector]
source = { folder = "connector.safetensors" }
"""


def test_the_shipped_profiles_load_and_pin_their_sources() -> None:
    assert profile_names() == ["edge", "micro", "micro-hico", "videochat_flash", "vilamp"]
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        for part in (profile.frame_encoder, profile.patch_encoder, profile.language_model, profile.connector):
            assert part.source.hub is None or part.source.revision
    assert load_profile("micro").timestamps
    assert not load_profile("edge").timestamps
    assert "sightline render" in load_profile("micro").notice


@pytest.mark.parametrize("name", ["edge", "vilamp"])
def test_patches_leave_after_layer_26_without_the_final_norm(name: str) -> None:
    spec = load_profile(name).patch_encoder
    assert (spec.layer, spec.post_layernorm) == (26, False)


def test_edge_takes_tower_projector_and_language_model_from_one_checkpoint() -> None:
    edge = load_profile("edge")
    assert edge.patch_encoder.tower == edge.connector.source == edge.language_model.source


def test_a_profile_of_ones_own_names_folders_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(MINIMAL)
    profile = load_profile(path)
    assert profile.frame_encoder.source.folder == tmp_path / "weights" / "clip"
    assert profile.language_model.source.folder == Path("/somewhere/llm")
    assert (profile.k, profile.tau, profile.dfm.alpha, profile.dfm.lam) == (32, 0.85, 0.01, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "own"', 'name = "own"\ncolour = 1', "colour"),
        ('name = "own"', 'name = "own"\nk = 0', "k"),
        ('name = "own"', 'name = "own"\ntau = 1.5', "tau"),
        ("max_context = 100", "max_context = -1", "language_model.max_context"),
        ('"weights/clip"', '"weights/clip", hub = "a/b"', "exactly one of"),
        (', revision = "abc"', "", "needs a revision"),
        ("[connector]", "[dfm]\nmode = 'released'\n[connector]", "dfm.mode"),
        ('name = "siglip"', 'name = "siglip"\nlayer = 3', "post_layernorm"),
        ('name = "siglip"', 'name = "siglip"\nkind = "umt"', r"add a \[hico\] section"),
        (
            'name = "siglip"',
            'name = "siglip"\nkind = "umt"\nlayer = 3\npost_layernorm = false',
            "belong to kind siglip",
        ),
        ("[connector]", "[dfm]\nalpha = 0.1\n[hico]\n[connector]", "dfm.alpha has no effect"),
        (
            '"google/siglip", revision = "abc" }',
            '"a/b", revision = "abc" }\nkind = "umt"\n[hico]',
            "needs an .encoder_shape",
        ),
        ("[connector]", "[hico]\nclip_tokens = 63\n[connector]", "multiple of clip_frames"),
        ("[connector]", "[hico]\nmin_frames = 3\n[connector]", "must ascend"),
        ("[connector]", "[hico]\nmax_frames = 32\n[connector]", "must ascend"),
        ("max_context = 100", "", "max_context"),
        ("[connector]", "[connector", "not a TOML file"),
    ],
)
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "own.toml"
    assert old in MINIMAL
    path.write_text(MINIMAL.replace(old, new))
    with pytest.raises(ProfileInvalid, match=message) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_a_profile_may_read_clips_and_still_say_how_keyframes_are_selected(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(MINIMAL + "[dfm]\ngap_fill = true\nrelevance_floor = 0.2\n[hico]\nclip_tokens = 32\n")
    profile = load_profile(path)
    assert profile.hico is not None
    assert (profile.hico.clip_frames, profile.hico.frame_tokens) == (4, 8)
    assert (profile.hico.min_frames, profile.hico.max_frames) == (64, 512)


@pytest.mark.parametrize("name", ["nope", "missing/own.toml"])
def test_no_such_profile(name: str) -> None:
    with pytest.raises(ProfileInvalid, match="edge, micro, micro-hico, videochat_flash, vilamp"):
        load_profile(name)


@pytest.mark.parametrize("name", ["edge", "videochat_flash", "vilamp"])
def test_without_network_and_cache_one_sentence_names_what_to_provide(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFound) as caught:
        load_encoders(load_profile(name), "cpu")
    message = str(caught.value)
    assert "timm/vit_base_patch32_clip_224.openai" in message
    assert "open_clip_config.json" in message
    assert "\n" not in message


def test_an_unreachable_hub_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    with pytest.raises(WeightsNotFound, match=r"cannot be fetched \(Name or service not known\); download"):
        load_encoders(load_profile("edge"), "cpu")


@pytest.mark.parametrize("name", ["edge", "vilamp"])
def test_without_network_and_cache_the_language_model_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = load_profile(name).language_model
    with pytest.raises(WeightsNotFound, match=str(spec.source.hub)):
        load_language(spec, torch.device("cpu"))


def test_vilamp_is_set_as_its_weights_were_trained() -> None:
    vilamp = load_profile("vilamp")
    dfm = vilamp.dfm
    assert (dfm.mode, dfm.reference_frame, dfm.gap_fill, dfm.relevance_floor) == (
        "released",
        "segment_index",
        True,
        0.2,
    )
    assert (dfm.lam, dfm.image_newline, dfm.keyframe_tokens) == (1.0, True, None)
    source = vilamp.language_model.source
    assert vilamp.frame_encoder.tower == vilamp.patch_encoder.tower == vilamp.connector.source == source


@pytest.mark.parametrize(
    ("dfm", "message"),
    [
        ({"mode": "released", "alpha": 0.1}, "alpha is learned"),
        ({"mode": "paper", "reference_frame": "segment_index"}, "belongs to released"),
        ({"keyframe_tokens": 0}, "keyframe_tokens"),
        ({"relevance_floor": 1.5}, "relevance_floor"),
    ],
)
def test_dfm_settings_that_cannot_be(dfm: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DfmSpec.model_validate(dfm)


@pytest.mark.parametrize(
    ("dropping", "message"),
    [
        ({"layers": [], "ratios": [1]}, "layers must ascend"),
        ({"layers": [0, 4], "ratios": [1, 0.5, 0.25]}, "count from 1"),
        ({"layers": [4, 4], "ratios": [1, 0.5, 0.25]}, "layers must ascend"),
        ({"layers": [18, 4], "ratios": [1, 0.5, 0.25]}, "layers must ascend"),
        ({"layers": [4], "ratios": [1, 0.5, 0.25]}, "one number more"),
        ({"layers": [4], "ratios": [0.9, 0.5]}, "begin with 1"),
        ({"layers": [4, 18], "ratios": [1, 0.25, 0.5]}, "must not ascend"),
        ({"layers": [4], "ratios": [1, 0]}, "above 0"),
        ({"layers": [4], "ratios": [1, float("nan")]}, "above 0"),
        ({"kind": "random"}, "kind"),
    ],
)
def test_stages_of_dropping_that_do_not_fit(dropping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DroppingSpec.model_validate(dropping)


def test_dropping_is_off_unless_a_profile_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(MINIMAL)
    assert load_profile(path).language_model.dropping is None
    path.write_text(MINIMAL.replace("[connector]", "[language_model.dropping]\n[connector]"))
    dropping = load_profile(path).language_model.dropping
    assert dropping is not None
    assert (dropping.layers, dropping.ratios, dropping.kind) == ((4, 18), (1, 0.75, 0.25), "uniform0_attention")


def test_the_sizes_of_micro_are_those_of_its_weights() -> None:
    import json

    from model.visual.connector import Connector

    profile = load_profile("micro")
    folder = Path(profiles.__file__).parents[1] / "micro"
    shape = profile.shape
    assert shape is not None
    llm = json.loads((folder / "llm" / "config.json").read_text())
    vision = json.loads((folder / "siglip" / "config.json").read_text())["vision_config"]
    clip = json.loads((folder / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    connector = Connector.load(folder / "connector.safetensors")
    assert shape == ModelShape(
        patches=(vision["image_size"] // vision["patch_size"]) ** 2,
        patch_dim=connector.patch_dim,
        query_dim=clip["embed_dim"],
        width=connector.width,
        layers=llm["num_hidden_layers"],
        heads=llm["num_attention_heads"],
        kv_heads=llm["num_key_value_heads"],
        feed_forward=llm["intermediate_size"],
        vocabulary=llm["vocab_size"],
        tied=llm["tie_word_embeddings"],
        positions=llm["max_position_embeddings"],
    )


def test_a_profile_is_frozen() -> None:
    profile: Profile = load_profile("micro")
    with pytest.raises(ValueError, match="frozen"):
        profile.k = 3  # type: ignore[misc]
