"""What the commands `sightline eval needles …` call: footage and questions, then the run.

Loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from index.store import Store
from model.answerer import load_answerer
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.evaluation.needles.cases import Draw, draw_cases
from pipeline.evaluation.needles.rendered import RenderedFootage
from pipeline.evaluation.needles.splice import Streams
from pipeline.evaluation.needles.video import SETTINGS, Setting, VideoSummary, run_cases

__all__ = ["Progress", "rendered_video"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, what is done of it, and all of it."""


def rendered_video(
    work: Path,
    out: Path,
    *,
    profile: str,
    device: str | None = None,
    draw: Draw,
    settings: Sequence[Setting] = SETTINGS,
    each: int = 6,
    on_progress: Progress = lambda stage, done, total: None,
) -> VideoSummary:
    """Run VideoNIAH on rendered footage, which is rendered and ingested where `work` lacks it.

    Args:
        work: folder for the store; a later run with the same profile uses it again.
        out: folder of the run.
        profile: name of the profile, or the path of its TOML file.
        device: device of the models.
        draw: lengths, counts and seed, which is also that of the world.
        settings: what is asked of each case.
        each: needles of every kind of question.
        on_progress: see `Progress`.

    Raises:
        UsageError: a length is too short, or `out` holds another run.
    """
    loaded = load_profile(profile)
    footage = RenderedFootage(draw.seed, longest=max(draw.lengths), each=each)
    haystacks = {stream.name: stream.seconds for stream in footage.haystacks}
    cases = draw_cases(footage.needles, haystacks, draw, footage.allowed)
    encoders = load_encoders(loaded, device)
    store = Store.open_or_create(str(work / f"store-{loaded.name}"), encoders.pair)
    footage.ingest(store, encoders, work / "drawn", lambda done, total: on_progress("footage", done, total))
    answerer = load_answerer(loaded, encoders, device)
    return run_cases(
        cases,
        Streams(store),
        answerer,
        out,
        source=f"rendered footage of seed {draw.seed}",
        settings=settings,
        on_progress=lambda done, total: on_progress("questions", done, total),
    )
