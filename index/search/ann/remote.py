"""The large index of a store in an object store: shards there, and a bounded cache of them on the disk of each machine.

    <store>/ann/codebook.npz      as in `index.search.ann.catalog`
    <store>/ann/<shard>/…         as in `index.search.ann.shard`; the manifest is written last and removed first
    <store>/ann/building.json     the machine that builds, and until when its claim holds unless it is extended

A shard is fetched whole when a search needs it for the first time: a search looks into hundreds of lists of 10 kB, so
reading them by range would cost hundreds of requests each time, and fetching costs six (`docs/scale.md`). Shards of
other times stay where they are; of them only the manifest is read, once. What was not used for longest leaves the
cache when it takes more than half of the disk's room. Shards of the last minute stay, so a search has what it needs.

The listing is as old as a minute at most. An old one does no harm, because the table decides which rows exist.

Two machines that build at once do no harm either: shards of the same rows are the same, and rows of two shards count
once. The claim only avoids the work. Everything is compared with its checksum after it is fetched; what is damaged,
half copied or of another codebook is ignored, and loses its manifest, if that is allowed, so that the next build
writes it again.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.errors import StoreBusy, StoreDenied, mask_url
from index.files import PART, write_atomically
from index.search.ann.catalog import CODEBOOK, Catalog
from index.search.ann.codebook import Codebook
from index.search.ann.shard import MANIFEST, IndexedRows, Shard, described_shard, open_shard, publish

__all__ = ["RemoteCatalog", "catalog_of"]

_FRESH_SECONDS = 60.0
_USED_SECONDS = 60.0
_CLAIM_SECONDS = 900
_THREADS = 16
_ROOM = 0.5
_CLAIM = "building.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = structlog.get_logger(__name__)


def catalog_of(frames: str, folder: Path, identity: str) -> Catalog:
    """The catalog of a store.

    Args:
        frames: path or URL of its table `frames`.
        folder: the folder of the index, or of its cache.
        identity: identity of the frame encoder, JSON.
    """
    if "://" not in frames:
        return Catalog(folder, identity)
    return RemoteCatalog(folder, identity, f"{frames.rpartition('/')[0]}/ann")


class RemoteCatalog(Catalog):
    """The codebook and the shards at a URL. Any number of threads may use it.

    Args:
        folder: the cache.
        identity: identity of the frame encoder, JSON.
        url: where the index is.
        limit: most bytes of the cache; half of what the disk has for it when None.
    """

    def __init__(self, folder: Path, identity: str, url: str, *, limit: int | None = None) -> None:
        super().__init__(folder, identity)
        self._url, self._limit = url, limit
        self._listing = threading.Lock()
        self._listed: frozenset[str] = frozenset()
        self._manifests: dict[str, bytes] = {}
        self._checked = -float("inf")

    @property
    def place(self) -> str:
        """Where the index is, for messages."""
        return mask_url(self._url)

    @property
    def codebook(self) -> Codebook | None:
        """The codebook of this encoder, None if there is none. Raises StoreUnavailable."""
        self.refresh()
        return super().codebook

    def refresh(self, *, now: bool = False) -> None:
        """List what is there, unless that was done in the last minute; `now` does it in any case.

        Raises:
            StoreUnavailable: the object store does not answer.
        """
        with self._listing:
            if not now and time.monotonic() - self._checked < _FRESH_SECONDS:
                return
            with translate_errors(self._url):
                try:
                    self._list()
                except StoreDenied as error:
                    _log.warning("index_not_readable", place=self.place, reason=str(error))
                except PermissionError:
                    _log.warning("index_not_readable", place=self.place, reason="access denied")
            self._checked = time.monotonic()

    def _list(self) -> None:
        system, root = file_system(self._url)
        try:
            system.invalidate_cache(root)
            entries = system.ls(root, detail=True)
        except FileNotFoundError:
            entries = []
        names = {each["name"].rstrip("/").rpartition("/")[2]: each for each in entries}
        self._follow_codebook(system, root, names.get(CODEBOOK))
        listed = {name for name, each in names.items() if each["type"] == "directory"}

        def manifest(name: str) -> bytes | None:
            """The manifest of a shard; None if it has none."""
            try:
                return bytes(system.cat_file(f"{root}/{name}/{MANIFEST}"))
            except FileNotFoundError:
                return None

        missing = sorted(listed - set(self._manifests))
        if missing:
            with ThreadPoolExecutor(min(_THREADS, len(missing))) as pool:
                found = zip(missing, pool.map(manifest, missing), strict=True)
                self._manifests.update({name: data for name, data in found if data is not None})
        for gone in set(self._manifests) - listed:
            del self._manifests[gone]
        self._listed = frozenset(listed)
        if self.folder.exists():  # what was deleted there does not stay here
            for path in self.folder.iterdir():
                if path.is_dir() and path.suffix != PART and path.name not in self._manifests:
                    self._drop_local(path.name)

    def _follow_codebook(self, system: Any, root: str, entry: Mapping[str, Any] | None) -> None:
        path, mark = self.folder / CODEBOOK, self.folder / "codebook.json"
        if entry is None:
            path.unlink(missing_ok=True)
            return
        stamp = json.dumps([entry.get("size"), entry.get("ETag"), str(entry.get("LastModified"))])
        with suppress(OSError):
            if path.exists() and mark.read_text() == stamp:
                return
        write_atomically(path, bytes(system.cat_file(f"{root}/{CODEBOOK}")), parents=True)
        write_atomically(mark, stamp)

    # ---- the cache ---------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return sorted(self._manifests)

    def _open(self, name: str, codebook: Codebook) -> Shard | None:
        data = self._manifests.get(name)
        if data is None:
            return None

        def fetch(files: Mapping[str, Any]) -> None:
            """Fetch the shard, unless it is here."""
            self._fetch(name, files, data, codebook)

        return described_shard(self.folder / name, data, codebook, fetch)

    def _fetch(self, name: str, files: Mapping[str, Any], manifest: bytes, codebook: Codebook) -> None:
        """Put a whole shard into the cache. Raises OSError if it is damaged."""
        folder = self.folder / name
        if open_shard(folder, codebook) is not None:  # another process fetched it
            self.touch(name)
            self._evict()
            return
        part = self.folder / f"{name}.{os.getpid()}.{threading.get_ident()}{PART}"
        try:
            with translate_errors(self._url):
                self._download(name, files, part)
            (part / MANIFEST).write_bytes(manifest)
            shard = open_shard(part, codebook)
            if shard is None or shard.damage() is not None:
                raise OSError(f"the index shard {name} is damaged")
            publish(part, folder, codebook)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._evict()

    def _download(self, name: str, files: Mapping[str, Any], part: Path) -> None:
        system, root = file_system(self._url)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

        def get(file: str) -> None:
            """Fetch one file; an absent one is found when the shard is opened."""
            with suppress(FileNotFoundError):
                system.get_file(f"{root}/{name}/{file}", str(part / file))

        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(get, [Path(file).name for file in files]))

    def _evict(self) -> None:
        """Remove the shards that were not used for longest until the cache is within its limit."""
        held = {
            path.name: (path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir()))
            for path in self.folder.iterdir()
            if path.is_dir() and path.suffix != PART
        }
        total, limit = sum(size for _, size in held.values()), self._limit
        if limit is None:
            limit = int(_ROOM * (shutil.disk_usage(self.folder).free + total))
        for name, (used, size) in sorted(held.items(), key=lambda each: each[1]):
            if total <= limit or time.time() - used < _USED_SECONDS:
                return
            self._drop_local(name)
            total -= size

    def _drop_local(self, name: str) -> None:
        """Remove a shard from the cache; a search that has it open reads on."""
        with self._lock:
            self._shards.pop(name, None)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def touch(self, name: str) -> None:
        """Note that a shard is used, for all processes that share the cache."""
        with suppress(OSError):  # another process removed it from the cache
            os.utime(self.folder / name)

    def ignore(self, name: str) -> None:
        """Search without a damaged shard; its manifest is removed, if that is allowed, so that it is written again."""
        _log.warning("index_shard_damaged", place=self.place, shard=name)
        self._manifests.pop(name, None)
        self._drop_local(name)
        with suppress(OSError, StoreDenied):
            system, root = file_system(self._url)
            system.rm_file(f"{root}/{name}/{MANIFEST}")

    def damage(self) -> list[str]:
        """What is wrong with the index, one sentence each: shards without a manifest, and files of another size."""
        self.refresh(now=True)
        problems = [
            f"the index shard {name} is damaged or half copied and not used; run `sightline index build`"
            for name in sorted(self._listed)
            if name not in self._manifests or not self._is_whole(name)
        ]
        return problems

    def _is_whole(self, name: str) -> bool:
        """Whether all files of a shard are there with their sizes."""
        try:
            wanted = {
                Path(file).name: facts["size"] for file, facts in json.loads(self._manifests[name])["files"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        with translate_errors(self._url):
            system, root = file_system(self._url)
            found = {each["name"].rpartition("/")[2]: each["size"] for each in system.ls(f"{root}/{name}", detail=True)}
        return all(found.get(file) == size for file, size in wanted.items())

    # ---- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def building(self) -> Iterator[None]:
        """Keep other builders out, as far as they begin later.

        Raises:
            StoreBusy: another process builds this index.
            StoreDenied, StoreUnavailable: the object store cannot be written.
            OSError: the cache cannot be written.
        """
        machine, ended = _machine(), threading.Event()
        with super().building():
            with translate_errors(self._url):
                system, root = file_system(self._url)
                path = f"{root}/{_CLAIM}"
                with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    held = json.loads(system.cat_file(path))
                    if held["machine"] != machine and float(held["until"]) > time.time():
                        raise StoreBusy(
                            f"{self.place}: another machine builds this index; wait until it is done, or, if it was "
                            "killed, for a quarter of an hour"
                        )

                def claim() -> None:
                    """Claim the index for some time."""
                    until = time.time() + _CLAIM_SECONDS
                    system.pipe_file(path, json.dumps({"machine": machine, "until": until}).encode())

                claim()

            def extend() -> None:
                """Extend the claim until the build has ended."""
                while not ended.wait(_CLAIM_SECONDS / 3):
                    with suppress(OSError):
                        claim()

            thread = threading.Thread(target=extend, name="index-claim", daemon=True)
            thread.start()
            try:
                self.refresh(now=True)
                yield
            finally:
                ended.set()
                thread.join()
                with suppress(OSError):
                    system.rm_file(path)

    def clean(self, *, whole: bool = False) -> None:
        """Remove what cannot be used; with `whole`, the sizes of all files are compared."""
        held = {shard.name for shard in self.shards() if not whole or self._is_whole(shard.name)}
        self.remove(sorted(self._listed - held))
        for path in self.folder.glob(f"*{PART}"):
            shutil.rmtree(path, ignore_errors=True)

    def set_codebook(self, codebook: Codebook) -> None:
        """Replace the codebook; shards of another one are removed. Raises OSError, StoreError."""
        codebook.save(self.folder / CODEBOOK)
        with translate_errors(self._url):
            system, root = file_system(self._url)
            system.put_file(str(self.folder / CODEBOOK), f"{root}/{CODEBOOK}")
        self.refresh(now=True)
        self.clean()

    def add(self, rows: IndexedRows, codebook: Codebook) -> str:
        """Write a shard; returns its name. Raises OSError, StoreError."""
        name = super().add(rows, codebook)
        folder = self.folder / name
        with translate_errors(self._url):
            system, root = file_system(self._url)

            def put(file: Path) -> None:
                """Copy one file."""
                system.put_file(str(file), f"{root}/{name}/{file.name}")

            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(put, [path for path in folder.iterdir() if path.name != MANIFEST]))
            put(folder / MANIFEST)
        with self._listing:
            self._manifests[name] = (folder / MANIFEST).read_bytes()
            self._listed |= {name}
        self._evict()
        return name

    def remove(self, names: Sequence[str]) -> None:
        """Remove shards. A search that has one open reads on. Raises StoreError."""
        with translate_errors(self._url):
            system, root = file_system(self._url)
            for name in names:
                with suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{name}/{MANIFEST}")
                with suppress(FileNotFoundError):
                    system.rm(f"{root}/{name}", recursive=True)
        with self._listing:
            self._listed -= set(names)
            for name in names:
                self._manifests.pop(name, None)
        for name in names:
            self._drop_local(name)

    def drop(self) -> None:
        """Remove the index. Raises StoreError."""
        with translate_errors(self._url):
            system, root = file_system(self._url)
            with suppress(FileNotFoundError):
                system.rm(root, recursive=True)
        super().drop()
        self._manifests, self._listed, self._checked = {}, frozenset(), -float("inf")


def _machine() -> str:
    """What tells this machine from others."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
