"""The query of a search: a vector of the frame encoder, made from a text, pictures, or both.

    text ─────────────── text encoder ──▶ t ┐
    uploaded picture ─── frame encoder ─▶ p ├─▶ (1 − w) · t + w · mean(p, f), of unit norm
    stored frame ─────── its vector ────▶ f ┘

With a text alone the query is t, with pictures alone it is their mean. Every vector has unit norm before it is
combined. A CLIP puts pictures nearer to pictures than to texts, so scores with and without pictures are on different
scales: the percentile of a moment compares them, the cosine does not.

A stored frame needs no encoder. Does not know how frames are searched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.errors import EmptyWindow, UnknownFrame, UsageError
from index.records import rfc3339
from index.store import Store
from model.encoders.encoder import FrameEncoder

__all__ = ["combine", "query_vector", "stored_vector"]

NEAR_SECONDS = 2.0
"""A stored frame is meant if it is at most this far from the time that is given."""


def combine(
    text: NDArray[np.float32] | None, pictures: Sequence[NDArray[np.float32]], weight: float = 0.5
) -> NDArray[np.float32]:
    """The query of a text and pictures, float32[Df] of unit norm.

    Args:
        text: vector of the text, float32[Df] of unit norm; None without a text.
        pictures: vectors of the pictures, likewise; may be empty.
        weight: share of the pictures beside a text, w; ignored unless there are both.

    Raises:
        UsageError: there is neither a text nor a picture, `weight` is not between 0 and 1, or the parts cancel out.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"--weight must be between 0 (the text alone) and 1 (the picture alone), got {weight:g}")
    if text is None and not pictures:
        raise UsageError("nothing to look for; give a text, a picture, or a stored frame")
    seen = _unit(np.mean(np.stack(pictures), axis=0)) if pictures else None
    if text is None or seen is None:
        single = seen if text is None else text
        return _unit(np.asarray(single, np.float32))
    return _unit((1 - weight) * text + weight * seen)


def _unit(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    norm = float(np.linalg.norm(vector))
    if not norm > 1e-6:
        raise UsageError("text and pictures cancel each other out; search for them one by one")
    return np.asarray(vector / norm, np.float32)


def stored_vector(store: Store, stream_id: str, at: int, streams: Sequence[str]) -> NDArray[np.float32]:
    """The vector of the stored frame of a stream that is nearest to a time, float32[Df] of unit norm.

    Args:
        store: the store.
        stream_id: the stream.
        at: UTC microseconds.
        streams: ids of the streams that the caller may see; another stream is unknown.

    Raises:
        UnknownFrame: there is no frame within `NEAR_SECONDS` of `at`, or no such stream for this caller.
    """
    missing = UnknownFrame(f"{stream_id} has no frame at {rfc3339(at)}; `sightline streams` lists what there is")
    if stream_id not in streams:
        raise missing
    reach = round(NEAR_SECONDS * 1e6)
    try:
        found = store.window([stream_id], at - reach, at + reach + 1)
    except EmptyWindow:
        raise missing from None
    nearest: NDArray[np.float32] = found.frame_vectors[int(np.abs(found.captured_at - at).argmin())]
    return nearest


def query_vector(
    encoder: FrameEncoder | None,
    *,
    text: str | None = None,
    picture: NDArray[np.uint8] | None = None,
    stored: NDArray[np.float32] | None = None,
    weight: float = 0.5,
) -> NDArray[np.float32]:
    """The query of a search, float32[Df] of unit norm; see the module.

    Args:
        encoder: the frame encoder of the store; may be None for a stored frame alone.
        text: what to look for.
        picture: RGB, uint8[H, W, 3], of any size.
        stored: vector of a stored frame, float32[Df].
        weight: share of the pictures beside a text.

    Raises:
        UsageError: there is nothing to look for, the text is empty, or `weight` is invalid.
    """
    if text is not None and not text.strip():
        raise UsageError("the text is empty; type what to look for")
    if encoder is None and (text is not None or picture is not None):
        raise UsageError("a text or a picture needs an encoder")
    words = None if text is None or encoder is None else encoder.encode_text([text])[0]
    pictures = [] if picture is None or encoder is None else [encoder.encode_frames([picture])[0]]
    if stored is not None:
        pictures.append(stored)
    return combine(words, pictures, weight)
