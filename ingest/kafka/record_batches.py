"""Record batches as a broker sends them, read so that no batch can stop its consumer.

kafka-python raises when a batch has a wrong checksum, a codec that is not installed or a malformed record, and reads
the same batch again at the next poll, where its iterator has ended: `poll` then never returns. The classes here take
the place of kafka-python's and raise nothing. What cannot be read becomes one record whose value is an
`UnreadableBatch`: the bytes as they came, and the reason. Its offset is the batch's last one, so the partition
continues behind the batch.

Decompressed bytes are bounded: for a batch, because a few kilobytes can decompress to gigabytes, and for the batches of
one fetch together, of which the rest is fetched again. This module knows nothing of messages.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cramjam
import lz4.frame
import structlog
import zstandard
from kafka.consumer import fetcher
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint

__all__ = ["RecordBatches", "UnreadableBatch", "decompress", "install"]

_log = structlog.get_logger(__name__)
_DECOMPRESSED_BYTES = 32 * 2**20
_DECOMPRESSED_FACTOR = 4  # a batch may always decompress to this multiple of its size
_LENGTH = struct.Struct(">qi")  # base offset, bytes that follow
_MAGIC_AT = 16
_SMALLEST = 14  # bytes of the smallest batch of an old format, behind `_LENGTH`
_XERIAL, _XERIAL_HEADER_BYTES = b"\x82SNAPPY\x00", 16  # how Java writes snappy: blocks, each behind its length


class UnreadableBatch(bytes):
    """The value of a record that stands for a batch, or a part of one, that cannot be read: its bytes as they came."""

    reason: str
    """Why it cannot be read."""

    @classmethod
    def of(cls, raw: bytes | memoryview, reason: str) -> UnreadableBatch:
        """The value for these bytes."""
        value = cls(raw)
        value.reason = reason
        return value


class RecordBatches:
    """The batches of one fetch of one partition; takes the place of `kafka.record.MemoryRecords`.

    Args:
        data: the batches; the last one may be cut off.
    """

    def __init__(self, data: Any) -> None:
        self._data, self._at, self._budget = memoryview(data or b""), 0, _DECOMPRESSED_BYTES

    def size_in_bytes(self) -> int:
        """Bytes of the fetch."""
        return len(self._data)

    def valid_bytes(self) -> int:
        """Bytes of the batches that are complete."""
        at = 0
        while (end := self._end(at)) is not None:
            at = end
        return at

    def has_next(self) -> bool:
        """Whether another complete batch follows."""
        return self._end(self._at) is not None

    def next_batch(self) -> _Batch | _LegacyBatch | None:
        """The next batch. None at the end, and when the batches before have used up the budget of decompression."""
        end = self._end(self._at)
        if end is None or self._budget <= 0:
            return None
        raw, self._at = self._data[self._at : end], end
        try:
            (magic,) = struct.unpack_from(">b", raw, _MAGIC_AT)
            batch = _LegacyBatch(raw, magic) if magic < 2 else _Batch(raw, self)
        except (struct.error, ValueError):
            batch = _LegacyBatch(_PLACEHOLDER, 1)
            batch.unreadable(raw, "it is shorter than its header")
        return batch

    def spend(self, count: int) -> None:
        """Subtract decompressed bytes from the budget."""
        self._budget -= count

    def _end(self, at: int) -> int | None:
        if len(self._data) - at < _LENGTH.size + _SMALLEST:
            return None
        length = _LENGTH.unpack_from(self._data, at)[1]
        end = at + _LENGTH.size + length
        return None if length < _SMALLEST or end > len(self._data) else end


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch of the present format (magic 2). Iterating over it raises nothing."""

    def __init__(self, raw: memoryview, batches: RecordBatches) -> None:
        super().__init__(raw)
        self._raw, self._batches = bytes(raw), batches
        self._records: Iterator[DefaultRecord] | None = None

    def validate_crc(self) -> bool:
        """True: iteration handles a wrong checksum."""
        return True

    def __iter__(self) -> Iterator[DefaultRecord]:
        self._records = self._read()
        return self._records

    def __next__(self) -> DefaultRecord:
        if self._records is None:
            self._records = self._read()
        return next(self._records)

    def _read(self) -> Iterator[DefaultRecord]:
        try:
            if not super().validate_crc():
                raise ValueError("its checksum differs")
            data = memoryview(self._raw)[self.HEADER_STRUCT.size :]
            if self.compression_type:
                data = memoryview(decompress(self.compression_type, bytes(data)))
                self._batches.spend(len(data))
        except Exception as error:  # each codec raises its own exceptions
            yield self._unreadable(self.last_offset, self._raw, f"the record batch cannot be read: {error}")
            return
        room = self.last_offset - self.base_offset + 1
        if not 0 <= self.records_count <= room:
            reason = f"the record batch has {self.records_count} records for {room} offsets"
            yield self._unreadable(self.last_offset, self._raw, reason)
            return
        at, offset = 0, self.base_offset - 1
        for remaining in reversed(range(self.records_count)):
            try:
                length, begin = decode_varint(data, at)
                at = begin + length
                if not begin < at <= len(data):
                    raise ValueError(f"a record of {length} bytes")
            except Exception as error:
                yield self._unreadable(self.last_offset, self._raw, f"the record batch ends within a record: {error}")
                return
            try:
                record = self._record(data[begin:at], offset, self.last_offset - remaining)
            except Exception as error:
                record = self._unreadable(offset + 1, data[begin:at], f"a malformed record: {error}")
            offset = record.offset
            yield record

    def _record(self, data: memoryview, previous: int, last: int) -> DefaultRecord:
        """Parse one record. Names of headers that are not UTF-8 are escaped.

        Args:
            data: the record, behind its length.
            previous: offset of the record before it.
            last: the largest offset that leaves one for each record behind it. A larger one would push those behind it
                beyond the batch, where they would take the places of other records.

        Raises:
            ValueError, IndexError: the record is malformed.
        """
        _, at = decode_varint(data, 0)  # attributes, unused
        delta, at = decode_varint(data, at)
        timestamp = self.max_timestamp if self.timestamp_type else self.first_timestamp + delta
        step, at = decode_varint(data, at)
        offset = self.base_offset + step
        if not previous < offset <= last:
            raise ValueError(f"offset {offset} is not behind {previous} or beyond {last}")
        key, at = _field(data, at)
        value, at = _field(data, at)
        count, at = decode_varint(data, at)
        if not 0 <= count <= len(data):
            raise ValueError(f"{count} headers")
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            name, at = _field(data, at)
            content, at = _field(data, at)
            headers.append(((name or b"").decode(errors="backslashreplace"), content))
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes too many")
        return DefaultRecord(len(data), offset, timestamp, self.timestamp_type, key, value, headers)

    def _unreadable(self, offset: int, raw: bytes | memoryview, reason: str) -> DefaultRecord:
        value = UnreadableBatch.of(raw, reason[:500])
        return DefaultRecord(len(raw), offset, self.max_timestamp, self.timestamp_type, None, value, [])


class _LegacyBatch(LegacyRecordBatch):  # type: ignore[misc]
    """A batch of a format that Kafka used before version 0.11 (magic 0 or 1). Iterating over it raises nothing."""

    def __init__(self, raw: memoryview | bytes, magic: int) -> None:
        super().__init__(raw, magic)
        self._raw, self._reason = bytes(raw), ""

    def unreadable(self, raw: memoryview, reason: str) -> None:
        """Have iteration yield one record for these bytes."""
        self._raw, self._reason = bytes(raw), reason

    def validate_crc(self) -> bool:
        """True: iteration handles a wrong checksum."""
        return True

    def __iter__(self) -> Iterator[Any]:
        try:
            if self._reason or not super().validate_crc():
                raise ValueError(self._reason or "its checksum differs")
            yield from super().__iter__()
        except Exception as error:
            offset = _LENGTH.unpack_from(self._raw)[0]
            value = UnreadableBatch.of(self._raw, f"the record batch cannot be read: {error}"[:500])
            yield DefaultRecord(len(self._raw), offset, -1, 0, None, value, [])


_PLACEHOLDER = bytes(_LENGTH.size + 22)


def _field(data: memoryview, at: int) -> tuple[bytes | None, int]:
    """A field with its length in front, or None for a negative length, and where the next one begins."""
    length, begin = decode_varint(data, at)
    if length < 0:
        return None, begin
    if begin + length > len(data):
        raise ValueError(f"a field of {length} bytes")
    return bytes(data[begin : begin + length]), begin + length


def decompress(codec: int, data: bytes) -> bytes:
    """The records of a batch, decompressed.

    Args:
        codec: its number in a batch's attributes: 1 gzip, 2 snappy, 3 lz4, 4 zstd.

    Raises:
        ValueError: another codec, or more bytes than a batch may have. The codecs raise their own exceptions as well.
    """
    limit = max(_DECOMPRESSED_BYTES, _DECOMPRESSED_FACTOR * len(data))
    if codec == 1:
        out = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, limit + 1)
    elif codec == 2:
        out = _unsnap(data, limit)
    elif codec == 3:
        out = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=limit + 1)
    elif codec == 4:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            out = reader.read(limit + 1)
    else:
        raise ValueError(f"compression {codec} is unknown")
    if len(out) > limit:
        raise ValueError(f"{len(data)} bytes decompress to more than {limit}")
    return bytes(out)


def _unsnap(data: bytes, limit: int) -> bytes:
    blocks = [data]
    if data.startswith(_XERIAL):
        blocks, at = [], _XERIAL_HEADER_BYTES
        while at < len(data):
            (length,) = struct.unpack_from(">i", data, at)
            if not 0 <= length <= len(data) - at - 4:
                raise ValueError(f"a block of {length} bytes")
            blocks.append(data[at + 4 : at + 4 + length])
            at += 4 + length
    out = bytearray()
    for block in blocks:
        if cramjam.snappy.decompress_raw_len(block) > limit - len(out):
            raise ValueError(f"{len(data)} bytes decompress to more than {limit}")
        out += bytes(cramjam.snappy.decompress_raw(block))
    return bytes(out)


def install() -> None:
    """Have kafka-python's consumers read batches with `RecordBatches`; its consumer has no setting for that."""
    fetcher.MemoryRecords = RecordBatches
