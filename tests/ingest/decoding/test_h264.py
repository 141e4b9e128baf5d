"""Which H.264 packets no other frame refers to."""

from __future__ import annotations

import pytest

from ingest.decoding.h264 import h264_disposable


def unit(kind: int, reference: int, size: int = 8) -> bytes:
    return bytes([reference << 5 | kind]) + b"\x88" * size


def packet(units: list[bytes], lengths: int) -> bytes:
    return b"".join((len(u).to_bytes(lengths, "big") if lengths else b"\0\0\1") + u for u in units)


@pytest.mark.parametrize("lengths", [0, 2, 4])
def test_every_slice_must_say_so(lengths: int) -> None:
    sei = unit(6, 0)
    assert h264_disposable(packet([sei, unit(1, 0), unit(1, 0)], lengths), lengths)
    assert not h264_disposable(
        packet([sei, unit(1, 0, 65_000), unit(1, 2)], lengths), lengths
    )  # its second field is kept
    assert not h264_disposable(packet([unit(5, 3)], lengths), lengths)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\xff", packet([unit(6, 0)], 4)])
def test_what_has_no_slice_is_decoded(data: bytes) -> None:
    assert not h264_disposable(data, 4)
