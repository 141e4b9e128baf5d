"""A model service over a store: `sightline model-service`. The only module that knows both the routes and the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.errors import EmptyWindow, StoreCorrupt, UnknownFrame, mask_url
from index.records import rfc3339
from index.window import Window
from model.answerer import AnswerRequest
from model.hico.sampling import covered_seconds
from model.selection import keyframe_mask, reading
from pipeline.questions.asker import WINDOW_BYTES, Asker
from pipeline.service.answers.finished import FrameReferences
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from pipeline.service.limits import ServiceLimits
from pipeline.service.server import check_address, run_service

if TYPE_CHECKING:
    from pydantic import SecretStr

__all__ = ["StoreFrames", "make_service", "serve"]


class StoreFrames:
    """The store of an asker as the `FrameSource` of a service, see `pipeline.service.engine`."""

    def __init__(self, asker: Asker) -> None:
        self._asker, self._store = asker, asker.store

    def patches(self, rows: FrameReferences, part: slice, out: NDArray[np.float16]) -> None:
        """Read the patches of the rows `part` into `out`, float16[n, M, Dp]. Raises UnknownFrame, StoreError."""
        times = rows.captured_at[part]
        nothing = np.zeros((len(times), 0), np.float32)
        window = Window(rows.stream_ids, rows.stream_index[part], times, np.zeros(len(times)), nothing)
        try:
            self._store.patches(window, out)
        except StoreCorrupt:
            self._check_frames(window)
            raise

    def choose(
        self,
        question: str,
        *,
        streams: Sequence[str] | None,
        start: str | None,
        end: str | None,
        k: int | None,
        tau: float | None,
        max_frames: Callable[[int], int],
    ) -> FrameReferences:
        """Select keyframes (DKS) in a window, and an even selection of the others; see `FrameSource.choose`.

        Raises:
            UsageError, UnknownStream, EmptyWindow.
        """
        selection = self._asker.select(question, streams=streams, start=start, end=end, k=k, tau=tau)
        window = selection.window
        rows = reading(
            self._asker.profile,
            window.stream_index,
            window.captured_at,
            selection.keyframes,
            room=max_frames(len(selection.keyframes)),
        )
        mask = keyframe_mask(selection.keyframes, len(window))
        return FrameReferences(
            window.stream_ids,
            window.stream_index[rows],
            window.captured_at[rows],
            mask[rows],
            covered_seconds(window.captured_at, window.stream_index),
        )

    def features(self, rows: FrameReferences, part: slice) -> NDArray[np.float32]:
        """Embeddings of the frame encoder for the rows `part`, float32[n, Df], not of unit norm. Raises UnknownFrame,
        StoreError, and UsageError if the store lacks their norms."""
        index, times = rows.stream_index[part], rows.captured_at[part]
        found = np.empty((len(times), self._store.encoders.frame.dimension), np.float32)
        for stream in np.unique(index).tolist():
            mine = index == stream
            held = self._stored_frames(rows.stream_ids[stream], times[mine])
            found[mine] = self._store.frame_features(held.take(np.searchsorted(held.captured_at, times[mine])))
        return found

    def _check_frames(self, asked: Window) -> None:
        """Raise UnknownFrame if a frame is not in the store; return if only its patches are missing."""
        for stream in np.unique(asked.stream_index).tolist():
            self._stored_frames(asked.stream_ids[stream], asked.captured_at[asked.stream_index == stream])

    def _stored_frames(self, name: str, times: NDArray[np.int64]) -> Window:
        """The stream's frames from the first of `times` to the last. Raises UnknownFrame if one of them is missing."""
        try:
            held = self._store.window([name], int(times.min()), int(times.max()) + 1)
        except EmptyWindow:
            unknown = times
        else:
            unknown = np.setdiff1d(times, held.captured_at)
        if len(unknown):
            raise UnknownFrame(
                f"{name} at {rfc3339(int(unknown[0]))}: the store has no such frame ({len(unknown)} in all); it may "
                "have been forgotten after it was selected, so ask again"
            )
        return held


def make_service(
    store: str,
    profile: str,
    device: str | None,
    *,
    token: SecretStr | None,
    limits: ServiceLimits | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> ModelService:
    """Load the models and the store, and answer one question without frames, so that the first request is not slower.

    Raises:
        StoreError, ModelError: as `Asker`.
    """
    asker = Asker(store, profile, device, window_bytes=window_bytes)
    none = np.zeros(0, np.int64)
    warm = AnswerRequest(
        question="ready?",
        stream_index=none,
        captured_at=none,
        keyframe=none.astype(np.bool_),
        read_patches=lambda _, __: None,
    )
    for _ in asker.answerer.answer(warm):
        pass
    return ModelService(ServiceEngine(asker.answerer, StoreFrames(asker)), token=token, limits=limits)


def serve(
    store: str,
    profile: str,
    device: str | None,
    *,
    host: str,
    port: int,
    token: SecretStr | None,
    limits: ServiceLimits,
    window_bytes: int = WINDOW_BYTES,
    on_listen: Callable[[str], None],
) -> None:
    """Load a service and serve until SIGTERM; see `pipeline.service.server.run_service`.

    Args:
        store: URL or path of the store.
        profile: name of a model profile, or the path of its TOML file.
        device: device of the models; a GPU if there is one if None.
        host, port: address to listen on; port 0 picks a free one.
        token: bearer token that clients must send.
        limits: limits of requests.
        window_bytes: see `pipeline.questions.asker.Asker`.
        on_listen: called with the URL once the service listens.

    Raises:
        UsageError: there is no token, and the address is not a loopback address; raised before anything is loaded.
        ServiceUnavailable: the address is in use.
        StoreError, ModelError: as `Asker`.
    """
    check_address(host, token)
    service = make_service(store, profile, device, token=token, limits=limits, window_bytes=window_bytes)
    shown = f"[{host}]" if ":" in host else host
    run_service(
        service,
        host=host,
        port=port,
        on_listen=lambda real: on_listen(mask_url(f"http://{shown}:{real}")),
    )
