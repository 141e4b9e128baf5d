"""Numbers as a reader wants them: with a unit, and no more digits than mean something."""

from __future__ import annotations

import math

__all__ = ["count", "factor", "flops", "percent", "points", "seconds", "signed", "size", "speed"]


def count(value: float) -> str:
    """A whole number with thousands separators: `10,800`."""
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """A duration: `8.0 ms`, `0.88 s`, `13 s`, `2.5 min`."""
    if value < 0.0995:
        return f"{value * 1e3:.1f} ms" if value < 0.00995 else f"{value * 1e3:.0f} ms"
    if value < 9.95:
        return f"{value:.2f} s" if value < 0.995 else f"{value:.1f} s"
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def factor(value: float) -> str:
    """A ratio: `6.7×`, `228×`."""
    return f"{value:.2f}×" if value < 2 else f"{value:.1f}×" if value < 9.95 else f"{value:,.0f}×"


def percent(share: float) -> str:
    """A share in [0, 1]: `83 %`, `1.6 %`; 100 % means all."""
    value = 100 * share
    if 99.5 <= value < 100:
        return f"{math.floor(10 * value) / 10:.1f} %"
    return f"{value:.1f} %" if 0 < abs(value) < 9.95 and round(value, 1) != round(value) else f"{value:.0f} %"


def signed(change: float) -> str:
    """A relative change: `+9 %`, `−0.6 %`."""
    sign = "−" if change < 0 else "+"
    return f"{sign}{percent(abs(change))}"


def points(share: float) -> str:
    """A difference of two shares: `59 points`."""
    return f"{100 * share:.0f} points"


def size(value: float) -> str:
    """Bytes in decimal units: `65 MB`, `1.68 GB`."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * step:
            scaled = value / step
            return (
                f"{scaled:.2f} {unit}"
                if unit == "GB"
                else f"{scaled:.1f} {unit}"
                if scaled < 9.95
                else f"{scaled:.0f} {unit}"
            )
    return f"{value:.0f} B"


def speed(bytes_per_second: float) -> str:
    """Bytes a second: `0.8 GB/s`."""
    return f"{size(bytes_per_second)}/s"


def flops(per_second: float) -> str:
    """Floating-point operations a second: `68 GFLOP/s`."""
    unit, step = ("TFLOP/s", 1e12) if per_second >= 1e12 else ("GFLOP/s", 1e9)
    scaled = per_second / step
    return f"{scaled:.1f} {unit}" if scaled < 9.95 else f"{scaled:,.0f} {unit}"
