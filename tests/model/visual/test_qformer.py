"""The Q-former against its definition, and training of a merger alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from model.answerer import Answerer
from model.encoders.encoder import Encoders
from model.language.transformers_engine import TransformersLanguage
from model.training.mergers import MergerExample, MergerTraining, train_merger
from model.visual.connector import Connector
from model.visual.dfm_learned import projector_mlp
from model.visual.interface import Frames
from model.visual.prompt import build_prompt
from model.visual.qformer import QFormer
from model.visual.tokens import FeatureVisual, build_visual


def test_one_query_attends_to_the_patches_of_its_own_frame() -> None:
    """Four heads, each a softmax over the patches, and the two residual halves, in plain products."""
    torch.manual_seed(1)
    former = QFormer(8).double()
    patches = torch.randn(3, 5, 8, dtype=torch.float64)
    got = former(patches, None, torch.zeros(8))
    attention = former.attention
    for frame, merged in zip(patches, got, strict=True):
        rows, start = former.patch_norm(frame), former.query_norm(former.query)
        q, k, v = (part @ w.T for part, w in zip((start, rows, rows), attention.in_proj_weight.chunk(3), strict=True))
        heads = []
        for h in range(4):
            own = slice(2 * h, 2 * h + 2)
            weights = torch.softmax(k[:, own] @ q[own] / math.sqrt(2), dim=0)
            heads.append(weights @ v[:, own])
        read = former.query + attention.out_proj(torch.cat(heads))
        torch.testing.assert_close(merged, read + former.feed_forward(former.norm(read)))
    assert former(patches.half(), None, torch.zeros(8)).dtype == torch.float16


def example(answerer: Answerer, encoders: Encoders) -> MergerExample:
    """Six frames, one of them a keyframe, and an answer."""
    rng = np.random.default_rng(0)
    patches = torch.from_numpy(rng.normal(size=(6, encoders.patch.patches, encoders.patch.identity.dimension))).float()
    features = rng.normal(size=(6, encoders.frame.identity.dimension)).astype(np.float32)
    tokenizer = answerer.language.tokenizer
    prefix, suffix = build_prompt(tokenizer, "what is the truck ?")
    return MergerExample(
        frames=Frames(
            keyframe=np.arange(6) == 1,
            stream_index=np.zeros(6, np.int64),
            captured_at=np.arange(6) * 1_000_000,
            read=lambda rows: patches[rows],
            read_features=lambda rows: features[rows],
        ),
        question="what is the truck ?",
        prefix=prefix,
        suffix=suffix,
        answer=[*tokenizer("white", add_special_tokens=False).input_ids, answerer.language.end_id],
    )


@pytest.mark.parametrize("kind", ["q-former", "single token"])
def test_training_changes_the_merger_alone(answerer: Answerer, encoders: Encoders, kind: str) -> None:
    """The loss falls on one example, and every other weight keeps its value."""
    torch.manual_seed(2)
    connector, language = answerer.connector, answerer.language
    assert isinstance(connector, Connector)
    assert isinstance(language, TransformersLanguage)
    weights: nn.Module
    if kind == "q-former":
        weights = QFormer(connector.patch_dim)
        visual = build_visual(answerer.profile, encoders, connector, weights)
    else:
        weights = projector_mlp(encoders.frame.identity.dimension, connector.width)
        visual = FeatureVisual(answerer.profile.dfm, encoders, connector, weights)
    before = [p.clone() for p in (*connector.parameters(), *language.model.parameters())]
    run, shown = MergerTraining(steps=12, batch=1, rate=1e-2), example(answerer, encoders)
    train_merger(visual, language, weights, lambda number: shown, run, timestamps=True)
    assert len(run.losses) == 12
    assert run.losses[-1] < run.losses[0]
    after = [*connector.parameters(), *language.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in weights.parameters())
