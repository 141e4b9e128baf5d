"""The three Delta tables of an opened store, as one value that every module of this folder takes.

    <url>/segments  <url>/frames  <url>/patches

`Tables` opens them and checks that they fit together. What is written to them, and in which order, is the matter of
`index.commits`; what is done to a store as a whole, of `index.maintenance`.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from index.columns import digest
from index.delta.row_filter import of_streams
from index.delta.table import StoreTable
from index.errors import IdentityMismatch, StoreCorrupt, StoreDenied, StoreNotFound, StoreVersion, UsageError, mask_url
from index.patches.codec import PatchEncoding
from index.patches.store import PatchStore, patch_table
from index.records import EncoderPair, Segment
from index.schemas import ENCODERS_KEY, FORMAT, FORMAT_KEY, GENERATION_KEY, PATCHES_KEY, SEGMENTS

__all__ = ["SCHEMES", "Tables", "is_remote", "normalize_url", "store_exists"]


SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
"""Schemes of the URLs of stores."""

_UNUSABLE = re.compile(r"[\[\]\\\x00-\x1f\x7f\ud800-\udfff]|::|%[0-9A-Fa-f]{2}")
"""What deltalake 1.6.6, Arrow or fsspec take for something else in a path, and write beside it."""


def normalize_url(url: str | Path) -> str:
    """The URL of a store without a slash at its end, or an absolute local path; `file://` is removed.

    Raises:
        UsageError: a scheme that is not one of `SCHEMES`, no bucket, or a path that the libraries misread.
    """
    text = str(url)
    scheme, separator, rest = text.removeprefix("file://").partition("://")
    if separator:
        if scheme not in SCHEMES:
            raise UsageError(
                f"{mask_url(text)}: {scheme}:// is not a kind of store; use a path, or one of "
                f"{', '.join(f'{name}://' for name in SCHEMES)}"
            )
        if not rest.strip("/"):
            raise UsageError(f"{mask_url(text)}: names no bucket; write {scheme}://BUCKET/FOLDER")
        place = text.rstrip("/")
    else:
        place = str(Path(scheme).expanduser().absolute())
    if found := _UNUSABLE.search(place):
        raise UsageError(f"{mask_url(place)!a}: a store cannot be at a path with {found[0]!a}; choose another --store")
    return place


def is_remote(url: str) -> bool:
    """Whether a store is in an object store rather than on a local disk."""
    return "://" in url


def store_exists(url: str) -> bool:
    """Whether there is a store at `url`. `segments` is the last table that is created, so it decides."""
    return StoreTable(f"{url}/segments", "segments").exists()


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one store, with what all of them agree on."""

    url: str
    """The store, as `normalize_url` returns it."""

    encoders: EncoderPair
    """The encoders whose vectors the store holds."""

    encoding: PatchEncoding
    """How patches are stored."""

    frames: StoreTable
    """One row per frame: key, clock, vectors, picture."""

    patches: StoreTable
    """One row per frame: its encoded patch tokens."""

    segments: StoreTable
    """One row per committed segment."""

    @classmethod
    def create(cls, url: str, encoders: EncoderPair, encoding: PatchEncoding) -> Tables:
        """Create the tables of an empty store; tables that exist are left unchanged.

        Raises:
            StoreDenied: the folder is read-only for this user.
            StoreNotFound: the folder cannot be created.
        """
        if not is_remote(url):
            try:
                Path(url).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise StoreDenied(
                        f"{url}: cannot make a store there: read-only for this user ({error.strerror}); choose another "
                        "--store"
                    ) from error
                raise StoreNotFound(
                    f"{url}: cannot make a store there ({error.strerror}); choose another --store"
                ) from error
        tables = cls._at(url, encoders, encoding)
        configuration = {FORMAT_KEY: "1", ENCODERS_KEY: encoders.model_dump_json()}
        if encoding.kind != "fp16":
            configuration |= {FORMAT_KEY: str(FORMAT), PATCHES_KEY: encoding.model_dump_json()}
        for table in tables.all():
            table.create(configuration)
        return tables

    @classmethod
    def open(cls, url: str, *, encoders: EncoderPair | None = None, encoding: PatchEncoding | None = None) -> Tables:
        """Open the tables of the store at `url`.

        Args:
            url: as `normalize_url` returns it.
            encoders: those whose vectors the caller will read or write; not checked when None.
            encoding: the patch encoding the caller expects; not checked when None.

        Raises:
            StoreNotFound: there is no store.
            StoreVersion: a newer Sightline wrote it.
            IdentityMismatch: it holds vectors of other encoders.
            UsageError: it has another patch encoding.
            StoreCorrupt: a table cannot be read.
        """
        shown = mask_url(url)
        if not store_exists(url):
            raise StoreNotFound(f"{shown}: no store there; `sightline ingest … --store {shown}` makes one")
        configuration = StoreTable(f"{url}/segments", "segments").configuration()
        version = int(configuration.get(FORMAT_KEY, "0"))
        if version > FORMAT:
            raise StoreVersion(f"{shown}: format {version}, this Sightline reads up to {FORMAT}; install a newer one")
        try:
            stored_encoders = EncoderPair.model_validate_json(configuration[ENCODERS_KEY])
            stored_encoding = PatchEncoding.model_validate_json(configuration.get(PATCHES_KEY, "{}"))
        except (KeyError, ValueError):
            raise StoreCorrupt(
                f"{shown}: the identity of the encoders is missing or invalid; restore the first entry of the log of "
                "its table `segments`"
            ) from None
        if encoders is not None and encoders != stored_encoders:
            raise IdentityMismatch(
                f"{shown}: holds vectors of {stored_encoders.frame.name} and {stored_encoders.patch.name}, opened with "
                f"{encoders.frame.name} and {encoders.patch.name} of other weights or settings; use the profile that "
                "wrote it, or ingest the footage again into a new store: `sightline ingest FOOTAGE --profile PROFILE "
                "--store NEW_STORE`"
            )
        if encoding is not None and str(encoding) != str(stored_encoding):  # ε counts for `differential` only
            raise UsageError(
                f"{shown}: keeps patches as {stored_encoding}, asked for {encoding}; the encoding is chosen when a "
                "store is created: leave the option out, or ingest into a new store"
            )
        return cls._at(url, stored_encoders, stored_encoding)

    @classmethod
    def _at(cls, url: str, encoders: EncoderPair, encoding: PatchEncoding) -> Tables:
        return cls(
            url,
            encoders,
            encoding,
            frames=StoreTable(f"{url}/frames", "frames"),
            patches=patch_table(f"{url}/patches", encoders, encoding),
            segments=StoreTable(f"{url}/segments", "segments"),
        )

    def all(self) -> tuple[StoreTable, StoreTable, StoreTable]:
        """`frames`, `patches`, `segments`; the last is created last, so a store without it does not exist yet."""
        return self.frames, self.patches, self.segments

    @property
    def patch_store(self) -> PatchStore:
        """Reads and writes the rows of `patches`."""
        return PatchStore(self.patches, self.encoders, self.encoding, self.url)

    def read_segments(self, stream_id: str | None = None) -> list[Segment]:
        """The segments of a stream (of all streams when None), by stream, source and chunk."""
        where = None if stream_id is None else of_streams([stream_id])
        rows = self.segments.read([n for n in SEGMENTS.names if n != "segment"], where)
        for name in ("start", "end"):
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(pa.int64()))
        found = [Segment.model_validate(row) for row in rows.to_pylist()]
        return sorted(found, key=lambda s: (s.stream_id, s.source, s.chunk))

    def application(self, stream_id: str, source: str, generation: int) -> str:
        """The application id of the transactions that append a source's chunks to a stream.

        Args:
            stream_id: the stream.
            source: digest of the footage.
            generation: how often the stream's footage was deleted, so that it may be stored again.
        """
        old = self.segments.newest_configuration().get(GENERATION_KEY, "0")  # of a store of an earlier version
        return digest(stream_id, source, f"{old}/{generation}" if generation else old)
