"""The Arrow schemas of the three Delta tables: what each column is, and its unit.

    frames    one row per frame: key, clock, vectors and picture; read by questions and searches
    patches   one row per frame: the M patch tokens, by far the most bytes; read for the frames of one question only
    segments  one row per committed segment: what was ingested, from where and how

The picture is a column of `frames`, which a reader loads only on request, so that deleting a frame deletes its picture
in the same commit.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated
from urllib.parse import quote, unquote

import pyarrow as pa
from pydantic import AfterValidator

from index.errors import UsageError

FORMAT = 2
"""The newest format this version reads. 2 has patches that are not fp16; a store of fp16 patches is written as 1."""

FORMAT_KEY = "sightline.format"
"""Table property: the format of the store, an integer."""

ENCODERS_KEY = "sightline.encoders"
"""Table property: the `EncoderPair` whose vectors the store holds, JSON."""

PATCHES_KEY = "sightline.patches"
"""Table property: the `PatchEncoding`, JSON; absent for fp16."""

GENERATION_KEY = "sightline.generation"
"""Table property: how often footage was deleted with `forget`, an integer; absent for 0.

With `.<digest of a stream>`, of this stream. Without, as earlier versions counted: of all streams, in `segments`."""

DELETION_KEY = "sightline.deletion"
"""Table property of `segments`, with `.<digest of a stream>`: a deletion in progress, see `index.commits.deletion`."""

HOLDS_KEY = "sightline.holds"
"""Table property of `segments`, with `.<digest of a stream>`: its evidence locks, see `index.commits.held`."""

MAX_STREAM_CHARACTERS = 128
"""The largest number of characters of a stream id."""

MAX_STREAM_BYTES = 200
"""The largest number of bytes of a percent-encoded stream id, which is part of the names of folders and files."""

_TOO_LONG = 4 * MAX_STREAM_CHARACTERS  # still too long when composed


def _column(name: str, kind: pa.DataType, unit: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"unit": unit})


_TIME = pa.timestamp("us", "UTC")
_KEY = [
    _column("stream_id", pa.string(), "name of the camera; partition"),
    _column("date", pa.string(), "UTC day of captured_at, YYYY-MM-DD; partition"),
    _column("captured_at", _TIME, "UTC microseconds"),
    _column("segment", pa.string(), "digest of stream, source and chunk"),
]
FRAMES = pa.schema(
    [
        *_KEY,
        _column("pts_seconds", pa.float64(), "seconds of the stream's own clock"),
        _column("clock_source", pa.string(), "given, filename, container, mtime or arrival"),
        _column("frame_vector", pa.list_(pa.float32()), "CLIP embedding, unit norm, [Df]"),
        _column("patch_pooled", pa.list_(pa.float32()), "SigLIP pooled embedding, unit norm, [Dp]"),
        _column("picture", pa.binary(), "JPEG bytes"),
        # A store of an earlier version lacks the column until a frame with a norm is appended.
        pa.field("frame_norm", pa.float32(), metadata={"unit": "norm of the CLIP embedding, null when not stored"}),
    ]
)
PATCHES = pa.schema([*_KEY, _column("patches", pa.binary(), "float16 little endian, [M, Dp] row by row")])
# For the other encodings; `index.patches.codec` documents the layouts.
PATCHES_INT8 = pa.schema([*_KEY, _column("patches", pa.binary(), "int8 row")])
PATCHES_DIFFERENTIAL = pa.schema(
    [
        *_KEY,
        _column("head", _TIME, "captured_at of the first row of its chain, from which it is decoded"),
        _column("patches", pa.binary(), "differential row"),
    ]
)
SEGMENTS = pa.schema(
    [
        _column("stream_id", pa.string(), "name of the camera; partition"),
        _column("segment", pa.string(), "digest of stream, source and chunk"),
        _column("source", pa.string(), "digest of the footage"),
        _column("chunk", pa.int64(), "place in the source, from 0"),
        _column("uri", pa.string(), "where the footage was, credentials masked"),
        _column("start", _TIME, "UTC microseconds"),
        _column("end", _TIME, "UTC microseconds, exclusive"),
        _column("frames", pa.int64(), "frames stored by this segment"),
        _column("decode_mode", pa.string(), "keyframes, nonref or all"),
        _column("clock_source", pa.string(), "given, filename, container, mtime or arrival"),
        pa.field("clock_zone", pa.string(), metadata={"unit": "zone of a time in a name, null when there is none"}),
        pa.field("clock_fold", pa.string(), metadata={"unit": "first or before, null when the time is not doubtful"}),
        _column("final", pa.bool_(), "whether the source ends here"),
        pa.field("problem", pa.string(), metadata={"unit": "what went wrong while decoding, null when nothing"}),
    ]
)
TABLES = {
    "frames": (FRAMES, ["stream_id", "date"]),
    "patches": (PATCHES, ["stream_id", "date"]),
    "segments": (SEGMENTS, ["stream_id"]),
}
"""Schema and partition columns of each table."""


def check_stream_id(stream_id: str) -> str:
    """Return `stream_id`. Raises UsageError if it is not a valid name of a stream.

    A name has letters, digits and combining marks of any script, `.`, `_` and `-`; a letter or digit comes first. It is
    in Unicode's composed form (NFC), so that what looks the same is the same. It has at most `MAX_STREAM_CHARACTERS`
    characters, and at most `MAX_STREAM_BYTES` bytes when percent-encoded.
    """
    if problem := _problem(stream_id):
        shown = repr(stream_id if len(stream_id) <= 80 else f"{stream_id[:80]}…")
        raise UsageError(f"{shown} cannot name a stream: {problem}")
    return stream_id


def compose_stream_id(text: str) -> str:
    """The valid name of a stream that a person wrote in any normalization form. Raises UsageError as
    `check_stream_id`."""
    return check_stream_id(unicodedata.normalize("NFC", text[:_TOO_LONG]))


def encode_stream_id(stream_id: str) -> str:
    """A stream id as part of a file's name: percent-encoded, as Delta encodes the values of partition columns."""
    return quote(stream_id, safe="")


def decode_stream_id(name: str) -> str:
    """The stream id of which `encode_stream_id` made `name`."""
    return unquote(name)


def partition_folder(stream_id: str) -> str:
    """The folder of a stream's files, below the folder of each table."""
    return f"stream_id={encode_stream_id(stream_id)}"


def _problem(stream_id: str) -> str | None:
    """What makes `stream_id` invalid; None if it is valid."""
    if not stream_id or len(stream_id) > MAX_STREAM_CHARACTERS:
        return f"use 1 to {MAX_STREAM_CHARACTERS} characters"
    kinds = [unicodedata.category(letter)[0] for letter in stream_id]
    if kinds[0] not in "LN" or not all(
        kind in "LMN" or letter in "._-" for kind, letter in zip(kinds, stream_id, strict=True)
    ):
        return "use letters and digits of any script, '.', '_' and '-', a letter or digit first"
    if not unicodedata.is_normalized("NFC", stream_id):
        return "its accents must be composed with their letters (Unicode NFC)"
    if len(encode_stream_id(stream_id)) > MAX_STREAM_BYTES:
        return f"it is too long for the name of a folder: {MAX_STREAM_BYTES} bytes when percent-encoded; shorten it"
    return None


def _stream_name(value: str) -> str:
    try:
        return compose_stream_id(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


StreamId = Annotated[str, AfterValidator(_stream_name)]
"""Type of a pydantic field that holds the name of a stream; a decomposed name is composed."""
