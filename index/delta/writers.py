"""How the Parquet files of a store's tables are written: codecs, dictionaries, statistics and row groups."""

from __future__ import annotations

from deltalake import ColumnProperties, WriterProperties

__all__ = ["WRITERS", "patch_writer"]

_RAW = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
_KEY = ColumnProperties(dictionary_enabled=True, statistics_enabled="CHUNK")
WRITERS = {
    # Vectors, pictures and patches neither repeat nor compress: dictionaries, statistics and codecs would only cost
    # time and bytes. deltalake 1.6.6 takes no name of a column within a list, so what is not named here is raw.
    "frames": WriterProperties(
        compression="UNCOMPRESSED",
        max_row_group_size=256,  # what is read for one picture: 4 MB of pictures of 16 kB
        default_column_properties=_RAW,
        column_properties=dict.fromkeys(("captured_at", "segment", "pts_seconds", "clock_source", "frame_norm"), _KEY),
    ),
    "patches": WriterProperties(compression="UNCOMPRESSED", column_properties={"patches": _RAW}),
    "segments": WriterProperties(compression="SNAPPY"),
}
"""Of each table."""


def patch_writer(*, compressed: bool, rows: int) -> WriterProperties:
    """How files of the `patches` table are written.

    Args:
        compressed: with ZSTD, for encodings whose bytes repeat.
        rows: rows of a row group; row groups are read side by side.
    """
    return WriterProperties(
        compression="ZSTD" if compressed else "UNCOMPRESSED",
        compression_level=3 if compressed else None,
        max_row_group_size=rows,
        column_properties={"patches": _RAW},
    )
