"""The sampler's reference, which looks at all frames at once."""

from __future__ import annotations


def naive(times: list[float], fps: float) -> list[float]:
    """For every k the first frame at or after k/fps; a frame that serves several k counts once."""
    taken: list[float] = []
    if not times:
        return taken
    for k in range(int((times[-1] - times[0]) * fps) + 2):
        later = [t for t in times if (t - times[0]) * fps >= k - 1e-6 * fps]
        if later and later[0] not in taken:
            taken.append(later[0])
    return taken
