"""The figures of a run. The denominator is every question of the run: what has no answer counts as wrong.

Intervals are Wilson's at 95 %, clustered by video. Accuracy is that of the first rotation, in which options have the
order of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from pipeline.evaluation.benchmarks.benchmark import Item, Scored
from pipeline.evaluation.benchmarks.registry import benchmark
from pipeline.evaluation.runs.record import AnswerLine, RunFolder, RunHead
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_mean
from pipeline.evaluation.scoring.positions import Position, Rotations, position_table, rotation_spread

__all__ = ["Figure", "Summary", "judged", "percent", "rows_note", "summarize", "summary_text"]

_LENGTHS = ((60, "under 1 min"), (180, "1 to 3 min"), (900, "3 to 15 min"), (3600, "15 to 60 min"))
_OVER = "over 60 min"
_DEPTHS = 5


class Figure(BaseModel):
    """One figure beside the accuracy."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """Its name."""
    value: float
    """Its value, in percent."""
    note: str = ""
    """How it is computed."""


class Summary(BaseModel):
    """The figures of a run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    head: RunHead
    """What the run was."""
    states: dict[str, int]
    """Questions by what became of them; `not asked` are those that the run has not reached."""
    hidden: bool
    """Whether the right answers are not public, so that there is no accuracy."""
    accuracy: ClusteredShare
    """Mean score over all questions: the share of right answers, or the mean IoU."""
    common: ClusteredShare
    """The same over the questions whose video was read, for comparison with others who lack the same videos."""
    groups: dict[str, dict[str, ClusteredShare]]
    """Mean score for each value of each field."""
    by_length: dict[str, ClusteredShare]
    """Mean score by the length of the video, of the questions whose video was read."""
    by_depth: dict[str, ClusteredShare]
    """Mean score by the place of the evidence in the video, where it is known."""
    figures: list[Figure]
    """The benchmark's own figures."""
    evidence: ClusteredShare | None
    """Questions whose keyframes include the evidence, of those whose evidence is known."""
    positions: list[Position]
    """Position bias, of the answers in the order of the rows."""
    rotations: Rotations | None
    """Dependence on the order of the options."""
    chance: float | None
    """Mean share that guessing gets right; None unless the benchmark is a choice."""
    missing: list[str]
    """Videos that were not found."""
    mean_frames: float
    """Mean number of frames that the model read."""
    mean_tokens: float
    """Mean number of visual tokens."""
    mean_seconds: float
    """Mean time of an answer."""
    problems: dict[str, int] = Field(default_factory=dict)
    """The most frequent problems."""


def judged(folder: RunFolder) -> list[tuple[Item, AnswerLine | None]]:
    """Every question of a run with its answer in the order of the row; None where it was not asked."""
    answers = folder.answers()
    return [(item, answers.get((item.id, 0))) for item in folder.items()]


def summarize(folder: RunFolder) -> Summary:
    """The figures of a run, complete or not. Raises UsageError if the folder has none."""
    head, pairs = folder.head(), judged(folder)
    bench = benchmark(head.benchmark)
    values = [_value(line) for _, line in pairs]
    videos = [item.video for item, _ in pairs]

    def mean(keep: Callable[[int], bool]) -> ClusteredShare:
        """Mean score of some questions."""
        rows = [number for number in range(len(pairs)) if keep(number)]
        return clustered_mean([values[n] for n in rows], [videos[n] for n in rows])

    fields = {name: sorted({v for item, _ in pairs for v in item.groups.get(name, ())}) for name in bench.groups}
    groups = {
        name: {value: mean(_in_group(pairs, name, value)) for value in listed}
        for name, listed in fields.items()
        if listed
    }
    lines = [line for _, line in pairs if line is not None]
    read = [line for line in lines if line.state in ("answered", "unparsed")]
    lengths = [None if line is None or not line.window_frames else _length(line.window_frames) for _, line in pairs]
    depths = [None if line is None or line.depth is None else _depth(line.depth) for _, line in pairs]
    known = [
        (line.evidence_hit, item.video) for item, line in pairs if line is not None and line.evidence_hit is not None
    ]
    scored = [Scored(item, values[n], {} if line is None else line.detail) for n, (item, line) in enumerate(pairs)]
    choice = bench.task == "choice"
    hidden = choice and bool(pairs) and all(item.answer is None for item, _ in pairs)
    return Summary(
        head=head,
        states=dict(Counter("not asked" if line is None else line.state for _, line in pairs)),
        hidden=hidden,
        accuracy=mean(lambda n: True),
        common=mean(lambda n: (line := pairs[n][1]) is not None and line.state in ("answered", "unparsed", "refused")),
        groups=groups,
        by_length={name: mean(_equal(lengths, name)) for name in _order(lengths, _length_names())},
        by_depth={name: mean(_equal(depths, name)) for name in _order(depths, _depth_names())},
        figures=[Figure(name=each.name, value=each.value, note=each.note) for each in bench.metrics(scored)],
        evidence=clustered_mean([float(hit) for hit, _ in known], [video for _, video in known]) if known else None,
        positions=_positions(pairs) if choice and not hidden else [],
        rotations=rotation_spread((a.id, a.rotation, a.value == 1) for a in folder.answers().values())
        if choice
        else None,
        chance=_chance([item for item, _ in pairs]) if choice else None,
        missing=sorted({item.video for item, line in pairs if line is not None and line.state == "missing"}),
        mean_frames=_mean([line.frames for line in read]),
        mean_tokens=_mean([line.visual_tokens for line in read]),
        mean_seconds=_mean([line.timings_seconds.get("total", sum(line.timings_seconds.values())) for line in read]),
        problems=dict(Counter(line.problem for line in lines if line.problem).most_common(10)),
    )


def _in_group(pairs: Sequence[tuple[Item, AnswerLine | None]], name: str, value: str) -> Callable[[int], bool]:
    return lambda number: value in pairs[number][0].groups.get(name, ())


def _equal(names: Sequence[str | None], name: str) -> Callable[[int], bool]:
    return lambda number: names[number] == name


def _value(line: AnswerLine | None) -> float:
    return line.value if line is not None and line.state == "answered" else 0.0


def _positions(pairs: Sequence[tuple[Item, AnswerLine | None]]) -> list[Position]:
    return position_table(
        (item.answer, line.shown, len(item.options))
        for item, line in pairs
        if item.answer is not None and line is not None and line.state in ("answered", "unparsed")
    )


def _chance(items: Sequence[Item]) -> float:
    return _mean([1 / len(item.options) if item.options else 0.0 for item in items])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _length(seconds: int) -> str:
    return next((name for limit, name in _LENGTHS if seconds < limit), _OVER)


def _length_names() -> list[str]:
    return [*(name for _, name in _LENGTHS), _OVER]


def _depth(share: float) -> str:
    return _depth_names()[min(_DEPTHS - 1, int(share * _DEPTHS))]


def _depth_names() -> list[str]:
    step = 100 // _DEPTHS
    return [f"{step * i} to {step * (i + 1)} %" for i in range(_DEPTHS)]


def _order(found: Sequence[str | None], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in found]


def percent(share: ClusteredShare) -> str:
    """A share with its interval, in percent; a dash where nothing was counted."""
    return f"{100 * share.share:.1f} ({100 * share.low:.1f}–{100 * share.high:.1f})" if share.total else "–"


def rows_note(head: RunHead) -> str | None:
    """What to say of an annotation file whose number of rows is not that of the published split; None if it is."""
    bench = benchmark(head.benchmark)
    published = bench.sizes.get(head.split)
    if published is None or published == head.rows:
        return None
    return f"the annotation file has {head.rows:,} rows, {bench.title} {head.split} as published has {published:,}"


def summary_text(summary: Summary) -> str:
    """The summary for a terminal."""
    head, bench = summary.head, benchmark(summary.head.benchmark)
    name = "accuracy" if bench.task == "choice" else "mean IoU" if bench.task == "grounding" else "MR-R1@0.5"
    whole = "" if head.questions == head.rows else f" of the {head.rows} of the split"
    lines = [f"{bench.title} {head.split}, {head.profile}: {head.questions} questions{whole}"]
    lines.append("  " + ", ".join(f"{count} {state}" for state, count in summary.states.items()))
    if (note := rows_note(head)) is not None:
        lines.append(f"  {note}")
    if summary.hidden:
        lines.append("  the right answers are not public; export them as a submission")
    else:
        lines.append(f"  {name} {percent(summary.accuracy)}, over {summary.accuracy.clusters} videos")
        lines += [f"  {each.name} {each.value:.1f}" for each in summary.figures]
    if summary.chance is not None:
        lines.append(f"  chance {100 * summary.chance:.1f}")
    if summary.evidence is not None:
        lines.append(f"  keyframes show the evidence {percent(summary.evidence)}")
    if summary.rotations is not None:
        lines.append(f"  spread over rotations {100 * summary.rotations.spread:.1f} points")
    return "\n".join(lines)
