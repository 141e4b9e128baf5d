"""A haystack with its needle as one window: rows of several streams of a store, read in the order of the splice.

Nothing is encoded: vectors and patches are those that the store has. To the models the splice is one stream with a
clock of its own, as a joined video would be. Times keep their place within cells of four seconds, so that clips remain
those that were encoded; a cut inside a clip, which only footage with gaps has, moves to the start of the clip. Memory
holds the vectors of some streams, and never the patches of a whole splice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.store import Store
from index.window import Window
from model.encoders.clips import clip_numbers
from pipeline.evaluation.needles.cases import CLIP, Piece

__all__ = ["Splice", "Streams"]

_CELL = CLIP * 1_000_000


class Streams:
    """Windows of whole streams of a store, of which the newest are kept.

    Args:
        store: the store.
        most_frames: most frames whose vectors are kept.
    """

    def __init__(self, store: Store, most_frames: int = 40_000) -> None:
        self.store, self.most_frames = store, most_frames
        self._kept: OrderedDict[str, Window] = OrderedDict()

    def window(self, stream: str) -> Window:
        """All frames of a stream. Raises UnknownStream or EmptyWindow if there are none."""
        if stream not in self._kept:
            self._kept[stream] = self.store.window([stream])
            while sum(map(len, self._kept.values())) > self.most_frames and len(self._kept) > 1:
                self._kept.popitem(last=False)
        self._kept.move_to_end(stream)
        return self._kept[stream]

    def cut(self, piece: Piece, *, whole_clips: bool) -> Window:
        """The frames of a piece; `whole_clips` moves its ends to the starts of clips."""
        window = self.window(piece.stream)
        first, stop = piece.first, piece.stop
        if whole_clips:
            clips = clip_numbers(window.captured_at, window.stream_index, CLIP)
            starts = np.append(np.flatnonzero(np.diff(clips, prepend=-1)), len(window))
            first, stop = (int(starts[np.searchsorted(starts, row, "right") - 1]) for row in (first, stop))
        return window.take(slice(first, stop))


class Splice:
    """Pieces of streams, joined.

    Args:
        streams: where pieces are cut from.
        pieces: the pieces in their order; may be empty.
        whole_clips: cut between clips only, for a profile that reads clips.

    Attributes:
        captured_at: times of the splice's own clock, int64[N], UTC microseconds, ascending.
        stream_index: zeros, int32[N]: one stream.
        vectors: vectors of the frame encoder, float32[N, Df].
    """

    def __init__(self, streams: Streams, pieces: Sequence[Piece], *, whole_clips: bool) -> None:
        self.store = streams.store
        self.pieces = list(pieces)
        self._windows = [streams.cut(piece, whole_clips=whole_clips) for piece in pieces]
        self._edges = np.cumsum([0, *map(len, self._windows)])
        self.captured_at = _clock(self._windows)
        self.stream_index = np.zeros(len(self), np.int32)
        width = streams.store.encoders.frame.dimension
        found = [window.frame_vectors for window in self._windows]
        self.vectors = np.concatenate(found) if found else np.zeros((0, width), np.float32)

    def __len__(self) -> int:
        return int(self._edges[-1])

    def rows_of(self, stream: str) -> NDArray[np.int64]:
        """The rows of a stream, ascending."""
        found = [
            np.arange(self._edges[i], self._edges[i + 1])
            for i, piece in enumerate(self.pieces)
            if piece.stream == stream
        ]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def seconds_of(self, stream: str) -> NDArray[np.float64]:
        """Seconds since the first frame of the stream, of each of its rows, float64."""
        found = [w.captured_at for w, piece in zip(self._windows, self.pieces, strict=True) if piece.stream == stream]
        times = np.concatenate(found) if found else np.zeros(0, np.int64)
        return np.asarray((times - (times[0] if len(times) else 0)) / 1e6, np.float64)

    def read_patches(self, rows: NDArray[np.int64], out: NDArray[np.float16]) -> None:
        """Fill float16[n, M, Dp] with the patches of ascending rows. Raises as `Store.patches`."""
        for window, part in self._parts(rows):
            self.store.patches(window, out[part])

    def read_features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The frame encoder's embeddings of ascending rows, float32[n, Df], not of unit norm."""
        return np.concatenate([self.store.frame_features(window) for window, _ in self._parts(rows)])

    def _parts(self, rows: NDArray[np.int64]) -> list[tuple[Window, slice]]:
        """The windows that ascending rows are in, cut to these rows, and their places among `rows`."""
        places = np.searchsorted(rows, self._edges)
        return [
            (window.take(rows[places[i] : places[i + 1]] - self._edges[i]), slice(places[i], places[i + 1]))
            for i, window in enumerate(self._windows)
            if places[i] < places[i + 1]
        ]


def _clock(windows: Sequence[Window]) -> NDArray[np.int64]:
    """Times of the joined windows, which begin at 2001-01-01 and continue in the next cell of four seconds."""
    now, parts = 978_307_200_000_000, list[NDArray[np.int64]]()
    for window in windows:
        if len(window):
            times = window.captured_at - window.captured_at[0] // _CELL * _CELL + now
            parts.append(times)
            now = (int(times[-1]) // _CELL + 1) * _CELL
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
