"""The model under training: the sequence it reads is the one that is answered from, and what is frozen stays still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from index.errors import BudgetExceeded, UsageError
from model.answerer import Answerer, AnswerRequest, load_answerer
from model.checkpoints.files import resolve
from model.encoders.encoder import load_encoders
from model.profiles.profile import Profile, Source, load_profile
from model.stage_clock import StageClock
from model.training.checkpoint import save_model
from model.training.components import parameter_groups
from model.training.conversation import Turn, write_script
from model.training.plan import DatasetSpec, TrainingPlan
from model.training.trainable import Sample, TrainableModel, load_trainable
from tests.support import tiny_checkpoints as tiny

CPU = torch.device("cpu")
FRAMES, KEYFRAMES = 9, 3
QUESTION, ANSWER = "what colour was the truck ?", "red blue"
FORMS = ("paper", "paper over released", "released", "segment index", "single_token")


def _vilamp(folder: Path, checkpoints: Path, **dfm: Any) -> Profile:
    shipped, ours = load_profile("vilamp"), Source(folder=folder)
    clip, siglip = Source(folder=checkpoints / "clip"), Source(folder=checkpoints / "siglip")
    return shipped.model_copy(
        update={
            "frame_encoder": shipped.frame_encoder.model_copy(
                update={"source": clip, "tower": ours, "tokenizer": "open_clip"}
            ),
            "patch_encoder": shipped.patch_encoder.model_copy(update={"source": siglip, "tower": ours, "layer": 2}),
            "language_model": shipped.language_model.model_copy(update={"source": ours, "max_new_tokens": 4}),
            "connector": shipped.connector.model_copy(update={"source": ours}),
            "dfm": shipped.dfm.model_copy(update=dfm),
        }
    )


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest, checkpoints: Path, profile: Profile, tmp_path_factory: Any) -> Profile:
    """A profile of every form there is."""
    if request.param == "paper":
        return profile
    folder = tmp_path_factory.mktemp("released") / "checkpoint"
    if request.param == "single_token":
        tiny.save_vilamp(folder, composer="single_token")
        return _vilamp(folder, checkpoints)
    tiny.save_vilamp(folder, shards=2)
    if request.param == "paper over released":
        return _vilamp(folder, checkpoints, mode="paper", reference_frame="keyframe")
    return _vilamp(folder, checkpoints, reference_frame="keyframe" if request.param == "released" else "segment_index")


def _plan(**values: Any) -> TrainingPlan:
    return TrainingPlan(data=(DatasetSpec(json_path=Path("none")),), max_frames=FRAMES, **values)


def _pictures() -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (FRAMES, tiny.SIZE, tiny.SIZE, 3)).astype(np.uint8)


def _sample(trainee: TrainableModel, turns: tuple[Turn, ...] | None = None) -> Sample:
    frames = _pictures()
    times = np.arange(FRAMES, dtype=np.int64) * 60_000_000
    turns = turns or (Turn(True, f"<video>\n{QUESTION}"), Turn(False, ANSWER))
    script = write_script(trainee.tokenizer, turns)
    return Sample(script, QUESTION, KEYFRAMES, trainee.encode(frames, frames, times), "here")


def _answered(answerer: Answerer, trainee: TrainableModel) -> float:
    """−log P of the answer by the code that answers questions."""
    features = _sample(trainee).features
    patches = answerer.encoders.patch.encode_frames(list(_pictures()))[1]
    request = AnswerRequest(
        question=QUESTION,
        stream_index=np.zeros(FRAMES, np.int64),
        captured_at=features.captured_at,
        keyframe=trainee.select(features.vectors, QUESTION, KEYFRAMES),
        read_patches=lambda rows, out: np.copyto(out, patches[rows]),
        read_features=lambda rows: features.vectors[rows] * features.norms[rows, None],
    )
    prompt = answerer.language.prefill(answerer.embed_prompt(request, StageClock(CPU))[0])
    ids = answerer.option_ids(ANSWER)
    return -answerer.language.score(prompt, [ids])[0] / len(ids)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("frozen", [False, True], ids=["encoder learns", "encoder frozen"])
def test_the_loss_is_that_of_answering(form: Profile, frozen: bool, recompute: bool) -> None:
    plan = _plan(gradient_checkpointing=recompute, freeze={"vision_encoder"} if frozen else ())
    trainee = load_trainable(form, plan, CPU)
    step = trainee(_sample(trainee))
    expected = _answered(load_answerer(form, load_encoders(form, "cpu"), "cpu"), trainee)
    # A frozen encoder's patches are rounded to half precision, as they are in a store.
    assert step.loss.item() == pytest.approx(expected, rel=1e-4 if frozen else 2e-2)
    assert step.frames == FRAMES
    step.loss.backward()
    for name, parameters in trainee.parts.items():
        for parameter in parameters:
            assert (parameter.grad is not None) == (name not in plan.freeze), name


def test_recomputing_changes_no_gradient(profile: Profile) -> None:
    gradients = []
    for recompute in (False, True):
        trainee = load_trainable(profile, _plan(gradient_checkpointing=recompute), CPU)
        trainee(_sample(trainee)).loss.backward()
        gradients.append([p.grad for p in trainee.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 50
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_tower_gives_the_encoders_patches(profile: Profile) -> None:
    trainee = load_trainable(profile, _plan(), CPU)
    patch = trainee.patch_encoder
    pixels = patch.preprocessing(list(_pictures()), CPU)
    with torch.inference_mode():
        got = trainee.tower(pixels).numpy()
    np.testing.assert_allclose(got, patch.encode_frames(list(_pictures()))[1], atol=2e-3, rtol=2e-3)


def test_resizing_early_changes_nothing(profile: Profile) -> None:
    trainee = load_trainable(profile, _plan(), CPU)
    large = np.random.default_rng(2).integers(0, 256, (4, 50, 70, 3)).astype(np.uint8)
    for encoder in (trainee.frame_encoder, trainee.patch_encoder):
        pre = encoder.preprocessing
        assert torch.equal(pre(list(pre.resized(list(large))), CPU), pre(list(large), CPU))


def _moved(trainee: TrainableModel, plan: TrainingPlan) -> set[str]:
    """The components that one step of AdamW changes."""
    before = {name: [p.detach().clone() for p in parameters] for name, parameters in trainee.parts.items()}
    others = [p.detach().clone() for p in _outside(trainee)]
    optimizer = torch.optim.AdamW(parameter_groups(trainee.parts, plan))
    trainee(_sample(trainee)).loss.backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(others, _outside(trainee), strict=True))
    return {
        name
        for name, parameters in trainee.parts.items()
        if any(not torch.equal(a, b) for a, b in zip(before[name], parameters, strict=True))
    }


def _outside(trainee: TrainableModel) -> list[nn.Parameter]:
    own = {id(p) for p in trainee.parameters()}
    models = (trainee.frame_encoder.model, trainee.patch_encoder.model)
    return [p for model in models for p in model.parameters() if id(p) not in own]


def test_what_is_frozen_stays_and_all_else_moves(form: Profile) -> None:
    names = set(load_trainable(form, _plan(), CPU).parts)
    for frozen in (set[str](), {"vision_encoder"}, {"mlp_k"}, {"language_model"}, names - {"mlp_k"}):
        plan = _plan(freeze=frozen)
        trainee = load_trainable(form, plan, CPU)
        assert _moved(trainee, plan) == names - frozen
        assert {count.name for count in trainee.counts if count.rate is None} == frozen
        assert len(_outside(trainee)) > 0


def test_counts_add_up(profile: Profile) -> None:
    trainee = load_trainable(profile, _plan(freeze={"mlp_n"}, learning_rates={"mlp_k": 0.5}), CPU)
    rates = {count.name: count.rate for count in trainee.counts}
    assert rates == {"vision_encoder": 2e-6, "mlp_k": 0.5, "mlp_n": None, "language_model": 1e-5}
    whole = sum(p.numel() for p in trainee.frame_encoder.model.parameters())
    whole += sum(p.numel() for p in trainee.patch_encoder.model.parameters())
    whole += sum(p.numel() for p in [*trainee.connector.parameters(), *trainee.language.parameters()])
    assert sum(count.parameters for count in [*trainee.counts, *trainee.frozen_outside()]) == whole


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"freeze": {"merger"}}, "merger: this model has no such component; it has vision_encoder"),
        ({"learning_rates": {"newline": 1e-4}}, "newline: this model has no such component"),
        ({"freeze": {"vision_encoder", "mlp_k", "mlp_n", "language_model"}}, "every component is frozen"),
    ],
)
def test_components_that_are_not_there(profile: Profile, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_trainable(profile, _plan(**values), CPU)


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(profile: Profile) -> None:
    trainee = load_trainable(profile, _plan(), CPU)
    turns = (Turn(True, "<video>\n" + "what " * 400), Turn(False, "red"))
    with pytest.raises(BudgetExceeded, match=r"here: 9 frames and their text need \d+ tokens, .* has room for 400"):
        trainee(_sample(trainee, turns))


def test_every_assistant_turn_counts(profile: Profile) -> None:
    """The loss of two turns is the mean over both turns' tokens, not that of the last."""
    trainee = load_trainable(profile, _plan(), CPU)
    first = (Turn(True, f"<video>\n{QUESTION}"), Turn(False, "red"))
    both = (*first, Turn(True, "where ?"), Turn(False, "at gate"))
    alone, together = (_sample(trainee, turns) for turns in (first, both))
    with torch.no_grad():
        one, two = trainee(alone).loss.item(), trainee(together).loss.item()
    count = [sum(t != -100 for t in sample.script.targets) for sample in (alone, together)]
    assert count == [2, 5]
    # What follows does not change what was said before it, so the second turn's share is the difference.
    assert two * count[1] - one * count[0] > 0


def test_a_written_checkpoint_reads_back_bit_for_bit(form: Profile, tmp_path: Path) -> None:
    plan = _plan(learning_rates={"language_model": 1e-3})
    trainee = load_trainable(form, plan, CPU)
    _moved(trainee, plan)
    saved = load_profile(save_model(trainee, tmp_path / "saved"))
    assert saved.name == f"{form.name}-trained"
    assert (saved.dfm, saved.k, saved.timestamps) == (form.dfm, form.k, form.timestamps)
    again = load_trainable(saved, plan, CPU)
    state, expected = again.state_dict(), trainee.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, state[name])] == []
    with torch.no_grad():
        assert again(_sample(again)).loss.item() == trainee(_sample(trainee)).loss.item()
    # And the side that answers reads it.
    answerer = load_answerer(saved, load_encoders(saved, "cpu"), "cpu")
    assert _answered(answerer, again) == pytest.approx(again(_sample(again)).loss.item(), rel=2e-2)
    assert save_model(again, tmp_path / "twice").read_text() == (tmp_path / "saved" / "profile.toml").read_text()


def test_what_was_not_trained_is_not_written(form: Profile, tmp_path: Path) -> None:
    trained = "mlp_k"
    everything = set(load_trainable(form, _plan(), CPU).parts)
    plan = _plan(freeze=everything - {trained})
    trainee = load_trainable(form, plan, CPU)
    _moved(trainee, plan)
    saved = load_profile(save_model(trainee, tmp_path))
    if form.dfm.mode == "paper":
        assert sorted(p.name for p in tmp_path.iterdir()) == ["connector.safetensors", "profile.toml"]
        assert saved.language_model == form.language_model
        return
    # The whole checkpoint in the authors' layout: the same tensors, and all but the projector's the same bits.
    before = tiny.load_state(resolve(form.connector.source, needs=(), what="connector"))
    after = tiny.load_state(tmp_path / "vilamp")
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert all(after[name].dtype == before[name].dtype for name in before if name not in changed)
