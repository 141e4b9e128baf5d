"""Making of an evidence bundle: a folder, or a ZIP archive of it, which holds everything and proves that it is whole.

    index.html      a page that opens offline
    clip.mp4        the footage, its packets unchanged; or encoded again, where boxes are removed
    clip-view.mp4   the same for browsers, where the footage is of a codec that they cannot decode
    frames/         the pictures
    sheet.jpg       all pictures on one sheet
    public-key.pem  the key of the installation
    manifest.json   see `pipeline.evidence.manifest`
    manifest.sig    its signature

A bundle is complete or not there: it is made under another name and renamed. This module does not know who may export.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import DecodeFailed, EmptyWindow, NotVideo, SourceError, SourceNotFound, UsageError
from index.records import rfc3339
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.live.clip import fetch_segment
from ingest.segments.clipping import MOST_BYTES, ClipKind, ClipSpan, Encoding, Redaction
from ingest.segments.playing import MediaFacts, probe
from ingest.segments.transcoder import video_encoder
from pipeline.evidence.blur import checked_redactions, cover
from pipeline.evidence.manifest import (
    FORMAT,
    MANIFEST,
    PUBLIC_KEY,
    SIGNATURE,
    Clip,
    Clock,
    Covered,
    FileEntry,
    Manifest,
    Picture,
    SourceFootage,
    canonical,
)
from pipeline.evidence.page import render_page
from pipeline.evidence.signing import SigningKey
from pipeline.media.clip import footage_parts, write_footage
from pipeline.media.footage import Footage, FootageFinder, RecordedFootage
from pipeline.pictures.sheet import Captioned, contact_sheet

__all__ = ["MAX_SECONDS", "Draft", "make_bundle"]

MAX_SECONDS = 4 * 3600
"""Longest stretch of a bundle."""
MAX_PICTURES = 500
"""Most pictures of a bundle."""
_CHOSEN = 12
_BLOCK = 2**20
_SECOND = 1_000_000
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a bundle is made of."""

    stream_id: str
    """The stream."""
    start: int
    """UTC microseconds."""
    end: int
    """UTC microseconds, exclusive."""
    created_by: str
    """Name of the user."""
    reason: str
    """Why it is made."""
    question: str | None = None
    """The question that led here."""
    answer: str | None = None
    """Its answer."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of the answer, as JSON has them."""
    pictures: Mapping[int, float | None] = field(default_factory=dict)
    """Times of the pictures, UTC microseconds, and their scores; an even choice when empty."""
    redactions: Sequence[Redaction] = ()
    """Boxes that are removed."""
    zone: str = "UTC"
    """Time zone of the page's local times, an IANA name."""


def make_bundle(
    store: Store,
    finder: FootageFinder,
    key: SigningKey,
    draft: Draft,
    out: Path,
    *,
    limits: DecodeLimits | None = None,
    clip_bytes: int = MOST_BYTES,
    progress: Callable[[float], None] = lambda share: None,
) -> Manifest:
    """Make a bundle.

    Args:
        store: the store.
        finder: finds the footage.
        key: the key of the installation.
        draft: what it is made of.
        out: where: a ZIP archive if its suffix is .zip, else a folder. Nothing may be there.
        limits: limits of the confined processes.
        clip_bytes: most bytes of its clip; without room for it the bundle has none, and says so.
        progress: called with the share that is done, 0 to 1.

    Raises:
        UsageError: `out` exists, or the stretch or a box is invalid.
        UnknownStream: the store has no such stream.
        EmptyWindow: it has no frame in that stretch.
        SourceNotFound: `out` cannot be written.
        StoreError: the store cannot be read.
    """
    if out.exists():
        raise UsageError(f"{out}: the file exists; choose another name")
    if not 0 < draft.end - draft.start <= MAX_SECONDS * _SECOND:
        raise UsageError(f"a bundle is of at most {MAX_SECONDS // 3600} hours; choose a shorter stretch")
    if not draft.reason.strip():
        raise UsageError("a bundle needs a reason")
    redactions = checked_redactions(draft.redactions)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder = Path(temporary, "bundle")
            folder.mkdir()
            maker = _Maker(store, finder, draft, redactions, folder, limits or DecodeLimits(), clip_bytes, progress)
            manifest = maker.make(key)
            if out.suffix.lower() == ".zip":
                made = Path(temporary, "bundle.zip")
                _archive(folder, made)
            else:
                made = folder
            os.rename(made, out)
    except OSError as error:
        raise SourceNotFound(f"{out}: cannot be written ({error.strerror or error})") from None
    progress(1.0)
    return manifest


class _Maker:
    """Makes one bundle in an empty folder."""

    def __init__(
        self,
        store: Store,
        finder: FootageFinder,
        draft: Draft,
        redactions: tuple[Redaction, ...],
        folder: Path,
        limits: DecodeLimits,
        clip_bytes: int,
        progress: Callable[[float], None],
    ) -> None:
        self.store, self.finder, self.draft, self.redactions = store, finder, draft, redactions
        self.folder, self.limits, self.progress = folder, limits, progress
        self.clip_bytes = clip_bytes
        self.notices: list[str] = []

    def make(self, key: SigningKey) -> Manifest:
        """Write every file of the bundle; the manifest and its signature last."""
        draft = self.draft
        pictures = self._pictures()
        self.progress(0.2)
        clip, footage = self._clip()
        self.progress(0.8)
        (self.folder / PUBLIC_KEY).write_text(key.public.pem)
        manifest = Manifest(
            format=FORMAT,
            id=secrets.token_hex(16),
            created_at=rfc3339(time.time_ns() // 1_000_000 * 1000),
            created_by=draft.created_by,
            reason=draft.reason.strip(),
            program=_program(),
            stream_id=draft.stream_id,
            start=rfc3339(draft.start),
            end=rfc3339(draft.end),
            zone=draft.zone,
            clocks=self._clocks(),
            footage=footage,
            clip=clip,
            frames=pictures,
            question=draft.question,
            answer=draft.answer,
            details=dict(draft.details),
            encoders=self.store.encoders,
            covered=[
                Covered(start=rfc3339(each.start), end=rfc3339(each.end), box=each.box) for each in self.redactions
            ],
            notices=self.notices,
            public_key=key.public.pem,
            fingerprint=key.public.fingerprint,
            files=self._entries(),
        )
        (self.folder / "index.html").write_text(render_page(manifest), encoding="utf-8")
        manifest = manifest.model_copy(update={"files": self._entries()})
        data = canonical(manifest)
        (self.folder / MANIFEST).write_bytes(data)
        (self.folder / SIGNATURE).write_bytes(base64.b64encode(key.sign(data)) + b"\n")
        return manifest

    def _entries(self) -> list[FileEntry]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [
            FileEntry(path=path.relative_to(self.folder).as_posix(), sha256=_sha256(path), bytes=path.stat().st_size)
            for path in paths
        ]

    def _clocks(self) -> list[Clock]:
        start, end = self.draft.start, self.draft.end
        found = [
            clock for clock in self.store.clocks([self.draft.stream_id]) if clock.first < end and clock.last > start
        ]
        if any(clock.source == "mtime" for clock in found):
            self.notices.append(
                "The time is a guess: the file had none, so the time at which it was last changed was taken instead."
            )
        return [Clock(source=clock.source, zone=clock.zone, fold=clock.fold) for clock in found]

    def _pictures(self) -> list[Picture]:
        draft = self.draft
        window = self.store.window([draft.stream_id], draft.start, draft.end)
        if draft.pictures:
            rows = np.flatnonzero(np.isin(window.captured_at, list(draft.pictures)))[:MAX_PICTURES]
            if len(rows) < len(draft.pictures):
                self.notices.append(f"{len(draft.pictures) - len(rows)} pictures are outside of the stretch or gone.")
        else:
            rows = np.unique(np.linspace(0, len(window) - 1, _CHOSEN).round().astype(int))
        chosen = window.take(rows)
        (self.folder / "frames").mkdir()
        result, cells = [], []
        for i, data in enumerate(self.store.pictures(chosen)):
            at = int(chosen.captured_at[i])
            shown, score = cover(data, at, self.redactions), draft.pictures.get(at)
            note = "" if score is None else f"score {score:.3f}"
            cells.append(Captioned(shown, f"{draft.stream_id} {rfc3339(at)}", note))
            name = f"frames/{i + 1:03d}_{rfc3339(at).replace(':', '-').replace('+', '-')}.jpg"
            (self.folder / name).write_bytes(shown)
            result.append(
                Picture(
                    file=name,
                    stream_id=draft.stream_id,
                    captured_at=rfc3339(at),
                    pts_seconds=float(chosen.pts_seconds[i]),
                    score=score,
                    stored_sha256=hashlib.sha256(data).hexdigest(),
                )
            )
        if cells:
            (self.folder / "sheet.jpg").write_bytes(contact_sheet(cells, title=draft.question or draft.stream_id))
        return result

    # ---- clip --------------------------------------------------------------------------------------------------------

    def _clip(self) -> tuple[Clip | None, list[SourceFootage]]:
        draft = self.draft
        footage = self.finder.find(draft.stream_id, draft.start, draft.end)
        if footage is None:
            self.notices.append("There is no clip: no recording has this stretch, and the ingested file is not there.")
            return None, []
        try:
            sources, facts = self._sources(footage)
            clip = self._written(footage, facts)
        except (SourceError, EmptyWindow) as error:
            self.notices.append(f"There is no clip: {error}")
            for path in self.folder.glob("clip*"):
                path.unlink()
            return None, []
        if clip.end < rfc3339(draft.end - 2 * _SECOND):
            self.notices.append(f"The clip ends at {clip.end}, before the stretch does: no more footage was found.")
        return clip, sources

    def _sources(self, footage: Footage) -> tuple[list[SourceFootage], MediaFacts]:
        """The digests of the footage's bytes, and what its first file has."""
        parts = footage_parts(self.finder, footage, self.draft.start, self.draft.end)
        result, facts = list[SourceFootage](), None
        if isinstance(parts, RecordedFootage):
            with tempfile.TemporaryFile(prefix="sightline-") as part:
                for placed in parts.segments:
                    fetch_segment(placed.uri, part)
                    name, size, digest = placed.segment.name, part.tell(), _digest_of(part)
                    facts = facts or probe(part.fileno(), name=name, limits=self.limits)
                    start = rfc3339(placed.segment.start)
                    result.append(SourceFootage(kind="recording", name=name, sha256=digest, bytes=size, start=start))
        for source in () if isinstance(parts, RecordedFootage) else parts:
            with source.opened() as descriptor, open(os.dup(descriptor), "rb") as file:
                facts = facts or probe(descriptor, name=source.path.name, limits=self.limits)
                digest = _digest_of(file)
                size, start = os.fstat(descriptor).st_size, rfc3339(source.began)
            result.append(SourceFootage(kind="file", name=source.path.name, sha256=digest, bytes=size, start=start))
        if facts is None:
            raise SourceNotFound(f"{footage.stream_id}: the recording has no segment")
        return result, facts

    def _written(self, footage: Footage, facts: MediaFacts) -> Clip:
        codec, container = video_encoder()
        encoding = Encoding(codec=codec, redactions=self.redactions, width=4096)
        if self.redactions:
            name = f"clip.{container}"
            return _described(name, None, self._write(footage, name, container, encoding), again=True)
        kind: ClipKind = "mp4" if facts.copies else "matroska"
        name = "clip.mp4" if facts.copies else "clip.mkv"
        try:
            span = self._write(footage, name, kind, None)
        except (DecodeFailed, NotVideo):
            if facts.copies:
                raise
            with suppress(OSError):
                (self.folder / name).unlink()
            name = f"clip.{container}"
            self.notices.append(f"The packets of {facts.codec} cannot be copied, so the clip was encoded again.")
            return _described(name, None, self._write(footage, name, container, encoding), again=True)
        view = None
        if not facts.copies:
            view = f"clip-view.{container}"
            self._write(footage, view, container, encoding)
        return _described(name, view, span, again=False)

    def _write(self, footage: Footage, name: str, kind: ClipKind, encoding: Encoding | None) -> ClipSpan:
        with (self.folder / name).open("xb+") as file:
            return write_footage(
                self.finder,
                footage,
                file.fileno(),
                start=self.draft.start,
                end=self.draft.end,
                kind=kind,
                limits=self.limits,
                encoding=encoding,
                output_bytes=self.clip_bytes,
            )


def _described(name: str, view: str | None, span: ClipSpan, *, again: bool) -> Clip:
    return Clip(
        file=name,
        viewing_copy=view,
        start=rfc3339(span.first),
        end=rfc3339(span.end),
        frames=span.frames,
        missing_seconds=round(span.missing_seconds, 6),
        encoded_again=again,
    )


def _program() -> str:
    try:
        return f"sightline {version('sightline')}"
    except PackageNotFoundError:
        return "sightline, from a source tree"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(file: Any) -> str:
    """SHA-256 of all bytes of an open file."""
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _archive(folder: Path, out: Path) -> None:
    """Write the files of a folder into an archive, as `pipeline.evidence.verification` wants it."""
    with zipfile.ZipFile(out, "x", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _ZIP_TIME)
            info.external_attr = 0o644 << 16
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)
