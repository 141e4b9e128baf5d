"""What differential feature merging kept of a frame for a question: the weight of each patch, as a grid.

The weights are computed on the CPU from the stored patches: those of the frame, and those of the keyframe before it
that the question selected (`model.visual.dfm.merge_weights`). A keyframe is read whole, so it has no weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from index.errors import UsageError
from index.records import parse_rfc3339, rfc3339
from index.search.resident_frames import ResidentStream
from index.window import Window
from model.profiles.profile import DfmSpec
from model.visual.dfm import merge_weights
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.asking import read_question
from pipeline.desk.desk import Desk
from pipeline.http.replies import Reply, TimeText

__all__ = ["HeatMap", "heat_map"]


class HeatMap(Reply):
    """What was kept of a frame."""

    stream_id: str
    """The stream."""
    at: TimeText
    """Time of the frame, RFC 3339 UTC."""
    keyframe: TimeText | None
    """Time of the keyframe that it was compared with; null before the first keyframe of the stream."""
    grid: list[list[float]]
    """Weight of each patch divided by the largest, 0 to 1, in rows from the top left."""
    weights_sum: float
    """Sum of the weights, 1 but for rounding."""


def heat_map(desk: Desk, caller: Caller, stream_id: str, at: int, question_id: str) -> HeatMap:
    """The weights of the patches of a frame for a question of the caller.

    Raises:
        UnknownItem: the caller has no such question.
        UnknownStream, UnknownFrame: there is no such frame that the caller may see.
        UsageError: the frame is a keyframe, the question was not about the stream, the profile merges otherwise, or the
            store's patches have no places in a picture.
    """
    side = desk.store.encoders.grid_side()
    question = read_question(desk, caller, question_id)
    stream = desk.stream(caller, stream_id, Action.ASK)
    if question.selected is None or stream.stream_id not in question.streams:
        raise UsageError(f"{stream_id}: the question selected no keyframes of this stream; ask about it first")
    row = stream.row(at)
    times = [
        parse_rfc3339(each.captured_at) for each in question.selected.keyframes if each.stream_id == stream.stream_id
    ]
    if at in times:
        raise UsageError(
            f"{stream_id} at {rfc3339(at)} is a keyframe, which the model reads whole; choose another frame"
        )
    spec = getattr(desk.models.asker.profile, "dfm", None)
    if not isinstance(spec, DfmSpec) or spec.mode != "paper":
        raise UsageError(
            "the profile merges frames with learned weights, which are not shown; use a profile of mode paper"
        )
    before = max((each for each in times if each < at), default=None)
    rows = [row] if before is None else [row, stream.row(before)]
    patches = torch.from_numpy(_patches(desk, stream, np.array(rows)).astype(np.float32))
    query = torch.from_numpy(desk.models.text_vector(question.question, "patch"))
    weights = merge_weights(patches[:1], None if before is None else patches[1], query, alpha=spec.alpha, lam=spec.lam)[
        0
    ].numpy()
    grid = (weights / weights.max()).reshape(side, side)
    return HeatMap(
        stream_id=stream.stream_id,
        at=rfc3339(at),
        keyframe=None if before is None else rfc3339(before),
        grid=[[round(float(value), 5) for value in line] for line in grid],
        weights_sum=round(float(weights.sum()), 5),
    )


def _patches(desk: Desk, stream: ResidentStream, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Patches of the rows in their order, float16[n, M, Dp]."""
    order = np.argsort(rows)
    count = len(rows)
    window = Window(
        [stream.stream_id],
        np.zeros(count, np.int32),
        stream.captured_at[rows[order]],
        np.zeros(count),
        np.zeros((count, 0), np.float32),
    )
    return desk.store.patches(window)[np.argsort(order)]
