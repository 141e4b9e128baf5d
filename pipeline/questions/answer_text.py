"""Lines of text about keyframes and answers, as the commands print them. Does not know the console."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.questions.asked import Asked, Keyframe

__all__ = ["answer_lines", "keyframe_lines", "stream_line"]

_LISTED = 8


def keyframe_lines(frames: Sequence[Keyframe]) -> list[str]:
    """One line for each keyframe: relevance, stream, time, place in the footage, and the source of the time."""
    return [
        f"{frame.score:6.3f}  {frame.stream_id}  {frame.captured_at}  +{frame.offset_seconds:.0f} s"
        + (f"  clock: {frame.clock}" if frame.clock else "")
        for frame in frames
    ]


def stream_line(asked: Asked) -> str | None:
    """The streams that keyframes were drawn from, with their numbers; None if the window has one stream."""
    if asked.window_streams < 2 or not asked.streams:
        return None
    named = ", ".join(f"{name} ({count})" for name, count in asked.streams.items())
    return f"keyframes from {len(asked.streams)} of {asked.window_streams} streams: {named}"


def answer_lines(asked: Asked) -> list[str]:
    """The lines below an answer: the most relevant keyframes, the streams they are from, and the cost."""
    best = sorted(asked.keyframes, key=lambda frame: -frame.score)
    lines = keyframe_lines(best[:_LISTED])
    if len(best) > _LISTED:
        lines.append(f"   and {len(best) - _LISTED} more (--json lists all)")
    if (streams := stream_line(asked)) is not None:
        lines.append(streams)
    threshold = "" if asked.tau is None else f" at τ = {asked.tau:.3g}"
    lines.append(
        f"{len(best)} keyframes of {asked.frames} frames{threshold}, {asked.visual_tokens} visual tokens, "
        f"{asked.timings_seconds['total']:.2f} s"
    )
    return lines
