"""The models of the desk: loaded once, in the background, embedded or behind a model service.

`text_vector` and `picture_vector` encode what is searched for. `asker` answers questions; its language model is loaded
with the first of them. Encoders are not made for several threads at once, so calls of one process wait for each other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.errors import ServiceError, UsageError
from index.store import Store
from pipeline.media.footage import FootageFinder
from pipeline.questions.asker import WINDOW_BYTES, Asker
from pipeline.service.client import ServiceClient

__all__ = ["DeskModels", "ModelState"]

ModelState = Literal["embedded", "service", "down"]
"""Where the language model runs, or `down` if it cannot be used."""
_VECTORS = 256


class _OneAtATime:
    """An encoder whose methods wait for each other: tokenizers are not made for several threads."""

    def __init__(self, encoder: Any, lock: threading.RLock) -> None:
        self._encoder, self._lock = encoder, lock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._encoder, name)
        if not callable(found) or name.startswith("_"):
            return found

        def locked(*args: Any, **options: Any) -> Any:
            """Call the method when no other runs."""
            with self._lock:
                return found(*args, **options)

        return locked


class DeskModels:
    """The encoders and the language model of one profile over one store.

    Args:
        store: the opened store.
        profile: name of a model profile, or the path of its TOML file.
        device: device of the models; a GPU if there is one if None.
        connect: returns the client of a model service; None to run the models in this process.
        footage, window_bytes: see `pipeline.questions.asker.Asker`.
    """

    def __init__(
        self,
        store: Store,
        profile: str,
        device: str | None,
        connect: Callable[[], ServiceClient] | None = None,
        *,
        footage: FootageFinder | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._footage, self._window_bytes = footage, window_bytes
        self.store, self.profile_name, self._device, self._connect = store, profile, device, connect
        self._asker: Asker | None = None
        self._lock = threading.RLock()
        self._encoding = threading.RLock()
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._down: str | None = None

    @property
    def asker(self) -> Asker:
        """The asker, which the first use loads.

        Raises:
            ModelError: the models cannot be loaded, or the model service is not reachable.
            IdentityMismatch: the store holds vectors of other encoders.
        """
        with self._lock:
            if self._asker is None:
                try:
                    service = self._connect() if self._connect is not None else None
                except ServiceError as error:
                    self._down = str(error)
                    raise
                asker = Asker(
                    self.store,
                    self.profile_name,
                    self._device,
                    service=service,
                    footage=self._footage,
                    window_bytes=self._window_bytes,
                )
                asker.encoders = replace(
                    asker.encoders,
                    frame=_OneAtATime(asker.encoders.frame, self._encoding),
                    patch=_OneAtATime(asker.encoders.patch, self._encoding),
                )
                self._asker, self._down = asker, None
            return self._asker

    @property
    def state(self) -> ModelState:
        """Where the language model runs."""
        if self._down is not None:
            return "down"
        return "embedded" if self._connect is None else "service"

    @property
    def embedded(self) -> bool:
        """Whether the models run in this process."""
        return self._connect is None

    def note_service(self, error: ServiceError | None) -> None:
        """Remember whether the model service answered the last call, for `state`."""
        self._down = None if error is None else str(error)

    @property
    def notices(self) -> list[str]:
        """What limits the trust in these models, for users; empty until they are loaded."""
        notice = "" if self._asker is None else str(getattr(self._asker.profile, "notice", ""))
        return [notice] if notice else []

    def text_vector(self, text: str, encoder: Literal["frame", "patch"] = "frame") -> NDArray[np.float32]:
        """The vector of a text by the frame or the patch encoder, float32[D] of unit norm."""
        key = (encoder, text)
        with self._lock:
            if (found := self._vectors.get(key)) is not None:
                self._vectors.move_to_end(key)
                return found
        encoders = self.asker.encoders
        try:
            vector = np.asarray(getattr(encoders, encoder).encode_text([text])[0], np.float32)
        except ServiceError as error:
            self.note_service(error)
            raise
        self.note_service(None)
        with self._lock:
            self._vectors[key] = vector
            while len(self._vectors) > _VECTORS:
                self._vectors.popitem(last=False)
        return vector

    def picture_vector(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The frame encoder's vector of an RGB picture uint8[H, W, 3], float32[Df] of unit norm.

        Raises:
            UsageError: the models run in a model service, which encodes texts only.
        """
        if not self.embedded:
            raise UsageError("a desk with --service cannot search by an uploaded picture; start it without --service")
        encoders = self.asker.encoders
        return np.asarray(encoders.frame.encode_frames([picture])[0], np.float32)

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the frame encoder does not know."""
        return list(self.asker.encoders.frame.unknown_words(text))
