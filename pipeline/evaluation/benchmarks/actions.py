"""Action recognition as a choice: the class of a clip among a few (ViLAMP, table 4).

Read are the test list of UCF-101 (`testlist01.txt` with `classInd.txt`), the validation rows of Something-Something V2,
the release file of ActivityNet, and a CSV with the columns video and label. The paper states neither the number of
options nor the wording: here the wrong options are drawn from the other classes with the seed of the run, `OPTIONS` in
all. Accuracies among a few options are not comparable with those among all classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from index.errors import UsageError
from pipeline.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Split,
    lettered,
    row_id,
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.rows import find_file, read_rows
from pipeline.evaluation.scoring.spans import Span

__all__ = ["OPTIONS", "Actions"]

OPTIONS = 4
"""Options of a question, the right one included."""

_FILES = (
    *("testlist01.txt", "**/testlist01.txt", "*validation.json", "validation.json", "activity_net*.json"),
    *("*.csv", "*.jsonl"),
)
_Labelled = tuple[str, str, Span | None]


class Actions(Benchmark):
    """Clips of one action each."""

    name = "actions"
    title = "Action recognition"
    groups = ("label",)
    prompt_id = "actions-letter-1"

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the clips and draw the wrong options with `seed`; see `Benchmark.read`."""
        path = find_file(data, _FILES)
        rows = _labelled(path)
        classes = sorted({label for _, label, _ in rows} | set(_class_list(path)))
        if len(classes) < 2:
            raise UsageError(f"{path}: has fewer than two classes")
        items = []
        for video, label, span in rows:
            name = row_id(video, label, span)
            rng = np.random.default_rng([seed, int(name, 16)])
            others = [each for each in classes if each != label]
            drawn = [others[i] for i in rng.permutation(len(others))[: OPTIONS - 1]]
            place = int(rng.integers(len(drawn) + 1))
            options = (*drawn[:place], label, *drawn[place:])
            items.append(
                Item(
                    id=name,
                    video=video,
                    question="Which action is shown in the video?",
                    options=options,
                    answer=place,
                    clip=span,
                    groups={"label": (label,)},
                )
            )
        return Split(unique_ids(items), [path])

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """Question, options, and the request for a letter; see `Benchmark.prompt`."""
        return f"{item.question}\n{lettered(options)}\nAnswer with the option's letter from the given choices directly."

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """Files of `videos`, `UCF-101`, `20bn-something-something-v2` or the folder itself; `v_` may precede a name."""
        folders = ("videos", "UCF-101", "20bn-something-something-v2", ".")
        return with_suffixes(data, folders, item.video) + with_suffixes(data, folders, f"v_{item.video}")


def _spoken(label: str) -> str:
    """A class name as words: `ApplyEyeMakeup` becomes `apply eye makeup`; brackets of templates are left out."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).replace("_", " ").replace("[", "").replace("]", "")
    return " ".join(words.split()).lower()


def _class_list(path: Path) -> list[str]:
    listed = path.parent / "classInd.txt"
    if path.name.startswith("testlist") and listed.is_file():
        return [_spoken(line.split()[-1]) for line in listed.read_text("utf-8-sig").splitlines() if line.strip()]
    return []


def _labelled(path: Path) -> list[_Labelled]:
    """Video, label and span of every clip."""
    if path.suffix == ".txt":
        lines = [line.split()[0] for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        return [(line, _spoken(line.split("/")[0]), None) for line in lines]
    if path.name.startswith("activity_net"):
        try:
            database = json.loads(path.read_text("utf-8-sig"))["database"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: cannot be read as a release of ActivityNet: {error}") from None
        return [
            (name, _spoken(note["label"]), (float(note["segment"][0]), float(note["segment"][1])))
            for name, video in database.items()
            if video.get("subset") == "validation"
            for note in video.get("annotations", [])
        ]
    rows = read_rows(path)
    if not rows or not ({"video", "label"} <= rows[0].keys() or {"id", "template"} <= rows[0].keys()):
        raise UsageError(f"{path}: must have the columns video and label, or id and template")
    return [
        (str(row.get("video") or row["id"]), _spoken(str(row.get("template") or row["label"])), None) for row in rows
    ]
