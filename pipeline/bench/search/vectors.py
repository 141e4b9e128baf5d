"""Made frame vectors of fixed cameras, for benchmarks of search: any hour of any camera, by a seed.

A camera's vectors are a scene with small changes and events, not noise in all directions:

    x = unit(0.7 m + 0.6 c + 0.15 sin(2π t / day + φ) l + 0.12 s(t) + 0.1 e + Σ a (v + 0.4 i))

    m         common to all pictures of an encoder: CLIP's pictures share a mean
    c, l, φ   the camera's scene, and what daylight changes in it
    s(t)      slow changes in 16 directions of the camera, an autoregressive process with a time of minutes
    e         the noise of one frame, in all directions
    v, i, a   events: one of 500 concepts, what is peculiar to this event, and its strength, 0.2 to 0.45

m, c, l, v, i are unit vectors. Events come about once in two minutes and last 20 seconds on average; a third of the
concepts of a camera are its own favourites, and concepts are Zipf-distributed. Frames of a camera have cosines around
0.95, of two cameras 0.55, as CLIP's of fixed cameras have. A text query is unit(0.8 g + 0.6 v + 0.15 ε): g, common to
all texts, is nearly orthogonal to pictures, which is CLIP's modality gap. Does not know stores.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONCEPTS", "CameraVectors"]

CONCEPTS = 500
"""Number of kinds of events."""
_HOUR = 3600
_SLOW = 16


class CameraVectors:
    """The vectors of many cameras, made when they are asked for.

    Args:
        cameras: number of cameras.
        dimension: Df.
        seed: other vectors for another one.
    """

    def __init__(self, cameras: int, dimension: int = 512, seed: int = 0) -> None:
        self.cameras, self.dimension, self.seed = cameras, dimension, seed
        rng = np.random.default_rng([seed, 1])
        self._mean, self._gap = _units(rng, 2, dimension)
        self._concepts = _units(rng, CONCEPTS, dimension)
        self._popularity = 1.0 / np.arange(1, CONCEPTS + 1)

    def hour(self, camera: int, hour: int) -> NDArray[np.float32]:
        """The vectors of one hour of a camera at one frame a second, float32[3600, Df], unit norm."""
        scene, light, slow, phase, weights = self._camera(camera)
        rng = np.random.default_rng([self.seed, 2, camera, hour])
        times = hour * _HOUR + np.arange(_HOUR, dtype=np.float32)
        result = rng.standard_normal((_HOUR, self.dimension), dtype=np.float32)
        result *= np.float32(0.1 / self.dimension**0.5)
        day = 0.15 * np.sin(2 * np.pi * times / 86_400 + phase)
        result += np.outer(day, light).astype(np.float32)
        knots = rng.standard_normal((_HOUR // 120 + 2, _SLOW))
        place = np.arange(_HOUR) / 120
        below = place.astype(np.int64)
        share = (place - below)[:, None]
        moved = ((1 - share) * knots[below] + share * knots[below + 1]).astype(np.float32)
        result += np.float32(0.12 / _SLOW**0.5) * (moved @ slow)
        result += np.float32(0.7) * self._mean + np.float32(0.6) * scene
        for _ in range(int(rng.poisson(30))):
            concept = int(rng.choice(CONCEPTS, p=weights))
            first, length = int(rng.integers(_HOUR)), 1 + int(rng.exponential(20))
            look = self._concepts[concept] + np.float32(0.4) * _units(rng, 1, self.dimension)[0]
            result[first : first + length] += np.float32(rng.uniform(0.2, 0.45)) * look
        result /= np.linalg.norm(result, axis=1, keepdims=True)
        return result

    def texts(self, count: int, *, seed: int = 0) -> NDArray[np.float32]:
        """Queries by text, float32[count, Df], unit norm: common and rare concepts alike."""
        rng = np.random.default_rng([self.seed, 3, seed])
        wanted = self._concepts[rng.integers(CONCEPTS, size=count)]
        found = np.float32(0.8) * self._gap + np.float32(0.6) * wanted
        found += np.float32(0.15 / self.dimension**0.5) * rng.standard_normal(found.shape, dtype=np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found, np.float32)

    @lru_cache(maxsize=1024)  # noqa: B019 one object lives as long as a benchmark
    def _camera(
        self, camera: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], float, NDArray[np.float64]]:
        rng = np.random.default_rng([self.seed, 4, camera])
        scene, light, *slow = _units(rng, 2 + _SLOW, self.dimension)
        weights = self._popularity.copy()
        favourites = rng.choice(CONCEPTS, 10, replace=False)
        weights[favourites] += weights.sum() / 2 / len(favourites)
        return scene, light, np.stack(slow), float(rng.uniform(0, 2 * np.pi)), weights / weights.sum()


def _units(rng: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    """Random unit vectors, float32[count, dimension]."""
    found = rng.standard_normal((count, dimension), dtype=np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)
