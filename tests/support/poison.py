"""Hostile records for the Kafka worker: mutations of a valid segment message, its key, its headers and its batch."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

from kafka.record import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

__all__ = ["KINDS", "Headers", "batch", "mutated", "with_checksum"]

Headers = Sequence[tuple[Any, bytes | None]]
_DEEP = "[" * 100_000
_LONG = "a" * 60_000

KINDS: dict[str, dict[str, Any]] = {
    "lone surrogate": {"stream": "gate\ud800", "version": "\udfff", "clock": "\ud83d", "uri": "file:///\udc00"},
    "base64 that is not ASCII": {"data": "AAAé", "sha256": "é" * 64},
    "URI that does not parse": {"uri": "http://[", "stream": "http://["},
    "NUL byte": {"stream": "gate\0", "uri": "file:///tmp/a\0b", "media_type": "video/mp4\0"},
    "number": {"size": 10**4000, "duration": float("inf"), "version": 1e308, "start": -(10**30)},
}
"""Fields with values that once ended the worker, by kind."""

_VALUES: list[Any] = [value for kind in KINDS.values() for value in kind.values()]
_VALUES += [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    float("nan"),
    float("-inf"),
    2**63,
    2**64,
    "",
    " ",
    "1",
    [],
    {},
    [[]],
    {"a": 1},
]
_VALUES += [
    _LONG,
    f"rtsp://{_LONG}@x",
    f"http://x/?{'key' * 9_000}",
    "\u202e",
    "e\u0301" * 900,
    "x" * 129,
    "../..",
    "..",
    ".",
]
_VALUES += [
    "http://x:999999",
    "http://x:é",
    "file://[::1",
    "file:///" + "d/" * 1000,
    "s3://",
    "://",
    "data:,",
    "%00",
    "%zz",
]
_VALUES += ["2024-03-01T08:00:00", "2024-13-01T08:00:00Z", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00-23:59"]
_RAW_NUMBERS = [b"1e400", b"-1e400", b"NaN", b"Infinity", b"9" * 5000, b"0x10", b"1_000", b"01", b"1" + b"0" * 310]
_NAMES: list[Any] = ["sightline-attempt", "x", "", "traceparent", "\0"]
_HEADER_VALUES = [None, b"", b"1", b"9" * 5000, b"-1", b"\xff\xfe", b"\xc2\xb2", b"x" * 3000, b"1e400", "٣".encode()]


def mutated(message: bytes, rng: random.Random) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of a record that is made from a valid message, and rarely still valid."""
    fields: dict[str, Any] = json.loads(message)
    key: bytes | None = str(fields["stream"]).encode()
    headers: list[tuple[Any, bytes | None]] = []
    kind = rng.randrange(12)
    value: bytes | None = message
    if kind < 4:
        for name in rng.sample(sorted(fields), k=rng.choice([1, 1, 1, 2, 4])):
            fields[name] = rng.choice(_VALUES)
        value = _json(fields)
    elif kind == 4:
        fields[rng.choice(["uri", "\ud800", "", "extra", "version ", _LONG])] = rng.choice(_VALUES)
        value = _json(fields)
    elif kind == 5:
        for name in rng.sample(sorted(fields), k=rng.randrange(1, 4)):
            del fields[name]
        value = _json(fields)
    elif kind == 6:
        name = rng.choice(sorted(fields))
        fields[name] = "@@"
        value = _json(fields).replace(b'"@@"', rng.choice(_RAW_NUMBERS))
    elif kind == 7:
        raw = bytearray(message)
        for _ in range(rng.choice([1, 1, 2, 10, 100])):
            at = rng.randrange(len(raw))
            if rng.random() < 0.3:
                raw[at:at] = rng.randbytes(rng.randrange(1, 5))
            elif rng.random() < 0.3:
                del raw[at : at + rng.randrange(1, 50)]
            else:
                raw[at] = rng.randrange(256)
            if not raw:
                raw = bytearray(b"{")
        value = bytes(raw)
    elif kind == 8:
        value = rng.choice(
            [None, b"", b"null", b"[]", b'"x"', b"1", b"\xff\xfe", b"{", message[: rng.randrange(len(message))]]
        )
        if rng.random() < 0.05:
            value = _DEEP.encode()
    elif kind == 9:
        key = rng.choice([None, b"", b"\xff\xfe", b"other", key and key + b"\0", b"k" * 3000])
    else:
        headers = [(rng.choice(_NAMES), rng.choice(_HEADER_VALUES)) for _ in range(rng.randrange(1, 6))]
    return key, value, headers


def _json(fields: dict[str, Any]) -> bytes:
    items = [f"{json.dumps(name)}: {_number(value)}" for name, value in fields.items()]
    return ("{" + ", ".join(items) + "}").encode()


def _number(value: Any) -> str:
    return "1" + "0" * 4400 if isinstance(value, int) and abs(value) > 10**3999 else json.dumps(value)


def batch(records: Sequence[tuple[bytes | None, bytes | None, Headers]], *, first: int, codec: int = 0) -> bytes:
    """A record batch (magic 2) as a broker sends it, whose first offset is `first`."""
    builder = MemoryRecordsBuilder(2, codec, 2**27)
    for key, value, headers in records:
        builder.append(1_700_000_000_000, key, value, list(headers))
    builder.close()
    raw = bytearray(builder.buffer())
    struct.pack_into(">q", raw, 0, first)
    return bytes(raw)


def with_checksum(raw: bytes) -> bytes:
    """The batch with the checksum of its bytes, for a batch that was changed."""
    fixed = bytearray(raw)
    struct.pack_into(">I", fixed, 17, calc_crc32c(memoryview(fixed)[21:]))
    return bytes(fixed)
