"""The codebook of the large index: a rotation, the centroids of the lists, and codes of a few bits a dimension.

A vector belongs to the list of its nearest centroid and is stored as a RaBitQ code of what differs from the centroid
(Gao and Long, "RaBitQ", SIGMOD 2024; with several bits, "Extended RaBitQ", 2025). The code estimates inner products
without bias; its error falls with 1/√d and with the length of the difference, which is short where cameras are fixed.
RaBitQ expects directions without structure, so everything is rotated at random first. Of 256 dimensions and more, the
25/32 with the largest second moments are coded (principal axes): a code is that much smaller, and so are centroids.

Training takes what is rare (`SampleOfFrames`): a frame is drawn with a probability proportional to its squared
distance from the mean of its stretch. Frames of an empty scene, which are most of all and alike, would otherwise take
nearly all centroids, and frames of events would be scattered over the lists of the scenes.

An event that the sample does not contain has no centroid near it. In the list of its scene it would be found only by
a search that looks into nearly all lists, so outliers, the frames that are farthest from every centroid, go to "far
lists", which each search looks into (`ShardLists`). `docs/scale.md` has the measurements.

Of 4,096 lists and more, a sketch tells which ones are worth comparing with a query (`index.search.ann.sketch`).

Centroids are found in two levels, because k-means of L centroids costs L². Frames are assigned through cells of
centroids: a graph (HNSW) does not reach all of them where cameras are apart. Nothing of FAISS is read from a file: the
arrays are checked and FAISS's objects are made from them. Does not know streams nor files.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.columns import digest
from index.files import DAMAGED_ARRAYS, load_arrays, write_atomically
from index.search.ann.sketch import CentroidSketch, sketch_of
from index.search.gpu import GPU
from index.search.scores import cosines

__all__ = ["Codebook", "SampleOfFrames", "ShardLists", "bits_for", "coded_for", "lists_for", "train"]

_SAMPLE_PER_LIST = 25
_MOST_SAMPLE = 500_000  # vectors, 1 GB of 512 dimensions
_ROWS_PER_LIST = 128
_MOST_LISTS = 1 << 17
_CODE_BYTES = 64  # of the bits of one vector: one bit for 512 dimensions
_MOST_BITS = 4
_ITERATIONS = 6
_CELL_LISTS = 1024  # from here on cells of centroids are faster than comparing with all of them
_CELLS = 8
_FAR_SHARE = 0.04
_OUTLIER_SHARE = 0.04
_LISTS_PER_FAR = 32
_ALL_CODED = 256  # dimensions; below, all of them are coded
_CODED = 25 / 32
_MOST_HELD_OUT = 65_536  # vectors
_MAX_FILE = 4 << 30
_SKETCH = ("sketch_table", "sketch_codes")  # not in files of few centroids, nor in those of older versions


def lists_for(rows: int) -> int:
    """The number of lists for a store of `rows` frames: a power of two with about 128 rows a list, 16 to 131,072."""
    return min(_MOST_LISTS, max(16, 1 << max(0, round(math.log2(max(1, rows) / _ROWS_PER_LIST)))))


def bits_for(dimension: int) -> int:
    """Bits a dimension, 1 to 4: as many as fit into 64 bytes."""
    return min(_MOST_BITS, max(1, 8 * _CODE_BYTES // dimension))


def coded_for(dimension: int) -> int:
    """Number of dimensions that are coded: all below 256, else 25/32 of them, a multiple of 8."""
    return dimension if dimension < _ALL_CODED else 8 * round(dimension * _CODED / 8)


class SampleOfFrames:
    """Two random samples without replacement, in bounded memory: one to train with, one to measure distances with.

    In the first, what is rare is likelier. A frame's weight w is its squared distance from the mean of its stretch; the
    frames with the largest u^(1/w) are kept, with u uniform in (0, 1) (Efraimidis and Spirakis, "Weighted random
    sampling with a reservoir", 2006). The second is uniform and of other stretches, because frames that are seconds
    away from trained ones are nearer to centroids than those of a stretch that was not read.

    Args:
        lists: number of centroids that are trained with it.
        dimension: d.
        seed: of the draw.

    Attributes:
        wanted: most vectors of the first sample, 25 · `lists`, at most 500,000.
    """

    def __init__(self, lists: int, dimension: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.wanted = min(_MOST_SAMPLE, _SAMPLE_PER_LIST * lists)
        self._rare = _Reservoir(self.wanted, dimension)
        self._held_out = _Reservoir(_MOST_HELD_OUT, dimension)

    def add(self, stretch: NDArray[np.float32]) -> None:
        """Take frames that follow each other in time, float32[n, d], to train with."""
        apart = stretch - stretch.mean(axis=0)
        weights = np.einsum("nd,nd->n", apart, apart, dtype=np.float64) + 1e-9
        self._rare.add(stretch, np.log(self._rng.uniform(1e-300, 1, len(stretch))) / weights)

    def hold_out(self, stretch: NDArray[np.float32]) -> None:
        """Take frames that follow each other in time, float32[n, d], to measure distances with."""
        self._held_out.add(stretch, self._rng.uniform(0, 1, len(stretch)))

    def rare(self) -> NDArray[np.float32]:
        """The sample in which what is rare is likelier, float32[n, d]; n ≤ `wanted`."""
        return self._rare.all()[0]

    def held_out(self) -> NDArray[np.float32]:
        """The uniform sample, float32[n, d]; n ≤ 65,536. The first sample where nothing was held out."""
        found = self._held_out.all()[0]
        return found if len(found) else self.rare()


class ShardLists:
    """The lists of the frames of a shard; at least 4 % of them, the farthest from their centroids, are in far lists.

    An outlier, a frame that is farther from every centroid than 96 % of the frames that were held out of the training,
    goes to a far list at once, for example each frame of a camera that was new after it. The rest of the 4 % are known
    when all frames were seen; as many are kept, and no others.

    Args:
        codebook: the codebook.
        rows: number of frames of the shard.
    """

    def __init__(self, codebook: Codebook, rows: int) -> None:
        self._codebook, self._wanted = codebook, math.ceil(_FAR_SHARE * rows)
        self._kept = _Reservoir(self._wanted, len(codebook.rotation))
        self._seen = self._outliers = 0

    def assign(self, rotated: NDArray[np.float32]) -> NDArray[np.int64]:
        """The lists of the next frames, int64[n], which `rest` may change; `rotated`: float32[n, c]."""
        lists, distances = self._codebook.assign(rotated)
        far = distances > self._codebook.reach
        if far.any():
            lists[far] = self._codebook.assign_far(rotated[far])
            self._outliers += int(far.sum())
        near = np.flatnonzero(~far)
        self._kept.add(rotated[near], distances[near], self._seen + near)
        self._seen += len(rotated)
        return lists

    def rest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The frames that go to far lists besides: numbers, int64[n], in the order in which all were assigned, and the
        frames, float32[n, c]."""
        vectors, keys, numbers = self._kept.all()
        chosen = np.argsort(-keys, kind="stable")[: max(0, self._wanted - self._outliers)]
        chosen = chosen[keys[chosen] > 0]  # a frame at its centroid is not far, however few frames there are
        return numbers[chosen], vectors[chosen]


class _Reservoir:
    """The `most` vectors with the largest keys, each with a number."""

    def __init__(self, most: int, dimension: int) -> None:
        self._most = most
        self._parts = [(np.zeros((0, dimension), np.float32), np.zeros(0), np.zeros(0, np.int64))]
        self._held = 0

    def add(
        self, vectors: NDArray[np.float32], keys: NDArray[np.floating[Any]], numbers: NDArray[np.int64] | None = None
    ) -> None:
        found = np.zeros(len(keys), np.int64) if numbers is None else numbers
        self._parts.append((vectors, keys.astype(np.float64), found))
        self._held += len(vectors)
        if self._held > self._most * 3 // 2 + 4096:
            self.all()

    def all(self) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
        """Vectors, keys and numbers, in the order in which they were added."""
        kept, keys, numbers = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        if len(keys) > self._most:
            best = np.sort(np.argpartition(-keys, self._most)[: self._most])
            kept, keys, numbers = kept[best], keys[best], numbers[best]
        self._parts, self._held = [(kept, keys, numbers)], len(keys)
        return kept, keys, numbers


@dataclass(frozen=True)
class Codebook:
    """A trained codebook; it does not change. Any number of threads may use it."""

    identity: str
    """Identity of the frame encoder, JSON."""

    rotation: NDArray[np.float32]
    """float32[c, d], orthonormal rows: a vector v is rotated to rotation · v, of the c dimensions that are coded."""

    centroids: NDArray[np.float32]
    """float32[L, c]: the centroids of the lists, rotated; those of the far lists are last."""

    sketch: CentroidSketch | None
    """A sketch of the centroids, without the far lists; None where there are few."""

    far: int
    """Number of far lists."""

    reach: float
    """Squared distance from the nearest centroid above which a frame is an outlier; see `ShardLists`."""

    bits: int
    """Bits a dimension, 1 to 4."""

    trained_rows: int
    """Number of frames that the store had when it was trained."""

    def __post_init__(self) -> None:
        flat = faiss.IndexFlatIP(self.centroids.shape[1])
        flat.add(np.ascontiguousarray(self.centroids))
        held = faiss.rev_swig_ptr(flat.get_xb(), self.centroids.size).reshape(self.centroids.shape)
        object.__setattr__(self, "centroids", held)  # one copy, that of FAISS
        self.__dict__["_flat"] = flat

    @property
    def dimension(self) -> int:
        """d, of the vectors."""
        return int(self.rotation.shape[1])

    @property
    def lists(self) -> int:
        """L."""
        return len(self.centroids)

    @property
    def nbytes(self) -> int:
        """Bytes of centroids and sketch in memory."""
        return self.centroids.nbytes + (0 if self.sketch is None else self.sketch.nbytes)

    @property
    def code_size(self) -> int:
        """Bytes of one code."""
        return self._empty.code_size

    @cached_property
    def key(self) -> str:
        """Digest of what codes depend on; the sketch has no part in it."""
        return digest(self.identity, self.bits, self.far, self.reach, *_sums([self.rotation, self.centroids]))

    def rotated(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors float32[n, d] as they are compared with centroids and codes."""
        if len(vectors) == 1:  # by one thread: those of BLAS spin on, on cores that the threads of the shards need
            return cosines(self.rotation, vectors[0])[None]
        return np.ascontiguousarray(vectors @ self.rotation.T)

    def assign(self, rotated: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The list of each rotated vector, int64[n], and its squared distance from the centroid, float32[n]."""
        fast = GPU.search(self._nearest_on_gpu, rotated, 1)
        distance, found = self._nearest.search(rotated, 1) if fast is None else fast
        return found[:, 0], distance[:, 0]

    def assign_far(self, rotated: NDArray[np.float32]) -> NDArray[np.int64]:
        """The far list of each rotated vector, int64[n]."""
        found: NDArray[np.int64] = self._nearest_far.search(rotated, 1)[1][:, 0]
        return self.lists - self.far + found

    def best_lists(
        self, query: NDArray[np.float32], sizes: NDArray[np.int64], rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The lists with the highest inner products that together have `rows` rows, best first; all if they have not.

        Where few are wanted, the sketch chooses at least four times as many, and those alone are compared.

        Args:
            query: float32[c], rotated.
            sizes: int64[n], the number of rows in each list that is not far.
            rows: see above.

        Returns:
            Numbers, int64[m], and inner products, float32[m].
        """
        count = len(sizes)
        most = min(count, 64 + 4 * rows * count // max(1, int(sizes.sum())))
        while True:
            if self.sketch is not None and 4 * most < count:
                numbers = self.sketch.best(query, most)
                scores = cosines(self.centroids[numbers], query)
            else:
                scores = cosines(self.centroids[:count], query)
                numbers = np.argpartition(-scores, most - 1)[:most] if most < count else np.arange(count)
                scores = scores[numbers]
            order = np.argsort(-scores)
            held = np.cumsum(sizes[numbers[order]])
            if most == count or held[-1] >= rows:
                best = order[: int(np.searchsorted(held, rows)) + 1]
                return numbers[best], scores[best]
            most = min(count, 4 * most)

    def encode(self, rotated: NDArray[np.float32], lists: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The codes of rotated vectors in their lists, uint8[n, code_size]."""
        codes = np.empty((len(rotated), self.code_size), np.uint8)
        places = np.ascontiguousarray(lists, np.int64)  # named, because FAISS gets an address and no reference
        self._empty.encode_vectors(
            len(rotated), faiss.swig_ptr(rotated), faiss.swig_ptr(places), faiss.swig_ptr(codes), False
        )
        return codes

    def searcher(self, lists: faiss.InvertedLists) -> faiss.IndexIVFRaBitQ:
        """An index over these inverted lists; the caller keeps `lists` and this object for as long as it is used."""
        index = self._make()
        index.replace_invlists(lists, False)
        index.ntotal = lists.compute_ntotal()  # type: ignore[attr-defined]
        return index

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write it durably and all at once. Raises OSError."""
        near = self.centroids[: self.lists - self.far]
        sketched: list[NDArray[Any]] = []
        if self.sketch is not None:
            sketched = [self.sketch.table, self.sketch.codes_of(near)]
        facts = {
            "identity": self.identity,
            "bits": self.bits,
            "far": self.far,
            "reach": self.reach,
            "trained_rows": self.trained_rows,
            "key": self.key,
            "sketch": _sums(sketched),
        }

        arrays: dict[str, Any] = {"rotation": self.rotation, "centroids": self.centroids}
        arrays |= dict(zip(_SKETCH, sketched, strict=False))
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        write_atomically(path, lambda file: np.savez(file, **arrays), parents=True)

    @classmethod
    def load(cls, path: Path) -> Codebook | None:
        """The codebook in a file, None if it is absent or damaged: it can be trained again."""
        try:
            if path.stat().st_size > _MAX_FILE:
                return None
            held = load_arrays(io.BytesIO(path.read_bytes()))
            facts = json.loads(held["facts"].tobytes())
            rotation, centroids = held["rotation"], held["centroids"]
            numbers = int(facts["far"]), float(facts["reach"]), int(facts["bits"]), int(facts["trained_rows"])
            sketched = [held[name] for name in _SKETCH if name in held]
            sketch = CentroidSketch(*sketched) if sketched else None
            made = cls(str(facts["identity"]), rotation, centroids, sketch, *numbers)
            fits = rotation.dtype == centroids.dtype == np.float32 and rotation.shape[0] == centroids.shape[1]
            near = (made.lists - made.far, len(rotation))
            if (
                not fits
                or (sketch is not None and (len(sketch), sketch.dimension) != near)
                or not 1 <= made.bits <= _MOST_BITS
                or not 0 < made.far < made.lists
                or made.key != facts["key"]
                or _sums(sketched) != facts.get("sketch", [])
            ):
                return None
        except DAMAGED_ARRAYS:
            return None
        return made

    # ---- FAISS -------------------------------------------------------------------------------------------------------

    @cached_property
    def _nearest(self) -> faiss.Index:
        return _nearest_of(self.centroids[: self.lists - self.far])

    @cached_property
    def _nearest_far(self) -> faiss.Index:
        return _nearest_of(self.centroids[self.lists - self.far :])

    @cached_property
    def _nearest_on_gpu(self) -> Any | None:
        return GPU.copy(self._nearest) if GPU.choice.device == "gpu" else None

    @cached_property
    def _empty(self) -> faiss.IndexIVFRaBitQ:
        return self._make()

    def _make(self) -> faiss.IndexIVFRaBitQ:
        index = faiss.IndexIVFRaBitQ(
            self.__dict__["_flat"], self.centroids.shape[1], self.lists, faiss.METRIC_INNER_PRODUCT, False, self.bits
        )
        index.is_trained = True
        return index


def train(sample: SampleOfFrames, lists: int, *, identity: str, rows: int, seed: int = 0) -> Codebook:
    """Train a codebook.

    Args:
        sample: of the store's frames.
        lists: number of centroids; fewer where the sample has fewer vectors. Far lists come on top.
        identity: identity of the frame encoder, JSON.
        rows: number of frames of the store.
        seed: of the rotation and of k-means.
    """
    points, held_out = sample.rare(), sample.held_out()
    rotation = _rotation(points, seed)
    points, held_out = (np.ascontiguousarray(each @ rotation.T) for each in (points, held_out))
    centroids = _centroids(points, min(lists, len(points)), seed)
    nearest = _nearest_of(centroids)
    reach = float(np.quantile(nearest.search(held_out, 1)[0][:, 0], 1 - _OUTLIER_SHARE)) if len(points) else 0.0
    apart = [each[nearest.search(each, 1)[0][:, 0] > reach] for each in (points, held_out)]
    outside = np.concatenate([*apart, points[:1]])  # at least one
    far = _kmeans(outside, min(max(1, lists // _LISTS_PER_FAR), len(outside)), seed)
    bits = bits_for(rotation.shape[1])
    both, sketch = np.concatenate([centroids, far]), sketch_of(centroids)
    return Codebook(identity, rotation, both, sketch, len(far), reach, bits, trained_rows=rows)


def _sums(arrays: Sequence[NDArray[Any]]) -> list[str]:
    return [hashlib.sha256(each.tobytes()).hexdigest() for each in arrays]


def _rotation(points: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """A random rotation of the principal axes of some vectors, float32[c, d]."""
    axes = np.linalg.eigh((points.T @ points).astype(np.float64))[1][:, ::-1]  # ascending, so the last are the first
    coded = coded_for(points.shape[1])
    turn = faiss.RandomRotationMatrix(coded, coded)
    turn.init(seed + 1)
    random = faiss.vector_to_array(turn.A).reshape(coded, coded)
    return np.ascontiguousarray(random @ axes[:, :coded].T, np.float32)


def _nearest_of(centroids: NDArray[np.float32]) -> faiss.Index:
    """An index that finds the nearest centroid, through cells of centroids where there are many."""
    count, dimension = centroids.shape
    near: Any = faiss.IndexFlatL2(dimension)
    if count >= _CELL_LISTS:
        near = faiss.IndexIVFFlat(near, dimension, 4 * math.isqrt(count), faiss.METRIC_L2)
        near.cp.min_points_per_centroid = 1
        near.train(np.ascontiguousarray(centroids))
        near.nprobe = _CELLS
    near.add(np.ascontiguousarray(centroids))
    return near  # type: ignore[no-any-return]


def _centroids(points: NDArray[np.float32], lists: int, seed: int) -> NDArray[np.float32]:
    """Centroids float32[lists, d] of points float32[n, d], n ≥ lists, in two levels."""
    if lists <= _CELL_LISTS:
        return _kmeans(points, lists, seed)
    coarse = _kmeans(points, round(math.sqrt(lists)), seed)
    near = faiss.IndexFlatL2(points.shape[1])
    near.add(coarse)
    group = near.search(points, 1)[1][:, 0]
    counts = np.bincount(group, minlength=len(coarse))
    exact = counts / counts.sum() * lists
    shares = np.minimum(np.floor(exact).astype(np.int64), counts)
    order = np.argsort(-(exact - shares), kind="stable")
    while (left := lists - int(shares.sum())) > 0:
        room = order[shares[order] < counts[order]][:left]
        shares[room] += 1
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.cumsum(counts)[:-1])
    found = [_kmeans(points[part], int(share), seed) for part, share in zip(parts, shares, strict=True) if share]
    return np.concatenate(found)


def _kmeans(points: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    if count >= len(points):
        return points[:count].copy()
    kmeans = faiss.Kmeans(
        points.shape[1],
        count,
        niter=_ITERATIONS,
        seed=seed + 1,
        max_points_per_centroid=10**9,
        min_points_per_centroid=1,
    )
    points = np.ascontiguousarray(points)
    if (found := GPU.kmeans(points, count, kmeans.cp)) is not None:
        return found
    kmeans.train(points)
    return np.asarray(kmeans.centroids, np.float32)
