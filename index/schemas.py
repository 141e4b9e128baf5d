"""The Arrow schemas of the three Delta tables: what each column is, and its unit.

    frames    one row per frame: key, clock, vectors and picture; read by questions and searches
    patches   one row per frame: the M patch tokens, by far the most bytes; read for the frames of one question only
    segments  one row per committed segment: what was ingested, from where and how

The picture is a column of `frames`, which a reader loads only on request, so that deleting a frame deletes its picture
in the same commit.
"""

from __future__ import annotations

import re
from typing import Annotated

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
"""Table property of `segments`: how often footage was deleted with `forget`, an integer; absent for 0."""

_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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
    """Return `stream_id`. Raises UsageError if it is not a valid name of a stream."""
    if not _STREAM.fullmatch(stream_id):
        raise UsageError(
            f"{stream_id!r} cannot name a stream: use letters, digits, '.', '_' and '-', at most 128, a letter or "
            "digit first"
        )
    return stream_id


def _stream_name(value: str) -> str:
    try:
        return check_stream_id(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


StreamId = Annotated[str, AfterValidator(_stream_name)]
"""Type of a pydantic field that holds the name of a stream."""
