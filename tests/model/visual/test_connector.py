from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from index.errors import WeightsInvalid, WeightsNotFound
from model.profiles.profile import ConnectorSpec, Source
from model.visual.connector import Connector, load_connector
from tests.support import tiny_checkpoints as tiny

CPU = torch.device("cpu")
NAMES = {f"{mlp}.{i}.{kind}" for mlp in ("keyframe", "frame") for i in (0, 2) for kind in ("weight", "bias")}


def test_two_streams_do_not_share_weights() -> None:
    connector = Connector(6, 8)
    keys, tokens = connector(torch.ones(2, 3, 6), torch.ones(4, 6), torch.ones(6))
    assert (keys.shape, tokens.shape) == ((2, 3, 8), (4, 8))
    assert not torch.allclose(keys[0, 0], tokens[0])
    assert {name for name, _ in connector.named_parameters()} == NAMES


def test_relevance_moves_a_token_along_its_direction(tmp_path: Path) -> None:
    connector = Connector(6, 8, relevance=True)
    assert connector.relevance is not None
    with torch.no_grad():
        connector.relevance.copy_(torch.randn(2, 8))
    features, query = torch.randn(4, 6), torch.randn(6)
    for row, keyframe in ((0, True), (1, False)):
        plain = (connector.keyframe if keyframe else connector.frame)(features)
        cosine = torch.stack([f @ query / (f.norm() * query.norm()) for f in features])
        expected = plain + 10 * cosine[:, None] * connector.relevance[row]
        torch.testing.assert_close(connector.tokens(features, query, keyframe=keyframe), expected)
    connector.save(tmp_path / "connector.safetensors", dtype=torch.float32)
    again = Connector.load(tmp_path / "connector.safetensors")
    assert again.relevance is not None
    torch.testing.assert_close(again.relevance, connector.relevance)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    connector = Connector(6, 8)
    connector.save(tmp_path / "connector.safetensors")
    assert set(load_file(tmp_path / "connector.safetensors")) == NAMES
    again = Connector.load(tmp_path / "connector.safetensors")
    assert (again.patch_dim, again.width) == (6, 8)
    for (name, a), (_, b) in zip(again.named_parameters(), connector.named_parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame.0.weight": None}, r"frame\.0\.weight should be \(8, 6\), got None"),
        ({"frame.2.bias": torch.ones(9)}, r"frame\.2\.bias should be \(8,\), got \(9,\)"),
        ({"extra": torch.ones(1)}, "tensor extra"),
        ({"keyframe.0.weight": None}, r"keyframe\.0\.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    path = tmp_path / "connector.safetensors"
    state = {**Connector(6, 8).state_dict(), **change}
    save_file({k: v for k, v in state.items() if v is not None}, path)
    with pytest.raises(WeightsInvalid, match=message):
        Connector.load(path)


def test_no_file_or_another_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="no connector weights"):
        Connector.load(tmp_path / "connector.safetensors")
    (tmp_path / "connector.safetensors").write_text("hello")
    with pytest.raises(WeightsInvalid, match="not a safetensors file"):
        Connector.load(tmp_path / "connector.safetensors")


@pytest.mark.parametrize("prefix", ["multi_modal_projector.", "model.multi_modal_projector."])
def test_the_projector_of_llava_onevision_serves_as_both(prefix: str, tmp_path: Path) -> None:
    model = tiny.save_llava_onevision(tmp_path / "llava")
    file = tmp_path / "llava" / "model.safetensors"
    save_file({k.replace("multi_modal_projector.", prefix): v for k, v in load_file(file).items()}, file)
    connector = load_connector(ConnectorSpec(source=Source(folder=tmp_path / "llava"), layout="llava_onevision"), CPU)
    patches = torch.randn(2, 5, tiny.WIDTH)
    with torch.inference_mode():
        assert isinstance(connector, Connector)
        expected = model.model.multi_modal_projector(patches)
        torch.testing.assert_close(connector.keyframe(patches), expected)
        torch.testing.assert_close(connector.frame(patches), expected)


def test_a_checkpoint_without_projector(checkpoints: Path) -> None:
    spec = ConnectorSpec(source=Source(folder=checkpoints / "llm"), layout="llava_onevision")
    with pytest.raises(WeightsInvalid, match="no tensor named like"):
        load_connector(spec, CPU)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("multi_modal_projector.linear_2.bias", None, r"2\.bias should be"),
        ("multi_modal_projector.linear_1.weight", None, r"linear_1\.weight is missing"),
        ("multi_modal_projector.linear_2.weight", torch.zeros(2, 3), r"2\.weight should be"),
        ("multi_modal_projector.norm.weight", torch.zeros(2), r"norm\.weight"),
    ],
)
def test_a_tensor_of_llava_onevisions_projector_that_does_not_fit_names_itself(
    name: str, change: torch.Tensor | None, told: str, shards: int, tmp_path: Path
) -> None:
    tiny.save_llava_onevision(tmp_path / "llava")
    state = tiny.load_state(tmp_path / "llava")
    (tmp_path / "llava" / "model.safetensors").unlink()
    state.pop(name, None)
    tiny.save_state(tmp_path / "llava", state if change is None else {**state, name: change}, shards=shards)
    with pytest.raises(WeightsInvalid, match=told):
        load_connector(ConnectorSpec(source=Source(folder=tmp_path / "llava"), layout="llava_onevision"), CPU)


def test_the_newline_of_llava_onevision_is_kept(tmp_path: Path) -> None:
    model = tiny.save_llava_onevision(tmp_path / "llava")
    connector = load_connector(ConnectorSpec(source=Source(folder=tmp_path / "llava"), layout="llava_onevision"), CPU)
    assert isinstance(connector, Connector)
    assert connector.newline is not None
    torch.testing.assert_close(connector.newline, model.model.image_newline)
