"""HTML report of a search: one file that opens without a network.

Pictures are data URIs, the timeline is inline SVG, there is no script, and the template escapes every text. It has the
look of the report of answers. Does not know where results come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from index.records import from_micros, parse_rfc3339
from index.search.scores import ScoredFrames
from pipeline.pages import data_uri, page
from pipeline.pictures.stored import FrameKey
from pipeline.pictures.timeline import Mark, clock, timeline

if TYPE_CHECKING:
    from pipeline.questions.search import FoundMoment

__all__ = ["search_report"]

MAX_LANES = 12
"""The largest number of streams on the timeline of a search."""
_LOOKS = {"confirmed": "confirmed", "rejected": "rejected", "not_looked": "not looked at"}


def search_report(
    moments: Sequence[FoundMoment],
    pictures: Mapping[FrameKey, bytes],
    *,
    title: str,
    subtitle: str = "",
    wanted: Sequence[tuple[str, bytes]] = (),
    scored: Sequence[ScoredFrames] = (),
    facts: Sequence[tuple[str, str]] = (),
    notices: Sequence[str] = (),
    zone: ZoneInfo | None = None,
) -> str:
    """The report of a search as one HTML text.

    Args:
        moments: what was found, the best first.
        pictures: pictures of the best frames; a moment without one says so.
        title: title of the report.
        subtitle: a sentence below it.
        wanted: captions and JPEGs of the pictures that were searched for.
        scored: the frames that were searched; the streams of the best moments are on the timeline.
        facts: names and values for the head of the report.
        notices: remarks that limit the trust in the result.
        zone: zone of a second time of each moment; UTC is always shown.
    """
    streams = list(dict.fromkeys(moment.stream_id for moment in moments))[:MAX_LANES]
    lanes = [each for each in scored if len(each) and each.stream_id in streams]
    marks = [Mark(moment.stream_id, parse_rfc3339(moment.best)) for moment in moments]
    return page(
        "moments.html.j2",
        title=title,
        subtitle=subtitle,
        facts=facts,
        wanted=[{"caption": caption, "src": data_uri(jpeg)} for caption, jpeg in wanted],
        drawn=timeline(lanes, marks) if lanes else None,
        moments=[_view(number, moment, pictures, zone) for number, moment in enumerate(moments, 1)],
        notices=notices,
    )


def _view(
    number: int, moment: FoundMoment, pictures: Mapping[FrameKey, bytes], zone: ZoneInfo | None
) -> dict[str, Any]:
    """The values of a moment for the template."""
    best = parse_rfc3339(moment.best)
    jpeg = pictures.get((moment.stream_id, best))
    start = parse_rfc3339(moment.start)
    seconds = (parse_rfc3339(moment.end) - start) / 1e6
    look = moment.verification
    return {
        "number": number,
        "stream": moment.stream_id,
        "best": moment.best,
        "local": "" if zone is None else f"{from_micros(best).astimezone(zone):%Y-%m-%d %H:%M:%S} {zone.key}",
        "span": f"{clock(start)} to {clock(start + round(seconds * 1e6))} UTC, {seconds + 1:.0f} s" if seconds else "",
        "score": f"{moment.score:.3f}",
        "meaning": moment.meaning,
        "src": None if jpeg is None else data_uri(jpeg),
        "state": "" if look is None else look.state,
        "look": "" if look is None else _LOOKS[look.state],
        "why": "" if look is None else (look.why if look.state == "not_looked" else f"{look.probability:.0%} yes"),
    }
