"""The manifest of an evidence bundle: what is in it, where it comes from, and the digest of every file.

`manifest.json` is JSON with sorted keys, no blanks, UTF-8 and one line, so that the same content has the same bytes.
`manifest.sig` has the Ed25519 signature of these bytes, Base64. Every other file of the bundle is listed.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from index.records import EncoderPair

__all__ = [
    "FORMAT",
    "MANIFEST",
    "PUBLIC_KEY",
    "SIGNATURE",
    "Clip",
    "Clock",
    "Covered",
    "FileEntry",
    "Manifest",
    "Picture",
    "SourceFootage",
    "canonical",
]

FORMAT = "sightline-evidence/1"
MANIFEST, SIGNATURE, PUBLIC_KEY = "manifest.json", "manifest.sig", "public-key.pem"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileEntry(_Part):
    """One file of the bundle."""

    path: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?:/[A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=200)
    """Its path: a name, or a folder and a name."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its bytes, hex."""
    bytes: int = Field(ge=0)
    """Its size."""


class Clock(_Part):
    """Where the times of a stretch of footage come from."""

    source: str
    """given, filename, container, mtime or arrival."""
    zone: str | None
    """The zone in which a time in a file's name was read; null where there is none."""
    fold: str | None
    """How a doubtful local time was read; null where it was not doubtful."""


class SourceFootage(_Part):
    """Footage that the clip was made of."""

    kind: Literal["recording", "file"]
    """A segment of a recording, or an ingested file."""
    name: str
    """Its name."""
    sha256: str
    """SHA-256 of all its bytes, hex."""
    bytes: int
    """Its size."""
    start: str
    """Time of its first frame, RFC 3339."""


class Covered(_Part):
    """A box that was removed from the pictures and the clip."""

    start: str
    """From this time on, RFC 3339."""
    end: str
    """Until before this time, RFC 3339."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as shares of the picture."""


class Clip(_Part):
    """The clip of the bundle."""

    file: str
    """Its file."""
    viewing_copy: str | None
    """A file of the same, encoded so that every browser plays it; null where the clip is that."""
    start: str
    """Time of its first frame, RFC 3339."""
    end: str
    """Time of the end of its last frame, RFC 3339."""
    frames: int
    """Number of frames."""
    missing_seconds: float
    """Seconds within it that no footage covers."""
    encoded_again: bool
    """Whether its frames were encoded again; otherwise its packets are those of the footage."""


class Picture(_Part):
    """A frame of the bundle."""

    file: str
    """Its picture."""
    stream_id: str
    """The stream."""
    captured_at: str
    """Capture time, RFC 3339."""
    pts_seconds: float
    """Seconds of the stream's own clock."""
    score: float | None
    """Cosine of the frame and the text of the question; null where there is none."""
    stored_sha256: str
    """SHA-256 of the picture in the store, hex; the file's own, unless boxes were removed."""


class Manifest(_Part):
    """What a bundle says of itself."""

    format: Literal["sightline-evidence/1"]
    """Version of this format."""
    id: str
    """Name of the bundle, 32 hex digits."""
    created_at: str
    """When it was made, RFC 3339, by the clock of the machine."""
    created_by: str
    """Name of the user who made it."""
    reason: str
    """Why it was made."""
    program: str
    """Name and version of the program."""
    stream_id: str
    """The stream."""
    start: str
    """Start of the stretch, RFC 3339."""
    end: str
    """End of the stretch, exclusive, RFC 3339."""
    zone: str
    """The time zone of the page's local times, an IANA name."""
    clocks: list[Clock]
    """Where the times of the stretch come from."""
    footage: list[SourceFootage]
    """The footage that the clip was made of."""
    clip: Clip | None
    """The clip; null where no footage is there any more."""
    frames: list[Picture]
    """The pictures, by time."""
    question: str | None
    """The question that led here."""
    answer: str | None
    """Its answer."""
    details: dict[str, Any]
    """Further facts of the answer: options, probabilities, models."""
    encoders: EncoderPair
    """The encoders whose vectors the scores are of."""
    covered: list[Covered]
    """What was removed from pictures and clip."""
    notices: list[str]
    """What a reader must know: missing footage, a guessed time."""
    public_key: str
    """The key that signs the bundle, PEM."""
    fingerprint: str
    """SHA-256 of the raw public key, hex in groups of four."""
    files: list[FileEntry]
    """Every file but the manifest and its signature, by path."""


def canonical(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    values = manifest.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
