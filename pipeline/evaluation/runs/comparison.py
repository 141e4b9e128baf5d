"""Two runs over the same questions, compared question by question."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from pipeline.evaluation.runs.record import RunFolder
from pipeline.evaluation.runs.summary import judged, percent
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_mean
from pipeline.evaluation.scoring.pairs import McNemar, mcnemar

__all__ = ["Comparison", "GroupPair", "compare_runs", "comparison_text"]


class GroupPair(BaseModel):
    """Two runs over the questions of one group."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    first: ClusteredShare
    """Mean score of the first run."""
    second: ClusteredShare
    """Mean score of the second run."""


class Comparison(BaseModel):
    """Two runs over the questions that both have."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    benchmark: str
    """Name of the benchmark."""
    questions: int
    """Questions that both runs have asked."""
    differences: list[str]
    """Settings that differ, as `FIELD: first, not second`."""
    first: ClusteredShare
    """Mean score of the first run over these questions."""
    second: ClusteredShare
    """Mean score of the second run over them."""
    test: McNemar
    """McNemar's test; a score of at least one half counts as right."""
    groups: dict[str, dict[str, GroupPair]]
    """Both runs by group: `groups[field][value]`."""
    changed: list[str]
    """Ids of the questions that only one of the runs answers right."""


def compare_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """Compare two runs.

    Raises:
        UsageError: they are of different benchmarks or annotation files, or share no question.
    """
    one, other = first.head(), second.head()
    for name in ("benchmark", "split", "annotations"):
        if getattr(one, name) != getattr(other, name):
            raise UsageError(f"{first.path} and {second.path} differ in {name}: their questions are not the same")
    theirs = {item.id: line for item, line in judged(second) if line is not None}
    pairs = [(item, line, theirs[item.id]) for item, line in judged(first) if line is not None and item.id in theirs]
    if not pairs:
        raise UsageError(f"{first.path} and {second.path} have no question in common")
    videos = [item.video for item, _, _ in pairs]
    mine, others = [a.value for _, a, _ in pairs], [b.value for _, _, b in pairs]
    fields = {
        name: sorted({v for item, _, _ in pairs for v in item.groups.get(name, ())}) for name in pairs[0][0].groups
    }

    def pair(name: str, value: str) -> GroupPair:
        """The questions of one group."""
        rows = [n for n, (item, _, _) in enumerate(pairs) if value in item.groups.get(name, ())]
        clusters = [videos[n] for n in rows]
        return GroupPair(
            first=clustered_mean([mine[n] for n in rows], clusters),
            second=clustered_mean([others[n] for n in rows], clusters),
        )

    right = [(a >= 0.5, b >= 0.5) for a, b in zip(mine, others, strict=True)]
    return Comparison(
        benchmark=one.benchmark,
        questions=len(pairs),
        differences=sorted(one.differences(other)),
        first=clustered_mean(mine, videos),
        second=clustered_mean(others, videos),
        test=mcnemar([a for a, _ in right], [b for _, b in right], videos),
        groups={name: {value: pair(name, value) for value in values} for name, values in fields.items()},
        changed=[item.id for (item, _, _), (a, b) in zip(pairs, right, strict=True) if a != b],
    )


def comparison_text(result: Comparison) -> str:
    """The comparison for a terminal."""
    test = result.test
    lines = [
        f"{result.benchmark}: {result.questions} questions that both runs have",
        f"  first   {percent(result.first)}",
        f"  second  {percent(result.second)}, {100 * (result.second.share - result.first.share):+.1f} points",
        f"  both right {test.both}, only the first {test.only_first}, only the second {test.only_second}, "
        f"neither {test.neither}",
        f"  McNemar p = {test.p:.3g}; clustered by video p = {test.p_clustered:.3g}",
    ]
    return "\n".join([*lines, *(f"  differs in {each}" for each in result.differences)])
