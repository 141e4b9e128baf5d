"""The folder of the large index: its codebook, its shards, and the lock of those who build it.

    <folder>/codebook.npz   see `index.search.ann.codebook`
    <folder>/<shard>/       see `index.search.ann.shard`
    <folder>/.lock          held by the process that builds

Everything here is a cache: what is absent, damaged or of another encoder is ignored by readers, and removed and built
again by the next build.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from index.errors import StoreBusy
from index.files import PART
from index.search.ann.codebook import Codebook
from index.search.ann.shard import IndexedRows, Shard, open_shard, write_shard

__all__ = ["CODEBOOK", "Catalog"]

CODEBOOK = "codebook.npz"
"""The file of the codebook."""


class Catalog:
    """The codebook and the shards in a folder. Any number of threads may use it.

    Args:
        folder: where they are; created when something is written.
        identity: identity of the frame encoder, JSON; what belongs to another one is ignored.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self._lock = threading.Lock()
        self._codebook: tuple[int, Codebook | None] = (0, None)
        self._shards: dict[str, Shard | None] = {}

    @property
    def place(self) -> str:
        """Where the index is, for messages."""
        return str(self.folder)

    @property
    def codebook(self) -> Codebook | None:
        """The codebook of this encoder, None if there is none."""
        try:
            stamp = (self.folder / CODEBOOK).stat().st_mtime_ns
        except OSError:
            return None
        with self._lock:
            if self._codebook[0] != stamp:
                self._codebook = (stamp, Codebook.load(self.folder / CODEBOOK))
                self._shards.clear()
            found = self._codebook[1]
        return found if found is not None and found.identity == self.identity else None

    def shards(self) -> list[Shard]:
        """The shards that can be searched, by name. Opened once."""
        codebook = self.codebook
        if codebook is None:
            return []
        names = self._names()
        with self._lock:
            for gone in set(self._shards) - set(names):
                del self._shards[gone]
            for name in names:
                if self._shards.get(name) is None:
                    self._shards[name] = self._open(name, codebook)
            return [shard for name in names if (shard := self._shards[name]) is not None]

    def _names(self) -> list[str]:
        """The names of all shards, damaged ones included."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.suffix != PART)

    def _open(self, name: str, codebook: Codebook) -> Shard | None:
        return open_shard(self.folder / name, codebook)

    def damage(self) -> list[str]:
        """What is wrong with the index, one sentence each; the files of all shards are read."""
        if not self.folder.exists():
            return []
        shards = self.shards()
        held = {shard.name for shard in shards}
        broken = [
            f"the index shard {path.name} is damaged or of another encoder and not used; run `sightline index build`"
            for path in sorted(self.folder.iterdir())
            if path.is_dir() and path.suffix != PART and path.name not in held
        ]
        return broken + [f"{found}; run `sightline index build`" for shard in shards if (found := shard.damage())]

    # ---- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def building(self) -> Iterator[None]:
        """Keep other builders out.

        Raises:
            StoreBusy: another process builds this index.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreBusy(
                    f"{self.folder}: another `sightline index build` works on it; wait until it is done"
                ) from None
            yield

    def clean(self, *, whole: bool = False) -> None:
        """Remove what cannot be used: halves of killed builds, and damaged shards; with `whole`, all files are read."""
        held = {shard.name for shard in self.shards() if not whole or shard.damage() is None}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in held:
                self.remove([path.name])

    def set_codebook(self, codebook: Codebook) -> None:
        """Replace the codebook; shards of another one are removed. Raises OSError."""
        codebook.save(self.folder / CODEBOOK)
        self.clean()

    def add(self, rows: IndexedRows, codebook: Codebook) -> str:
        """Write a shard; returns its name. Raises OSError."""
        return write_shard(self.folder, rows, codebook)

    def touch(self, name: str) -> None:
        """Note that a shard is used."""

    def ignore(self, name: str) -> None:
        """Search without a shard that turned out to be damaged. The next build writes it again."""
        with self._lock:
            self._shards.pop(name, None)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def remove(self, names: Sequence[str]) -> None:
        """Remove shards. A search that has one open reads on."""
        with self._lock:
            for name in names:
                self._shards.pop(name, None)
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def drop(self) -> None:
        """Remove the index."""
        with self._lock:
            self._shards.clear()
            self._codebook = (0, None)
        shutil.rmtree(self.folder, ignore_errors=True)
