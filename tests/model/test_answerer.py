from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.errors import BudgetExceeded, StoreCorrupt, UsageError, WeightsInvalid
from model.answerer import Answerer, AnswerRequest, load_answerer
from model.answers import Answer
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import ConnectorSpec, Profile, Source, load_profile
from model.visual.connector import Connector
from model.visual.dfm import merge, merge_mean
from model.visual.prompt import build_prompt, clock_ids
from tests.support import tiny_checkpoints as tiny

BEGAN = 1_709_280_420_000_000  # 2024-03-01T08:07:00Z
QUESTION = "What colour was the truck at the gate?"
OPTIONS = ("red", "blue car", "green", "white")


def _patches(n: int) -> NDArray[np.float16]:
    return np.random.default_rng(0).standard_normal((n, tiny.PATCHES, tiny.WIDTH)).astype(np.float16)


def _request(flags: Sequence[bool], streams: Sequence[int] | None = None, **values: Any) -> AnswerRequest:
    n = len(flags)
    patches = _patches(n)
    patches.setflags(write=False)
    return AnswerRequest(
        question=QUESTION,
        stream_index=np.array(streams or [0] * n, np.int32),
        captured_at=BEGAN + 60_000_000 * np.arange(n, dtype=np.int64),
        keyframe=np.array(flags, bool),
        read_patches=lambda rows, out: np.copyto(out, patches[rows]),
        **values,
    )


def _final(answerer: Answerer, request: AnswerRequest) -> tuple[list[str], Answer]:
    pieces = list(answerer.answer(request))
    assert [piece.answer is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert pieces[-1].answer is not None
    return [piece.text for piece in pieces], pieces[-1].answer


def _by_hand(answerer: Answerer, request: AnswerRequest) -> torch.Tensor:
    """The prompt's embeddings, put together frame by frame."""
    tokenizer = answerer.language.tokenizer
    prefix, suffix = build_prompt(tokenizer, request.question, request.options)
    query = torch.from_numpy(answerer.encoders.patch.encode_text([request.question])[0])
    patches = torch.from_numpy(_patches(len(request.keyframe))).float()
    parts = [answerer.language.embed(prefix)]
    assert isinstance(answerer.connector, Connector)
    with torch.inference_mode():
        for row, flag in enumerate(request.keyframe):
            if flag:
                parts.append(answerer.language.embed(clock_ids(tokenizer, int(request.captured_at[row]))))
                parts.append(answerer.connector.keyframe(patches[row]))
                continue
            same = request.stream_index == request.stream_index[row]
            before = [i for i in range(row) if request.keyframe[i] and same[i]]
            token = merge(patches[row : row + 1], patches[before[-1]] if before else None, query)
            parts.append(answerer.connector.frame(token))
        return torch.cat([*parts, answerer.language.embed(suffix)])


def test_the_sequence_is_in_temporal_order_and_every_stream_has_its_own_reference(answerer: Answerer) -> None:
    request = _request([False, True, False, False, True, False], [0, 0, 0, 1, 1, 1], options=OPTIONS)
    expected = _by_hand(answerer, request)
    _, answer = _final(answerer, request)
    assert answer.visual_tokens == 2 * tiny.PATCHES + 4
    assert answer.prompt_tokens == len(expected)
    prompt = answerer.language.prefill(expected)
    ids = [[*answerer.language.tokenizer(o, add_special_tokens=False).input_ids, 3] for o in OPTIONS]
    totals = answerer.language.score(prompt, ids)
    mean = sum(map(len, ids)) / len(ids)
    scores = torch.tensor([t * mean / len(i) for t, i in zip(totals, ids, strict=True)])
    np.testing.assert_allclose(answer.probabilities, torch.softmax(scores, 0).numpy(), atol=2e-3)


def test_options_are_scored(answerer: Answerer) -> None:
    texts, answer = _final(answerer, _request([True, False, False], options=OPTIONS))
    assert "".join(texts) == answer.text == OPTIONS[answer.option or 0]
    assert answer.option == int(np.argmax(answer.probabilities))
    assert sum(answer.probabilities) == pytest.approx(1)


def test_an_open_answer_is_streamed(answerer: Answerer) -> None:
    request = _request([True, False, False])
    texts, answer = _final(answerer, request)
    tokens = list(answerer.language.decode(answerer.language.prefill(_by_hand(answerer, request)), max_new_tokens=6))
    assert answer.text == answerer.language.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert "".join(texts).strip() == answer.text
    assert len(texts) > 1
    assert (answer.option, answer.probabilities) == (None, ())


def test_streamed_text_is_never_taken_back(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = answerer.language.tokenizer("at 08:07 the red car", add_special_tokens=False).input_ids
    monkeypatch.setattr(answerer.language, "decode", lambda prompt, max_new_tokens, sampling: iter(ids))
    assert answerer.language.tokenizer.decode(ids[:3]) == "at 08 :"  # the colon is still apart here
    texts, answer = _final(answerer, _request([True]))
    assert "".join(texts) == answer.text == "at 08:07 the red car"
    assert len(texts) > 2


def test_an_answer_may_be_empty(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerer.language, "decode", lambda prompt, max_new_tokens, sampling: iter(()))
    texts, answer = _final(answerer, _request([True]))
    assert (texts, answer.text) == ([""], "")
    assert "first_token" in answer.timings


def test_timings_name_every_stage(answerer: Answerer) -> None:
    _, answer = _final(answerer, _request([True, False, False]))
    assert set(answer.timings) == {"patches", "dfm", "projector", "assembly", "prefill", "first_token", "decode"}
    assert all(seconds >= 0 for seconds in answer.timings.values())
    assert answer.timings["first_token"] >= answer.timings["prefill"]


@pytest.mark.parametrize("flags", [[], [False, False], [True, True]])
def test_windows_without_frames_or_of_one_kind(answerer: Answerer, flags: list[bool]) -> None:
    request = _request(flags, options=OPTIONS)
    _, answer = _final(answerer, request)
    assert answer.prompt_tokens == len(_by_hand(answerer, request))


def test_patches_are_read_in_bounded_slices(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.read_ahead._CHUNK_BYTES", {"cpu": 2 * 2 * tiny.PATCHES * tiny.WIDTH})
    sizes: list[int] = []
    whole = _request([True, False, False, False, False], options=OPTIONS)

    def read(rows: slice, out: NDArray[np.float16]) -> None:
        sizes.append(rows.stop - rows.start)
        whole.read_patches(rows, out)

    sliced = _request([True, False, False, False, False], options=OPTIONS)
    object.__setattr__(sliced, "read_patches", read)
    assert _final(answerer, sliced)[1].probabilities == pytest.approx(
        _final(answerer, whole)[1].probabilities, abs=1e-3
    )
    assert sizes[-3:] != [5]
    assert max(sizes) == 2


def test_mean_pooling_can_take_the_place_of_dfm(profile: Profile, encoders: Encoders, answerer: Answerer) -> None:
    mean = load_answerer(profile, encoders, "cpu", merge=merge_mean)
    request = _request([True, False, False], options=OPTIONS)
    assert _final(mean, request)[1].probabilities != _final(answerer, request)[1].probabilities


def test_the_budget_is_checked_before_anything_is_read(answerer: Answerer) -> None:
    request = _request([True] * 40, options=OPTIONS)
    object.__setattr__(request, "read_patches", lambda *_: pytest.fail("patches were read"))
    with pytest.raises(
        BudgetExceeded, match=r"40 frames with 40 keyframes need \d+ tokens, the tiny profile has room for 400"
    ):
        list(answerer.answer(request))


@pytest.mark.parametrize("options", [(), OPTIONS])
def test_max_frames_is_the_most_that_fits(answerer: Answerer, options: tuple[str, ...]) -> None:
    most = answerer.max_frames(4, QUESTION, options)
    need = answerer.check_budget(keyframes=4, frames=most, question=QUESTION, options=options)
    assert need == answerer.language.max_context
    with pytest.raises(BudgetExceeded):
        answerer.check_budget(keyframes=4, frames=most + 1, question=QUESTION, options=options)
    flags = [i < 4 for i in range(most)]
    _final(answerer, _request(flags, options=options))


def test_max_frames_stops_at_the_profiles_limit(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerer.language, "max_context", 10**6)
    assert answerer.max_frames(4) == 500


def test_keyframes_that_do_not_fit_alone(answerer: Answerer) -> None:
    with pytest.raises(BudgetExceeded, match="--k"):
        answerer.max_frames(50)


def test_words_the_model_does_not_know(answerer: Answerer) -> None:
    assert answerer.unknown_words("What colour was the Zebra at the zebra gate near Oslo?") == [
        "Zebra",
        "zebra",
        "near",
        "Oslo",
    ]
    assert answerer.unknown_words(QUESTION) == []
    assert answerer.notice == "random weights"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": "  "}, "question is empty"),
        ({"options": ("red", " ")}, "option is empty"),
        ({"keyframe": np.zeros(2, bool)}, "one length"),
    ],
)
def test_requests_that_cannot_be_right(values: dict[str, Any], message: str) -> None:
    good = _request([True, False, False])
    fields = {name: getattr(good, name) for name in AnswerRequest.__dataclass_fields__}
    with pytest.raises(UsageError, match=message):
        AnswerRequest(**{**fields, **values})


def test_what_reading_raises_is_raised_to_who_asks(answerer: Answerer) -> None:
    request = _request([True, False])

    def read(rows: slice, out: NDArray[np.float16]) -> None:
        raise StoreCorrupt("a frame without patches")

    object.__setattr__(request, "read_patches", read)
    with pytest.raises(StoreCorrupt, match="without patches"):
        list(answerer.answer(request))


def test_a_connector_of_other_widths_is_refused(profile: Profile, encoders: Encoders, tmp_path: Path) -> None:
    Connector(tiny.WIDTH, 8).save(tmp_path / "connector.safetensors")
    other = ConnectorSpec(source=Source(folder=tmp_path / "connector.safetensors"))
    with pytest.raises(WeightsInvalid, match="24 to 8 dimensions"):
        load_answerer(profile.model_copy(update={"connector": other}), encoders, "cpu")


def test_edge_answers_from_checkpoints_in_its_layout(profile: Profile, tmp_path: Path) -> None:
    """The shipped profile with its hub sources swapped for folders: SigLIP of 3 layers, LLaVA-OneVision of 2."""
    edge = load_profile("edge")
    llava = Source(folder=tmp_path / "llava")
    tiny.save_siglip(tmp_path / "siglip", layers=3, tokenizer_class="SiglipTokenizer")
    tiny.save_llava_onevision(tmp_path / "llava", layers=2)
    patch = edge.patch_encoder.model_copy(
        update={"source": Source(folder=tmp_path / "siglip"), "tower": llava, "layer": 2}
    )
    local = edge.model_copy(
        update={
            "frame_encoder": profile.frame_encoder,
            "patch_encoder": patch,
            "language_model": edge.language_model.model_copy(update={"source": llava, "max_new_tokens": 4}),
            "connector": edge.connector.model_copy(update={"source": llava}),
            "dfm": edge.dfm.model_copy(update={"keyframe_tokens": 9}),
        }
    )
    encoders = load_encoders(local, "cpu")
    answerer = load_answerer(local, encoders, "cpu")
    _, patches = encoders.patch.encode_frames([np.full((40, 50, 3), i * 40, np.uint8) for i in range(5)])
    request = _request([False, True, False, False, False], options=OPTIONS)
    object.__setattr__(request, "read_patches", lambda rows, out: np.copyto(out, patches[rows]))
    _, answer = _final(answerer, request)
    assert answer.text in OPTIONS
    assert answer.visual_tokens == 9 + 4 + 1  # pooled keyframe, other frames, newline
