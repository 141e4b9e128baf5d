"""What a CPU and a GPU must agree on, with the weights that are shipped. `SIGHTLINE_GPU=1` makes the lack of one a failure."""

from __future__ import annotations

import numpy as np
import pytest

from model.answerer import AnswerRequest, load_answerer
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile

pytestmark = pytest.mark.gpu


def test_micro_answers_on_a_gpu_as_on_a_cpu() -> None:
    profile = load_profile("micro")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (240, 320, 3), np.uint8) for _ in range(40)]
    given = {}
    for device in ("cpu", "cuda"):
        encoders = load_encoders(profile, device)
        vectors = encoders.frame.encode_frames(frames)
        _, patches = encoders.patch.encode_frames(frames)
        keyframe = np.arange(40) % 9 == 3

        def read(rows: slice, out: np.ndarray[tuple[int, ...], np.dtype[np.float16]], patches=patches) -> None:  # type: ignore[no-untyped-def]
            out[:] = patches[rows]

        request = AnswerRequest(
            question="what did the red person do?",
            options=("walk", "wave", "fall"),
            stream_index=np.zeros(40, np.int32),
            captured_at=1_709_280_000_000_000 + 1_000_000 * np.arange(40),
            keyframe=keyframe,
            read_patches=read,
        )
        *_, last = load_answerer(profile, encoders, device).answer(request)
        assert last.answer is not None
        given[device] = vectors, patches, last.answer
    (vectors, patches, answer), (their_vectors, their_patches, theirs) = given["cpu"], given["cuda"]
    assert float(np.einsum("nd,nd->n", vectors, their_vectors).min()) > 0.995  # bfloat16 on the GPU
    np.testing.assert_allclose(
        their_patches.astype(np.float32), patches.astype(np.float32), atol=0.05 * float(np.abs(patches).max())
    )
    assert theirs.prompt_tokens == answer.prompt_tokens
    np.testing.assert_allclose(theirs.probabilities, answer.probabilities, atol=0.1)
