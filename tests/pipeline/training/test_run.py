"""`sightline train run` on tiny models: resuming, reloading, the cache, and messages about invalid data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from index.errors import TrainingDataInvalid, TrainingFailed, UsageError
from model.profiles.profile import load_profile
from model.training.checkpoint import save_model as real_save_model
from model.training.loop import Schedule
from model.training.trainable import SampleLoss, TrainableModel, load_trainable
from pipeline.training.data import Conversations, load_plan
from pipeline.training.footage import SampleReader
from pipeline.training.run import run_training
from tests.support.command import Command

SAMPLES = (
    ("front", "what colour ?", "red"),
    ("back", "where was the truck ?", "at gate"),
    ("front", "when ?", "08:07"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small take longer on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _sample(video: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": "x", "conversations": turns, "video": f"{video}.mp4", **more}


@pytest.fixture
def world(tmp_path: Path, footage: Path, profile: str) -> Path:
    """A folder with footage, a picture, five conversations and `plan.yaml`, which trains all of the tiny model."""
    for path in footage.glob("*.mp4"):
        shutil.copy(path, tmp_path)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "still.png")
    samples = [_sample(*sample) for sample in SAMPLES]
    picture = {**_sample("", "what ?", "green"), "image": "still.png", "query": "green truck", "max_frame_num": 1}
    del picture["video"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in [*samples, picture]))
    (tmp_path / "b.json").write_text(json.dumps([_sample("back", "which ?", "blue"), *samples], indent=2))
    return _write(tmp_path, profile)


def _write(folder: Path, profile: str, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "profile": profile,
        "stage": 1,
        "data": {
            "datasets": [
                {"json_path": "a.jsonl", "sampling_strategy": "all"},
                {"json_path": "b.json", "sampling_strategy": "first:25%"},
            ]
        },
        "learning_rates": dict.fromkeys(("vision_encoder", "mlp_k", "mlp_n", "language_model"), 3e-3),
        "weight_decay": 0.01,
        "max_frames": 10,
        "accumulation": 2,
        "steps": 6,
        "workers": 0,
        "save_every": 100,
        "seed": 3,
        **changes,
    }
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "plan.yaml").write_text(yaml.safe_dump(values))
    return folder


def _train(world: Path, out: str, **more: Any) -> Path:
    return run_training(world / "plan.yaml", world / out, device="cpu", **more)


def _log(world: Path, out: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (world / out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _weights(profile: Path) -> dict[str, torch.Tensor]:
    """Every tensor of what a profile names."""
    plan = load_plan(profile.parents[4] / "plan.yaml")
    return dict(load_trainable(load_profile(str(profile)), plan, torch.device("cpu")).state_dict())


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("frozen", [None, ["vision_encoder"]], ids=["all learns", "encoder frozen"])
def test_a_run_that_was_stopped_is_the_run_that_was_not(world: Path, profile: str, frozen: list[str] | None) -> None:
    rates = dict.fromkeys(("mlp_k", "mlp_n", "language_model"), 3e-3)
    _write(world, profile, freeze=frozen, learning_rates=rates)
    whole = _train(world, "whole")
    _train(world, "parts", stop_after=3)
    assert [line["step"] for line in _log(world, "parts")] == [1, 2, 3]
    with (world / "parts" / "log.jsonl").open("a") as file:  # a fourth step was begun and its line not finished
        file.write(json.dumps({**_log(world, "parts")[-1], "step": 4}) + '\n{"step": 5, "lo')
    parts = _train(world, "parts")
    assert _log(world, "parts") == _log(world, "whole")
    assert len({line["loss"] for line in _log(world, "whole")}) == 6
    assert _same(_weights(parts), _weights(whole))
    one, other = (path.parents[1] / "state" for path in (parts, whole))
    states = [tree_leaves(torch.load(state / "optimizer.bin", weights_only=True)) for state in (one, other)]
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert json.loads((one / "rates.json").read_text()) == json.loads((other / "rates.json").read_text())


class _Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("name", ["optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "rates.json"])
def test_nothing_in_the_folder_of_a_run_is_executed(world: Path, profile: str, name: str) -> None:
    _write(world, profile)
    _train(world, "hostile", stop_after=1)
    state = next((world / "hostile" / "checkpoints").iterdir()) / "state"
    assert not list(state.glob("custom_checkpoint*"))
    torch.save(_Payload(world / "executed"), state / name)
    with suppress(Exception):  # a damaged checkpoint may be an error
        _train(world, "hostile")
    assert not (world / "executed").exists()


def test_a_checkpoint_of_an_older_version_is_refused(world: Path, profile: str) -> None:
    _write(world, profile)
    _train(world, "older", stop_after=1)
    state = next((world / "older" / "checkpoints").iterdir()) / "state"
    (state / "rates.json").unlink()
    with pytest.raises(UsageError, match="older version"):
        _train(world, "older")


def test_the_loss_falls_and_what_was_written_reads_back(world: Path, profile: str) -> None:
    rates = dict.fromkeys(("vision_encoder", "mlp_k", "mlp_n", "language_model"), 1e-2)
    _write(world, profile, steps=12, learning_rates=rates)
    seen: list[tuple[int, int]] = []
    written = _train(world, "out", on_step=lambda done, total, _: seen.append((done, total)))
    assert seen == [(i + 1, 12) for i in range(12)]
    losses = [line["loss"] for line in _log(world, "out")]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    weights = _weights(written)
    trained = load_file(written.parents[1] / "state" / "model.safetensors")
    assert trained.keys() <= weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.items())
    assert weights.keys() - trained.keys() <= {"language.lm_head.weight"}  # the embedding's, by another name
    assert "learning rates" in (world / "out" / "training.svg").read_text()
    assert (world / "out" / "last").resolve() == written.parents[1]
    before = written.stat().st_mtime_ns
    assert _train(world, "out") == written  # there is nothing left to do
    assert written.stat().st_mtime_ns == before


def test_an_unfinished_checkpoint_is_ignored(world: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(world, profile, save_every=2)
    whole = _train(world, "whole")
    calls = 0

    def breaks(*args: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real_save_model(*args)

    monkeypatch.setattr("model.training.loop.save_model", breaks)
    with pytest.raises(KeyboardInterrupt):
        _train(world, "broken")
    left = sorted(path.name for path in (world / "broken" / "checkpoints").iterdir())
    assert left == ["step-000002", "step-000004.part"]
    assert _same(_weights(_train(world, "broken")), _weights(whole))
    left = sorted(path.name for path in (world / "broken" / "checkpoints").iterdir())
    assert left == ["step-000004", "step-000006"]  # `keep` of them


def test_another_plan_or_other_data_is_refused(world: Path, profile: str) -> None:
    _train(world, "out", stop_after=1)
    _write(world, profile, seed=4, max_norm=2.0)
    with pytest.raises(UsageError, match=r"holds a run with other max_norm, seed; give the settings"):
        _train(world, "out")
    _write(world, profile, save_every=1, workers=1, cache="cache")  # what does not change what is learned
    _train(world, "out", stop_after=1)
    text = (world / "a.jsonl").read_text()
    (world / "a.jsonl").write_text(text.replace("08:07", "08:15"))
    with pytest.raises(UsageError, match="holds a run with other data;"):
        _train(world, "out")


def test_workers_and_the_cache_change_nothing(world: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(world, profile, steps=3)
    _train(world, "plain")
    for frozen, entries in ((None, 3), (["vision_encoder"], 6)):
        rates = dict.fromkeys(("mlp_k", "mlp_n", "language_model"), 3e-3)
        _write(world, profile, steps=3, workers=2, cache="cache", freeze=frozen, learning_rates=rates)
        _train(world, f"first {entries}")
        assert len([path for path in (world / "cache").glob("*/*") if path.suffix != ".part"]) == entries
        _write(world, profile, steps=3, cache="cache", freeze=frozen, learning_rates=rates)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.training.footage.read_frames", None)  # nothing is decoded again
            _train(world, f"second {entries}")
        assert _log(world, f"second {entries}") == _log(world, f"first {entries}")
    _write(world, profile, steps=3, cache="cache")
    _train(world, "cached")
    assert _log(world, "cached") == _log(world, "plain")
    for path in (world / "cache").glob("*/*/vectors.npy"):
        path.write_bytes(b"\x93NUMPY")
    with pytest.raises(TrainingDataInvalid, match=r"sample \d: its cache .* is damaged; delete that folder"):
        _train(world, "damaged")


def test_long_footage_is_thinned_evenly(world: Path, profile: str) -> None:
    for most, expected in ((10, range(0, 24, 4)), (24, range(24)), (7, range(0, 24, 4)), (1, [0])):
        _write(world, profile, max_frames=most, data={"datasets": [{"json_path": "a.jsonl"}]})
        plan = load_plan(world / "plan.yaml")
        trainee = load_trainable(load_profile(profile), plan, torch.device("cpu"))
        (sample,) = SampleReader(Conversations(plan), plan, trainee)([0])
        times = sample.features.captured_at
        assert ((times - times[0]) // 1_000_000).tolist() == list(expected)
        assert sample.features.pixels is not None
        assert len(sample.features.vectors) == len(sample.features.pixels) == len(expected)


def test_the_keyframes_of_a_sample_override_the_plan(world: Path, profile: str) -> None:
    _write(world, profile, keyframes=2)
    plan = load_plan(world / "plan.yaml")
    trainee = load_trainable(load_profile(profile), plan, torch.device("cpu"))
    samples = list(SampleReader(Conversations(plan), plan, trainee)([0, 3]))
    assert [(s.keyframes, s.query) for s in samples] == [(2, "what colour ?"), (1, "green truck")]
    assert [len(s.features.vectors) for s in samples] == [6, 1]


def test_bfloat16_changes_little(world: Path, profile: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        _write(world, profile, steps=2, precision=precision)
        written = _train(world, precision)
        losses.append([line["loss"] for line in _log(world, precision)])
        assert {tensor.dtype for tensor in _weights(written).values() if tensor.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


def test_a_loss_that_is_not_finite_stops_the_run(world: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(world, profile, learning_rates={"language_model": 0.9}, warm_up=0.0)
    real = TrainableModel.forward
    monkeypatch.setattr(
        TrainableModel,
        "forward",
        lambda *a: SampleLoss(real(*a).loss * float("nan"), 1, 1),
    )
    with pytest.raises(TrainingFailed, match=r"sample \d: the loss is nan; lower the learning rates"):
        _train(world, "out")
    assert not (world / "out" / "last").exists()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("first", [0, 5])
def test_every_epoch_reads_every_sample_once(processes: int, first: int) -> None:
    schedule = Schedule(samples=24, accumulation=4 // processes, processes=processes, seed=9, epochs=3, steps=None)
    assert schedule.total == 18
    each = [schedule.places(first, process) for process in range(processes)]
    # Read as the processes do, in turns, it is one order, however many there are, and from wherever one goes on.
    order = [place for turn in zip(*each, strict=True) for place in turn]
    alone = Schedule(samples=24, accumulation=4, processes=1, seed=9, epochs=3, steps=None).places(0, 0)
    assert order == alone[4 * first :]
    epochs = [alone[i : i + 24] for i in (0, 24, 48)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 3
    assert epochs[0] != epochs[1]


def test_too_few_samples_for_a_step() -> None:
    with pytest.raises(UsageError, match="3 samples do not fill one step of 2 × 2 processes"):
        _ = Schedule(samples=3, accumulation=2, processes=2, seed=0, epochs=1, steps=None).total


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:25%", range(3)),
        ("end:4", range(6, 10)),
        ("end:100%", range(10)),
        ("random:5", None),
        ("random:50%", None),
    ],
)
def test_sampling_strategies(tmp_path: Path, footage: Path, strategy: str, expected: range | None) -> None:
    samples = [_sample("back", f"what {i}", "red") for i in range(10)]
    for name, text in (
        ("list.json", json.dumps(samples, indent=1)),
        ("lines.jsonl", "\n\n".join(json.dumps(s, ensure_ascii=False) for s in samples)),
    ):
        (tmp_path / name).write_text(text)
        plans = []
        for seed in (1, 1, 2):
            values = {"data": {"datasets": [{"json_path": name, "sampling_strategy": strategy}]}, "seed": seed}
            (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**values, "footage": str(footage)}))
            conversations = Conversations(load_plan(tmp_path / "plan.yaml"))
            plans.append([int(c.query.split()[1]) for c in conversations])
            assert len(plans[-1]) == len(conversations)
        if expected is not None:
            assert plans == [list(expected)] * 3
        else:
            assert plans[0] == plans[1] == sorted(set(plans[0]))
            assert len(plans[0]) == 5
            assert plans[2] != plans[0]


def _broken(change: Callable[[dict[str, Any]], object]) -> str:
    samples = [_sample("back", "what ?", "grün"), _sample("back", "what ?", "red")]
    change(samples[1])
    return "\n".join(json.dumps(s, ensure_ascii=False) for s in samples)


DATA = {
    "no json": ('{"conversations": [}', r"a.json: line 1, sample 1: not JSON \(Expecting value"),
    "a list that breaks off": ('[\n{"a": 1},\n', r"a.json: line 3, sample 2: not JSON"),
    "no comma": ('[\n{"a": 1}\n{"b": 2}]', r"a.json: line 3, after sample 1: a comma or ] is missing"),
    "a trailing comma": ('[{"a": 1},\n]', r"a.json: line 2, sample 2: not JSON"),
    "empty": ("[ ]", "a.json: has no samples"),
    "blank": ("\n\n", "a.json: has no samples"),
    "not a sample": ("[3]", "a.json: line 1, sample 1: Input should be"),
    "no conversations": (_broken(lambda s: s.pop("conversations")), "line 2, sample 2: conversations: Field required"),
    "a role": (
        _broken(lambda s: s["conversations"][1].update({"from": "robot"})),
        r"line 2, sample 2: conversations.1.from: Input should be 'human', 'user', 'gpt' or 'assistant'",
    ),
    "no answer": (_broken(lambda s: s["conversations"].pop()), "line 2, sample 2: the last turn should be from gpt"),
    "no placeholder": (
        _broken(lambda s: s["conversations"][0].update(value="what ?")),
        "line 2, sample 2: one <image> or <video> is required",
    ),
    "two sources": (
        _broken(lambda s: s.update(image="a.png")),
        "line 2, sample 2: give exactly one of video and image",
    ),
    "no source": (_broken(lambda s: s.pop("video")), "line 2, sample 2: give exactly one of video and image"),
    "no file": (
        _broken(lambda s: s.update(video="gone.mp4")),
        r"line 2, sample 2: .*gone.mp4 does not exist; set footage",
    ),
    "no K": (_broken(lambda s: s.update(max_frame_num=0)), "line 2, sample 2: max_frame_num: Input should be greater"),
    "nothing asked": (
        _broken(lambda s: s["conversations"][0].update(value="<video>\n")),
        "line 2, sample 2: no query and no words in the first turn",
    ),
}


@pytest.mark.parametrize(("text", "expected"), DATA.values(), ids=DATA)
def test_invalid_data_is_refused(tmp_path: Path, footage: Path, text: str, expected: str) -> None:
    (tmp_path / "a.json").write_text(text)
    plan = {"data": {"datasets": [{"json_path": "a.json"}]}, "footage": str(footage)}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(TrainingDataInvalid, match=expected) as error:
        Conversations(load_plan(tmp_path / "plan.yaml"))
    assert "\n" not in str(error.value)


def test_a_sample_of_a_list_is_named_by_its_line(tmp_path: Path, footage: Path) -> None:
    good, bad = _sample("back", "wie groß ?", "über 2 €"), _sample("gone", "what ?", "red")
    text = json.dumps([good, good, bad], indent=2, ensure_ascii=False)
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "plan.yaml").write_text(f"data: {{datasets: [{{json_path: a.json}}]}}\nfootage: {footage}\n")
    line = text[: text.rindex('"id"')].count("\n")  # the brace is one line above
    with pytest.raises(TrainingDataInvalid, match=f"a.json: line {line}, sample 3: .*gone.mp4 does not exist"):
        Conversations(load_plan(tmp_path / "plan.yaml"))


def test_footage_that_does_not_decode(world: Path) -> None:
    (world / "back.mp4").write_text("no video")
    (world / "still.png").write_text("no picture")
    for text, workers in (("line 2, sample 2: .*back.mp4", 0), ("line 2, sample 2: .*back.mp4", 1), ("line 4", 0)):
        plan = load_plan(world / "plan.yaml").model_copy(update={"workers": workers})
        trainee = load_trainable(load_profile(plan.profile), plan, torch.device("cpu"))
        number = 1 if "back" in text else 3
        with pytest.raises(TrainingDataInvalid, match=rf"a.jsonl: {text}.*leave (it|the sample) out"):
            list(SampleReader(Conversations(plan), plan, trainee)([number]))


PLANS = {
    "unknown key": ({"sped": 1}, "plan.yaml: sped: this key is not known"),
    "stage": ({"stage": 4}, "plan.yaml: stage: Input should be 1, 2 or 3"),
    "no data": ({"data": None}, "plan.yaml: data: Field required"),
    "no datasets": ({"data": {}}, "plan.yaml: data: the list of datasets is missing"),
    "unknown in data": ({"data": {"datasets": [], "more": 1}}, "plan.yaml: data: more is an unknown key"),
    "strategy": (
        {"data": {"datasets": [{"json_path": "a.jsonl", "sampling_strategy": "some"}]}},
        "plan.yaml: datasets.0.sampling_strategy: 'some' is not a sampling strategy; give all, first:N",
    ),
    "too large a share": (
        {"data": {"datasets": [{"json_path": "a.jsonl", "sampling_strategy": "random:101%"}]}},
        "is more than all",
    ),
    "a rate of nothing": ({"learning_rates": {"mlp_q": 1}}, "plan.yaml: learning_rates.mlp_q"),
    "a rate of 0": ({"learning_rates": {"mlp_k": 0}}, "freeze the component to leave it unchanged"),
    "frozen with a rate": (
        {"learning_rates": {"mlp_k": 1e-3}, "freeze": ["mlp_k"]},
        "mlp_k has a learning rate and is frozen",
    ),
    "data file": ({"data": "gone.yaml"}, "gone.yaml: cannot be read"),
}


@pytest.mark.parametrize(("changes", "expected"), PLANS.values(), ids=PLANS)
def test_invalid_plans_are_refused(world: Path, profile: str, changes: dict[str, Any], expected: str) -> None:
    _write(world, profile, **changes)
    with pytest.raises(UsageError, match=expected):
        load_plan(world / "plan.yaml")


def test_more_samples_than_there_are(world: Path, profile: str) -> None:
    _write(world, profile, data={"datasets": [{"json_path": "a.jsonl", "sampling_strategy": "end:5"}]})
    with pytest.raises(
        TrainingDataInvalid, match=r"a.jsonl: sampling_strategy end:5 wants 5 samples and the file has 4"
    ):
        Conversations(load_plan(world / "plan.yaml"))


def test_a_line_of_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("stage: 1\ndata: [\n")
    with pytest.raises(UsageError, match=r"plan.yaml: line 3: not YAML"):
        load_plan(tmp_path / "plan.yaml")


def test_the_stages(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("datasets:\n  - {json_path: x/a.json, sampling_strategy: random:10%}\n")
    for stage, frames in ((1, 64), (2, 256), (3, 1024)):
        (tmp_path / "plan.yaml").write_text(f"stage: {stage}\ndata: data.yaml\nlearning_rates: {{mlp_k: 2e-5}}\n")
        plan = load_plan(tmp_path / "plan.yaml")
        assert (plan.max_frames, plan.accumulation, plan.warm_up, plan.epochs) == (frames, 4, 0.03, 1)
        assert (plan.rate("vision_encoder"), plan.rate("language_model"), plan.rate("mlp_k")) == (2e-6, 1e-5, 2e-5)
        assert plan.data[0].json_path == tmp_path / "x" / "a.json"


def test_the_command(world: Path, sightline: Command) -> None:
    done = sightline("train", "run", "plan.yaml", "--out", "out", "--stop-after", 2, at=world)
    assert done.code == 0, done.err
    rows = {line[:28].strip(): line.split() for line in done.out.splitlines()}
    assert rows["mlp_k"][-3:] == ["learning", "rate", "0.003"]
    assert rows["CLIP"][-1] == "frozen"
    assert "5 samples" in done.out
    assert "profile in out/checkpoints/step-000002/model/profile.toml" in done.out
    assert sightline("train", "run", "plan.yaml", "--out", "out", "--stop-after", 0, at=world).code == 2
    (world / "a.jsonl").write_text("{}\n")
    wrong = sightline("train", "run", "plan.yaml", "--out", "out", at=world)
    assert wrong.code == 1
    assert wrong.err.startswith("sightline: a.jsonl: line 1, sample 1: conversations: Field required")
