"""Accuracy of search: queries whose moments are known, on rendered footage or on labelled footage of the user.

    labels ─ find ─▶ moments ─ (verify) ─▶ precision and recall at k, average precision, IoU, abstention

A label is a query about one stream with the spans that show it. Without spans the query is about something that is not
there, and the right answer is nothing. A negated query ("no red dog") has the spans that show the thing: a moment in
one of them is wrong. With verification, moments that the language model rejects are left out, and a query abstains if
it has none left; without it, a query never abstains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import UsageError, validation_message
from index.records import parse_rfc3339
from model.world.scenes import COLOURS, KINDS
from pipeline.demo.render import truth as rendered_truth
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_mean
from pipeline.evaluation.scoring.retrieval import best_iou, precision_at, ranked_precision, recall_at_k, separation
from pipeline.evaluation.scoring.spans import Span
from pipeline.questions.asker import Asker
from pipeline.questions.search import FoundMoment, find
from pipeline.questions.verification import verify_moments

__all__ = ["AT", "Finding", "SearchLabel", "finding_table", "read_labels", "rendered_labels", "search_accuracy"]

AT = (1, 5, 10)
"""The k of precision and recall."""

_ABSENT_EACH = 12


class SearchLabel(BaseModel):
    """A query whose moments are known."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    query: str
    """The text."""
    stream: str
    """The stream that is searched."""
    spans: list[tuple[str, str]] = Field(default_factory=list)
    """Start and end of each time that shows it, RFC 3339; none if it is not there."""
    negated: bool = False
    """Whether the query asks for footage without the thing; `spans` show the thing."""


class Finding(BaseModel):
    """Accuracy of search, in shares, with intervals over streams."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    verified: bool
    """Whether moments were verified by the language model."""
    queries: dict[str, int]
    """Number of queries: `present`, `absent` and `negated`."""
    precision: dict[int, ClusteredShare]
    """Precision at k of the queries that have a truth."""
    recall: dict[int, ClusteredShare]
    """Recall at k of them."""
    average_precision: ClusteredShare
    """Average precision of them."""
    iou: ClusteredShare
    """Largest IoU of a moment with each true span, of them."""
    abstained: ClusteredShare
    """Queries for what is not there that returned nothing, which is right."""
    abstained_wrongly: ClusteredShare
    """Queries that have a truth and returned nothing."""
    negated: ClusteredShare
    """First moments of negated queries that do not show the thing."""
    separation: float | None
    """Chance that the best score of a query with a truth exceeds that of one without."""


def read_labels(path: Path) -> list[SearchLabel]:
    """The labels of a JSON Lines file. Raises UsageError, which names the line."""
    labels = []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--labels {path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label = SearchLabel.model_validate_json(line)
            spans = [(parse_rfc3339(start), parse_rfc3339(end)) for start, end in label.spans]
        except ValidationError as error:
            raise UsageError(f"--labels {path}, line {number}: {validation_message(error)}") from None
        except (UsageError, ValueError) as error:
            raise UsageError(f"--labels {path}, line {number}: {error}") from None
        if any(start > end for start, end in spans):
            raise UsageError(f"--labels {path}, line {number}: a span ends before it begins")
        labels.append(label)
    if not labels:
        raise UsageError(f"--labels {path}: has no query")
    return labels


def rendered_labels(seed: int, minutes: float, cameras: int) -> list[SearchLabel]:
    """Queries about the rendered footage of a seed: what is shown, what is not, and what is shown negated."""
    events: dict[tuple[str, str], list[tuple[str, str]]] = {}
    streams: set[str] = set()
    for event in rendered_truth(seed, minutes, cameras)["events"]:
        streams.add(event["stream_id"])
        key = event["stream_id"], f"{event['colour']} {event['actor']}"
        events.setdefault(key, []).append((event["start"], event["end"]))
    labels = [SearchLabel(query=thing, stream=stream, spans=spans) for (stream, thing), spans in events.items()]
    labels += [
        SearchLabel(query=f"no {thing}", stream=stream, spans=spans, negated=True)
        for (stream, thing), spans in events.items()
    ]
    rng = np.random.default_rng([seed, 77])
    for stream in sorted(streams):
        shown = {thing for name, thing in events if name == stream}
        absent = [f"{c} {k}" for c, k in product(COLOURS, KINDS) if f"{c} {k}" not in shown]
        drawn = rng.permutation(len(absent))[:_ABSENT_EACH]
        labels += [SearchLabel(query=absent[number], stream=stream) for number in sorted(drawn.tolist())]
    return labels


def search_accuracy(
    labels: Sequence[SearchLabel],
    asker: Asker,
    *,
    profile: str,
    verify: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Finding:
    """Search for every label and compare.

    Args:
        labels: the queries.
        asker: store and models; its language model is used only to verify.
        profile: name or path of the profile of `asker`.
        verify: leave out the moments that the language model rejects.
        on_progress: called with the queries done and those in all.

    Raises:
        UnknownStream: the store lacks a stream of the labels.
        StoreError, ModelError: the store or the models fail.
    """
    rows: list[tuple[SearchLabel, list[Span], list[Span], float]] = []
    for done, label in enumerate(labels):
        on_progress(done, len(labels))
        moments = _moments(label, asker, profile, verify=verify)
        truth = [(parse_rfc3339(a) / 1e6, parse_rfc3339(b) / 1e6) for a, b in label.spans]
        spans = [(parse_rfc3339(m.start) / 1e6, parse_rfc3339(m.end) / 1e6 + 1) for m in moments]
        rows.append((label, spans, truth, moments[0].score if moments else -1.0))
    on_progress(len(labels), len(labels))
    present = [row for row in rows if row[2] and not row[0].negated]
    absent = [row for row in rows if not row[2] and not row[0].negated]
    negated = [row for row in rows if row[0].negated]

    def mean(
        chosen: Sequence[tuple[SearchLabel, list[Span], list[Span], float]], values: list[float]
    ) -> ClusteredShare:
        """Mean of one value for each row, with streams as clusters."""
        return clustered_mean(values, [label.stream for label, *_ in chosen])

    return Finding(
        profile=asker.profile.name,
        verified=verify,
        queries={"present": len(present), "absent": len(absent), "negated": len(negated)},
        precision={k: mean(present, [precision_at(m, t, k) for _, m, t, _ in present]) for k in AT},
        recall={k: mean(present, [recall_at_k(m, t, k) for _, m, t, _ in present]) for k in AT},
        average_precision=mean(present, [ranked_precision(m, t) for _, m, t, _ in present]),
        iou=mean(present, [best_iou(m, t) for _, m, t, _ in present]),
        abstained=mean(absent, [float(not m) for _, m, _, _ in absent]),
        abstained_wrongly=mean(present, [float(not m) for _, m, _, _ in present]),
        negated=mean(negated, [1 - precision_at(m, t, 1) if m else 0.0 for _, m, t, _ in negated]),
        separation=separation([row[3] for row in present], [row[3] for row in absent]),
    )


def _moments(label: SearchLabel, asker: Asker, profile: str, *, verify: bool) -> list[FoundMoment]:
    """The first moments of a query, without those that are rejected."""
    found = find(
        label.query,
        store=asker.store,
        profile=profile,
        encoders=asker.encoders,
        top=max(AT),
        streams=[label.stream],
    ).moments
    if not verify:
        return found
    looks = verify_moments(asker, label.query, found, len(found))
    return [moment for moment, look in zip(found, looks, strict=True) if look.state != "rejected"]


def _cell(share: ClusteredShare) -> str:
    return f"{100 * share.share:.0f} ({100 * share.low:.0f}–{100 * share.high:.0f})" if share.total else "–"


def finding_table(results: Sequence[Finding]) -> str:
    """A table of Markdown with one column for each result: percent, and 95 % intervals over streams."""
    names = [f"{each.profile}{', verified' if each.verified else ''}" for each in results]
    rows: list[tuple[str, list[str]]] = []
    for k in AT:
        rows.append((f"precision at {k}", [_cell(each.precision[k]) for each in results]))
        rows.append((f"recall at {k}", [_cell(each.recall[k]) for each in results]))
    rows += [
        ("average precision", [_cell(each.average_precision) for each in results]),
        ("temporal IoU", [_cell(each.iou) for each in results]),
        ("nothing there: abstains", [_cell(each.abstained) for each in results]),
        ("something there: abstains", [_cell(each.abstained_wrongly) for each in results]),
        ("negated: first moment is right", [_cell(each.negated) for each in results]),
        ("separation", ["–" if each.separation is None else f"{100 * each.separation:.0f}" for each in results]),
    ]
    counts = "; ".join(f"{count} {name}" for name, count in results[0].queries.items()) if results else ""
    head = [
        f"Queries: {counts}. Percent (95 % interval).",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    return "\n".join([*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)]) + "\n"


def labels_text(labels: Sequence[SearchLabel]) -> str:
    """Labels as JSON Lines, to begin a file of one's own with."""
    return "".join(json.dumps(label.model_dump(), ensure_ascii=False) + "\n" for label in labels)


__all__ += ["labels_text"]
