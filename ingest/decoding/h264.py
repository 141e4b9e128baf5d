"""H.264 packets: which of them are sync points, and which no other packet refers to.

Containers mark recovery points as key frames, among them the first frame of a gradual intra refresh, which does not
decode to a complete picture on its own. Sources: ITU-T H.264, 7.3.1 (NAL units), 7.3.3 (slice header), 9.1 (Exp-Golomb
codes); ISO 14496-15 (avcC).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

__all__ = ["h264_disposable", "h264_kind", "length_bytes", "parameter_sets"]

_HEAD_BYTES = 64 * 1024  # holds the first slice, which follows parameter sets and SEI messages


def length_bytes(extradata: bytes | None) -> int:
    """Bytes of the length field before each NAL unit; 0 where start codes separate them (Annex B)."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def h264_kind(data: bytes, lengths: int) -> Literal["idr", "intra", "other"]:
    """The kind of an access unit: `idr` if nothing after it refers to anything before it, `intra` if it decodes alone.

    Args:
        data: one access unit (packet).
        lengths: see `length_bytes`.
    """
    for start in _units(data[:_HEAD_BYTES], lengths):
        kind = data[start] & 31
        if kind == 5:
            return "idr"
        if kind == 1:
            return "intra" if _slice_type(data[start + 1 : start + 17]) % 5 in (2, 4) else "other"
        if kind == 2:  # a partitioned slice
            return "other"
    return "other"


def h264_disposable(data: bytes, lengths: int) -> bool:
    """Whether no other frame refers to this one: nal_ref_idc is 0 in every slice (of both fields, if there are two)."""
    slices = [data[start] & 0x60 for start in _units(data, lengths) if data[start] & 31 in (1, 2, 5)]
    return bool(slices) and not any(slices)


def parameter_sets(data: bytes, lengths: int, codec: str) -> bytes:
    """The sequence parameter sets before the first slice: they change when size or profile change.

    Args:
        data: one access unit (packet).
        codec: `h264` or `hevc`; for others the result is empty.
        lengths: see `length_bytes`.
    """
    if codec not in ("h264", "hevc"):
        return b""
    head, found = data[:_HEAD_BYTES], []
    starts = [*_units(head, lengths), len(head) + 3]
    for start, after in pairwise(starts):
        kind = head[start] & 31 if codec == "h264" else head[start] >> 1 & 63
        if kind in ((1, 5) if codec == "h264" else range(32)):
            break
        if kind == (7 if codec == "h264" else 33):
            found.append(head[start : after - (lengths or 3)].rstrip(b"\0"))
    return b"".join(found)


def _units(data: bytes, lengths: int) -> Iterator[int]:
    """Offsets of the header byte of each NAL unit."""
    at = 0
    while True:
        if lengths:
            start = at + lengths
            at = start + int.from_bytes(data[at:start], "big")
        else:
            start = data.find(b"\0\0\1", at) + 3
            if start < 3:
                return
            at = start
        if start >= len(data):
            return
        yield start


def _slice_type(data: bytes) -> int:
    """slice_type, the second Exp-Golomb code of a slice header (after first_mb_in_slice); -1 if `data` is too short."""
    bits = int.from_bytes(data.replace(b"\0\0\3", b"\0\0"), "big")
    left = len(data.replace(b"\0\0\3", b"\0\0")) * 8
    value = -1
    for _ in range(2):
        zeros = left - (bits & ((1 << left) - 1)).bit_length()
        width = 2 * zeros + 1
        if width > left:
            return -1
        value = ((bits >> (left - width)) & ((1 << (zeros + 1)) - 1)) - 1
        left -= width
    return value
