"""What became of footage: stored, repeated or dropped, in segments, frames and seconds; the same for every command.

`ingest` and `backfill` count frames of files, `publish` counts segments, `consume` counts both. A stored or repeated
frame is one second of footage. What could not be read has no frames; its seconds are those that the container or
message announces, and 0 where nothing does.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FootageAmount", "FootageReport"]


class FootageAmount(BaseModel):
    """An amount of footage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    files: int = 0
    """Files that were not read, or not to their end; only of dropped footage."""
    segments: int = 0
    """Segments of streams; 0 for files."""
    frames: int = 0
    """Frames, one a second; 0 where nothing was decoded."""
    seconds: float = 0.0
    """Seconds of footage, as far as they are known."""

    def __str__(self) -> str:
        counts = [(self.files, "file"), (self.segments, "segment"), (self.frames, "frame")]
        parts = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count]
        if self.seconds:
            parts.append(f"{self.seconds:.0f} s")
        return ", ".join(parts) or "nothing"


class FootageReport(BaseModel):
    """What a command did with the footage that it was given."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stored: FootageAmount = Field(default_factory=FootageAmount)
    """Footage that is new in the store; of `publish`, in Kafka."""
    repeated: FootageAmount = Field(default_factory=FootageAmount)
    """Footage whose seconds were stored already."""
    dropped: FootageAmount = Field(default_factory=FootageAmount)
    """Footage that was not stored: it could not be read, or went to the dead letters."""

    def add(
        self,
        what: Literal["stored", "repeated", "dropped"],
        *,
        files: int = 0,
        segments: int = 0,
        frames: int = 0,
        seconds: float | None = None,
    ) -> None:
        """Count footage. Its seconds are its number of frames when None."""
        amount: FootageAmount = getattr(self, what)
        amount.files += files
        amount.segments += segments
        amount.frames += frames
        amount.seconds = round(amount.seconds + (frames if seconds is None else seconds), 6)

    def include(self, other: FootageReport) -> None:
        """Add what another report counts."""
        for what in ("stored", "repeated", "dropped"):
            amount: FootageAmount = getattr(other, what)
            self.add(
                what,
                files=amount.files,
                segments=amount.segments,
                frames=amount.frames,
                seconds=amount.seconds,
            )

    def __str__(self) -> str:
        return f"stored: {self.stored}; repeated: {self.repeated}; dropped: {self.dropped}"
