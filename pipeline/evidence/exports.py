"""Exports of the desk: a clip, a contact sheet or a bundle of evidence, made by a job and kept for a day.

Files are in the folder `exports` of the state folder, each with a JSON file that says whose it is and of which stream.
Only the caller who began an export finds it, and only while the role allows to export that stream.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from index.errors import DecodeFailed, EmptyWindow, SourceNotFound, UnknownItem, UsageError
from index.files import write_atomically
from index.records import parse_rfc3339, rfc3339
from ingest.segments.clipping import ClipKind, Encoding, Redaction
from ingest.segments.transcoder import video_encoder
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.asking import QuestionEntry, read_question
from pipeline.desk.desk import Desk
from pipeline.desk.jobs import Job
from pipeline.desk.links import API
from pipeline.evidence.blur import checked_redactions, cover
from pipeline.evidence.bundle import MAX_SECONDS, Draft, make_bundle
from pipeline.evidence.signing import SigningKey
from pipeline.media.clip import write_footage
from pipeline.pictures.sheet import Captioned, contact_sheet

__all__ = ["ExportQuery", "Exported", "begin_export", "find_export"]

ExportKind = Literal["clip", "sheet", "evidence"]
_SECOND = 1_000_000
_AROUND = 5 * _SECOND
_KEEP_SECONDS = 86_400.0
_MOST_FILES = 200
_CLIP_BYTES = 8 * 2**30
"""Largest clip of an export."""
_KEPT_BYTES = 32 * 2**30
"""Exports are removed, the oldest first, while all of them together are larger."""
_SHEET_PICTURES = 200
_ID = re.compile(r"[A-Za-z0-9_-]{16,40}")
_TYPES = {".mp4": "video/mp4", ".mkv": "video/x-matroska", ".jpg": "image/jpeg", ".zip": "application/zip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """What is exported."""

    kind: ExportKind
    """clip, sheet or evidence."""
    stream_id: str | None = None
    """The stream; that of most keyframes of the question when None."""
    start: int | None = None
    """UTC microseconds; that of the question's first keyframe, a little earlier, when None."""
    end: int | None = None
    """UTC microseconds, exclusive; likewise."""
    question_id: str | None = None
    """A question of the caller."""
    reason: str = ""
    """Why; it is part of a bundle."""
    redactions: Sequence[Redaction] = ()
    """Boxes that are removed."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that an export made."""

    path: Path
    """The file."""
    name: str
    """Its name for the user."""
    media_type: str
    """Its media type."""
    stream_id: str
    """The stream."""


def begin_export(desk: Desk, caller: Caller, query: ExportQuery) -> Job:
    """Begin a job that makes a file; its result has `id`, `download`, `name`, `sha256` and `bytes`.

    Raises:
        UnknownStream: there is no such stream that the caller may see.
        Forbidden: the caller may not export it.
        UnknownItem: the caller has no such question.
        UsageError: the stretch is not given or too long, or a box is invalid.
        ServiceBusy: too many jobs wait.
    """
    question = None if query.question_id is None else read_question(desk, caller, query.question_id)
    name = query.stream_id or _stream_of(question)
    stream = desk.stream(caller, name, Action.EXPORT).stream_id
    pictures = _keyframes(question, stream)
    start, end = _stretch(query, pictures)
    redactions = checked_redactions(query.redactions)
    if not 0 < end - start <= MAX_SECONDS * _SECOND:
        raise UsageError(f"an export is of at most {MAX_SECONDS // 3600} hours; choose a shorter stretch")
    reason = " ".join(query.reason.split()) or "exported from the desk"
    draft = Draft(
        stream_id=stream,
        start=start,
        end=end,
        created_by=caller.name,
        reason=reason,
        question=None if question is None else question.question,
        answer=None if question is None or question.answer is None else question.answer.answer,
        details=_details(question, desk),
        pictures={at: score for at, score in pictures.items() if start <= at < end},
        redactions=redactions,
        zone=desk.settings.timezone,
    )
    folder = _folder(desk)
    key = SigningKey.load_or_create(folder.parent) if query.kind == "evidence" else None

    def work(job: Job) -> Mapping[str, Any]:
        """Make the file."""
        export_id = secrets.token_urlsafe(16).replace("-", "_")
        try:
            path = _make(desk, job, draft, key, folder / export_id, query.kind)
        except BaseException:
            _remove(folder, export_id)
            raise
        stem = re.sub(r"[^\w.-]", "_", f"{stream}_{rfc3339(start)}")
        entry = {"owner": caller.name, "stream_id": stream, "name": f"{stem}{path.suffix}", "file": path.name}
        write_atomically(folder / f"{export_id}.json", json.dumps(entry))
        return {
            "id": export_id,
            "download": f"{API}/exports/{export_id}",
            "name": entry["name"],
            "sha256": _sha256(path),
            "bytes": path.stat().st_size,
        }

    job = desk.jobs.begin(query.kind, caller, work, streams=(stream,))
    detail = {"kind": query.kind, "start": rfc3339(start), "end": rfc3339(end), "reason": reason}
    desk.audit(caller, Action.EXPORT, streams=[stream], detail={**detail, "boxes": len(redactions)})
    return job


def find_export(desk: Desk, caller: Caller, export_id: str) -> Exported:
    """A file that a job of the caller made. Raises UnknownItem."""
    missing = UnknownItem("there is no such export; exports are kept for a day")
    if not _ID.fullmatch(export_id):
        raise missing
    folder = _folder(desk)
    try:
        entry = json.loads((folder / f"{export_id}.json").read_text())
        path = folder / entry["file"]
        age = time.time() - path.stat().st_mtime
    except (OSError, ValueError, KeyError):
        raise missing from None
    if entry["owner"] != caller.name or not caller.may(Action.EXPORT, entry["stream_id"]) or age > _KEEP_SECONDS:
        raise missing
    return Exported(path, entry["name"], _TYPES[path.suffix], entry["stream_id"])


def _stream_of(question: QuestionEntry | None) -> str:
    if question is None or question.selected is None or not question.selected.keyframes:
        raise UsageError("an export needs a stream, or a question with keyframes")
    names = [each.stream_id for each in question.selected.keyframes]
    return max(sorted(set(names)), key=names.count)


def _keyframes(question: QuestionEntry | None, stream_id: str) -> dict[int, float | None]:
    if question is None or question.selected is None:
        return {}
    some = question.selected.keyframes
    return {parse_rfc3339(each.captured_at): each.score for each in some if each.stream_id == stream_id}


def _stretch(query: ExportQuery, pictures: Mapping[int, float | None]) -> tuple[int, int]:
    if (query.start is None or query.end is None) and not pictures:
        raise UsageError("an export needs a start and an end, or a question with keyframes of the stream")
    start = query.start if query.start is not None else min(pictures) - _AROUND
    end = query.end if query.end is not None else max(pictures) + _AROUND
    return start, end


def _details(question: QuestionEntry | None, desk: Desk) -> dict[str, Any]:
    if question is None:
        return {}
    details: dict[str, Any] = {"asked at": question.asked_at, "profile": desk.settings.profile}
    if question.options:
        details["options"] = ", ".join(question.options)
    if question.answer is not None and question.answer.probabilities:
        shares = question.answer.probabilities.items()
        details["probabilities"] = ", ".join(f"{name} {share:.3f}" for name, share in shares)
    if question.selected is not None:
        details["frames in question"] = question.selected.window_frames
    return details


def _folder(desk: Desk) -> Path:
    """The folder of exports, without those that are too old, too many or too large."""
    if desk.settings.state is None:
        raise UsageError("exports need a state folder; start the desk with --state")
    folder = desk.settings.state / "exports"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    held = 0
    for number, path in enumerate(kept):
        held += sum(each.stat().st_size for each in folder.glob(f"{path.stem}*"))
        if number >= _MOST_FILES or held > _KEPT_BYTES or time.time() - path.stat().st_mtime > _KEEP_SECONDS:
            _remove(folder, path.stem)
    return folder


def _remove(folder: Path, export_id: str) -> None:
    for path in folder.glob(f"{export_id}*"):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make(desk: Desk, job: Job, draft: Draft, key: SigningKey | None, place: Path, kind: ExportKind) -> Path:
    job.advance(0.0)
    if kind == "evidence":
        if key is None:
            raise UsageError("evidence needs a key")
        path = place.with_suffix(".zip")
        make_bundle(desk.store, desk.footage, key, draft, path, clip_bytes=_CLIP_BYTES, progress=job.advance)
        return path
    return _sheet(desk, draft, place) if kind == "sheet" else _clip(desk, job, draft, place)


def _clip(desk: Desk, job: Job, draft: Draft, place: Path) -> Path:
    footage = desk.footage.find(draft.stream_id, draft.start, draft.end)
    if footage is None:
        raise EmptyWindow(
            f"{draft.stream_id}: no recording has footage of {rfc3339(draft.start)}, and the ingested file is not there"
        )
    codec, container = video_encoder()
    facts = desk.player.facts(footage)
    encoding = Encoding(codec=codec, redactions=tuple(draft.redactions), width=4096) if draft.redactions else None
    kind: ClipKind = "mp4" if encoding is None and facts.copies else "matroska"
    if encoding is not None:
        kind = "webm" if container == "webm" else "mp4"
    path = place.with_suffix(".mkv" if kind == "matroska" else f".{kind}")
    try:
        with path.open("xb+") as file:
            write_footage(
                desk.footage,
                footage,
                file.fileno(),
                start=draft.start,
                end=draft.end,
                kind=kind,
                limits=desk.player.limits,
                encoding=encoding,
                output_bytes=_CLIP_BYTES,
            )
    except DecodeFailed:
        if path.stat().st_size >= _CLIP_BYTES:
            raise UsageError(
                f"the clip is larger than {_CLIP_BYTES // 2**30} GiB; choose a shorter stretch, or use `sightline clip`"
            ) from None
        raise
    except OSError as error:
        raise SourceNotFound(f"the clip cannot be written ({error.strerror or error})") from None
    job.advance(0.9)
    return path


def _sheet(desk: Desk, draft: Draft, place: Path) -> Path:
    window = desk.store.window([draft.stream_id], draft.start, draft.end)
    rows = np.flatnonzero(np.isin(window.captured_at, list(draft.pictures)))
    if not len(rows):
        count = min(_SHEET_PICTURES, len(window))
        rows = np.unique(np.linspace(0, len(window) - 1, count).round().astype(int))
    chosen = window.take(rows)
    cells = []
    for at, data in zip(chosen.captured_at.tolist(), desk.store.pictures(chosen), strict=True):
        score = draft.pictures.get(at)
        shown = cover(data, at, draft.redactions)
        cells.append(
            Captioned(shown, f"{draft.stream_id} {rfc3339(at)}", "" if score is None else f"score {score:.3f}")
        )
    path = place.with_suffix(".jpg")
    write_atomically(path, contact_sheet(cells, title=draft.question or draft.stream_id))
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
