"""Published figures, to print beside measured ones. None of them was measured by this project.

Sources: ViLAMP (arXiv 2504.02438), tables 1, 3 and 4; VideoChat-Flash (arXiv 2501.00574) and the cards of its
checkpoints. Frames, prompts and subtitles of the rows differ, as the notes say.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published", "published"]

_VILAMP, _FLASH = "ViLAMP, table 1", "VideoChat-Flash"


@dataclass(frozen=True, slots=True)
class Published:
    """One published figure."""

    model: str
    """The model, and its frames."""
    figure: str
    """What is measured."""
    value: float
    """In percent."""
    source: str
    """Where it is printed."""
    note: str = ""
    """What must be equal before it is compared."""


def _rows(figure: str, source: str, rows: dict[str, float], note: str = "") -> tuple[Published, ...]:
    return tuple(Published(model, figure, value, source, note) for model, value in rows.items())


_COPIED = "copied there from the model's own paper, other frames and prompts"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "videomme": (
        *_rows("overall", _VILAMP, {"ViLAMP 7B, 1 FPS": 67.7}, "the released script caps frames at 600"),
        *_rows("overall, subtitles", _VILAMP, {"ViLAMP 7B, 1 FPS": 71.6}, "whole subtitle file"),
        *_rows("long", _VILAMP, {"ViLAMP 7B, 1 FPS": 58.4}),
        *_rows("long, subtitles", _VILAMP, {"ViLAMP 7B, 1 FPS": 65.2}, "whole subtitle file"),
        *_rows(
            "overall",
            _VILAMP,
            {
                "GPT-4o": 71.9,
                "Gemini 1.5 Pro": 75.0,
                "LLaVA-Video 7B, 1 FPS": 63.3,
                "LLaVA-OneVision 7B, 32": 58.2,
                "NVILA 7B, 256": 64.2,
                "InternVL2.5 8B, 64": 64.2,
                "Qwen2-VL 7B, 2 FPS": 63.3,
                "LongVA 7B, 128": 52.6,
            },
            _COPIED,
        ),
        *_rows("overall", _FLASH, {"VideoChat-Flash 7B@448, 512": 65.3, "VideoChat-Flash 2B@448, 512": 57.0}),
    ),
    "lvbench": (
        *_rows("overall", _VILAMP, {"ViLAMP 7B, 1 FPS": 46.3}),
        *_rows(
            "overall",
            _VILAMP,
            {"GPT-4o": 30.8, "Gemini 1.5 Pro": 33.1, "LLaMA-VID 7B": 23.9, "MovieChat 7B": 22.5},
            _COPIED,
        ),
    ),
    "egoschema": (
        *_rows("validation", _VILAMP, {"ViLAMP 7B, 1 FPS": 74.2}, "the 500 questions with public answers"),
        *_rows(
            "validation",
            _VILAMP,
            {
                "LLaVA-Video 7B, 1 FPS": 65.6,
                "LLaVA-OneVision 7B, 32": 60.1,
                "LongVILA 7B, 256": 67.7,
                "LongVU 7B, 1 FPS": 67.6,
            },
            _COPIED,
        ),
    ),
    "longvideobench": (
        *_rows("validation", _VILAMP, {"ViLAMP 7B, 1 FPS": 60.2}, "without subtitles"),
        *_rows(
            "validation",
            _VILAMP,
            {"GPT-4o": 66.7, "Gemini 1.5 Pro": 64.0, "LLaVA-Video 7B, 1 FPS": 58.2, "InternVL2.5 8B, 64": 60.0},
            _COPIED,
        ),
        *_rows("validation", _FLASH, {"VideoChat-Flash 7B@448, 512": 64.7}, "with subtitles"),
        *_rows("validation", _FLASH, {"VideoChat-Flash 2B@448, 512": 58.3}, "with subtitles"),
    ),
    "mlvu": (
        *_rows("dev", "ViLAMP, table 6", {"ViLAMP 7B": 72.6}, "M-Avg or plain mean is not stated"),
        *_rows("M-Avg, dev", _FLASH, {"VideoChat-Flash 7B@448, 512": 74.7}),
    ),
    "mvbench": _rows(
        "average",
        _FLASH,
        {"VideoChat-Flash 7B@448": 74.0, "VideoChat-Flash 7B@224": 73.2, "VideoChat-Flash 2B@448": 70.0},
    ),
    "charades": _rows(
        "mIoU",
        _FLASH,
        {
            "VideoChat-Flash 7B@448": 48.0,
            "VideoChat-Flash 7B@224": 48.4,
            "VideoChat-Flash 7B, no timestamp prompt": 44.2,
        },
    ),
    "qvhighlights": tuple(
        Published("ViLAMP DKS", f"Hit@{k}", value, "ViLAMP, table 3", "its truth, split and frame rate are not stated")
        for k, value in ((1, 26.1), (5, 47.3), (10, 60.0), (30, 83.2))
    ),
    "actions": tuple(
        Published("ViLAMP 7B", figure, value, "ViLAMP, table 4", "number of options and wording are not stated")
        for figure, value in (("ActivityNet mAP", 78.6), ("Something-Something V2", 86.9), ("UCF-101", 97.6))
    ),
}
"""Published figures by benchmark."""


def published(benchmark: str) -> tuple[Published, ...]:
    """The published figures of a benchmark; empty if there are none."""
    return PUBLISHED.get(benchmark, ())
