"""Published costs of a question: table 5 of the ViLAMP paper (arXiv 2504.02438).

Its column "FLOPs" counts, for ViLAMP, the multiply-adds of linear and convolution layers alone, of the vision tower, of
the projector over every patch and of the language model's prefill; `pipeline.bench.counted.question` reproduces it to
0.2 %. How its other columns were counted is not known, and no count here gives them.
"""

from __future__ import annotations

__all__ = ["TABLE_5"]

TABLE_5: dict[str, dict[int, float]] = {
    "vilamp": {64: 61.0, 256: 120.3, 1024: 356.8, 8192: 2565.2},
    "videochat_flash": {64: 29.6, 256: 113.3, 1024: 489.6, 8192: 13896.6},
}
"""Teraflops by the name of the profile and the number of frames."""
