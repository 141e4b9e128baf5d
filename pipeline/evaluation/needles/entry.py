"""What the commands `sightline eval needles …` call: footage and questions, then the run.

Loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from index.errors import UsageError
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from model.answerer import load_answerer
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.evaluation.benchmarks.rows import digest_of
from pipeline.evaluation.needles.cases import Draw, draw_cases
from pipeline.evaluation.needles.chains import (
    DEPTHS,
    PictureCase,
    PictureQuestion,
    at_depth,
    draw_chains,
    haystack_of,
    spread,
)
from pipeline.evaluation.needles.folder import FolderFootage, read_films, read_folder
from pipeline.evaluation.needles.picture_run import PictureSummary, run_pictures
from pipeline.evaluation.needles.pictures import (
    CaptionedPicture,
    Picture,
    caption_pixels,
    ingest_picture,
    read_pictures,
    rendered_pictures,
)
from pipeline.evaluation.needles.record import SETTINGS, Setting
from pipeline.evaluation.needles.released import are_chains, read_chains
from pipeline.evaluation.needles.rendered import RenderedFootage
from pipeline.evaluation.needles.splice import Streams
from pipeline.evaluation.needles.video import VideoSummary, run_cases

__all__ = ["Progress", "folder_video", "pictures", "rendered_video"]

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
    each: int = 12,
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


def folder_video(
    data: Path,
    rows: str,
    store: str,
    out: Path,
    *,
    profile: str,
    device: str | None = None,
    draw: Draw,
    settings: Sequence[Setting] = SETTINGS,
    limits: DecodeLimits | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> tuple[VideoSummary, FolderFootage]:
    """Run VideoNIAH on a folder of the user; see `read_folder` for the folder and `rendered_video` for the rest.

    Args:
        data: the folder.
        rows: `questions`, or the name of a benchmark.
        store: the store that its videos are ingested into.
        out: folder of the run.
        profile: name of the profile, or the path of its TOML file.
        device: device of the models.
        draw: lengths, counts and seed.
        settings: what is asked of each case.
        limits: of the decoder.
        on_progress: see `Progress`.

    Returns:
        The figures, and what the folder gave: needles, haystacks, and what could not be read.

    Raises:
        UsageError: the folder has too few needles or haystacks, or `out` holds another run.
    """
    loaded = load_profile(profile)
    encoders = load_encoders(loaded, device)
    opened = Store.open_or_create(store, encoders.pair)
    found = read_folder(data, rows, opened, encoders, limits, lambda done, total: on_progress("videos", done, total))
    cases = draw_cases(found.needles, found.haystacks, draw)
    summary = run_cases(
        cases,
        Streams(opened),
        load_answerer(loaded, encoders, device),
        out,
        source=found.source,
        settings=settings,
        on_progress=lambda done, total: on_progress("questions", done, total),
    )
    return summary, found


def pictures(
    kind: Literal["image", "chain"],
    store: str,
    work: Path,
    out: Path,
    *,
    profile: str,
    device: str | None = None,
    lengths: Sequence[int],
    count: int,
    seed: int,
    rows: Path | None = None,
    films: Path | None = None,
    settings: Sequence[Setting] = SETTINGS,
    limits: DecodeLimits | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> PictureSummary:
    """Hide pictures, or chains of pictures, in haystacks.

    Args:
        kind: `image` for single pictures at six depths, `chain` for chains with decoys.
        store: the store that footage and pictures are ingested into.
        work: folder for rendered footage that is not ingested yet.
        out: folder of the run.
        profile: name of the profile, or the path of its TOML file.
        device: device of the models.
        lengths: frames of the haystacks.
        count: largest number of pictures or chains; of each length, an image is asked at every depth.
        seed: seed of haystacks, chains and the rendered world.
        rows: file of captioned pictures, or of released chains; rendered ones if None.
        films: folder of videos that haystacks are made of; rendered ones if None.
        settings: what is asked of each case.
        limits: of the decoder.
        on_progress: see `Progress`.

    Raises:
        UsageError: rows or videos do not suffice, or `out` holds another run.
        PictureInvalid, SourceNotFound: a picture cannot be read.
    """
    loaded = load_profile(profile)
    shown = _hidden(kind, rows, count, seed)
    encoders = load_encoders(loaded, device)
    opened = Store.open_or_create(store, encoders.pair)
    footage = None
    if films is None:
        footage = RenderedFootage(seed, longest=max(lengths), each=0)
        footage.ingest(opened, encoders, work, lambda done, total: on_progress("footage", done, total))
        haystacks = {stream.name: stream.seconds for stream in footage.haystacks}
    else:
        haystacks = read_films(films, opened, encoders, limits, lambda done, total: on_progress("videos", done, total))
    streams, cases = dict[tuple[str, str], str](), list[PictureCase]()
    for number, (_, needles, _) in enumerate(shown, 1):
        for picture, text in needles:
            if (picture.id, text) not in streams:
                pixels = picture.pixels()
                streams[picture.id, text] = ingest_picture(
                    opened, encoders, caption_pixels(pixels, text) if text else pixels
                )
        on_progress("pictures", number, len(shown))
    for length in lengths:
        rng = np.random.default_rng([seed, length, 5])
        for name, needles, questions in shown:
            # Questions are about the picture without a text. What clues and decoys show may be in the haystack too:
            # there it carries no text that leads on.
            asked = [picture for picture, text in needles if not text]
            allowed = {
                stream: frames
                for stream, frames in haystacks.items()
                if footage is None or not any(p.stated is not None and footage.fits(p.stated, stream) for p in asked)
            }
            haystack = haystack_of(allowed, length, rng)
            names = [streams[picture.id, text] for picture, text in needles]
            for depth in DEPTHS if kind == "image" else [None]:
                places = spread(length, len(names)) if depth is None else [at_depth(length, depth)]
                cases.append(
                    PictureCase(
                        id=f"{length}-{name}" + ("" if depth is None else f"-{depth:.1f}"),
                        length=length,
                        depth=depth,
                        cluster=name,
                        haystack=haystack,
                        needles=tuple(zip(places, names, strict=True)),
                        questions=questions,
                    )
                )
    origin = "rendered pictures" if rows is None else f"pictures of {digest_of([rows])[:16]}"
    return run_pictures(
        cases,
        Streams(opened),
        load_answerer(loaded, encoders, device),
        out,
        kind=kind,
        source=f"{origin} in {'rendered footage' if films is None else 'videos of a folder'}",
        seed=seed,
        settings=settings,
        on_progress=lambda done, total: on_progress("cases", done, total),
    )


_Hidden = tuple[str, list[tuple[Picture, str]], tuple[PictureQuestion, ...]]
"""Id of a picture or chain, its pictures with the texts that are printed on them, and what is asked."""


def _hidden(kind: Literal["image", "chain"], rows: Path | None, count: int, seed: int) -> list[_Hidden]:
    """What is hidden in the haystacks: of `rows` if there are any, else rendered."""
    if rows is not None and are_chains(rows):
        if kind == "image":
            raise UsageError(f"--pictures {rows}: has chains of pictures; use `sightline eval needles chain`")
        return [
            (chain.id, [(picture, "") for picture in chain.pictures], chain.questions)
            for chain in read_chains(rows)[:count]
        ]
    needed = count if kind == "image" else max(30, 2 * count)
    listed = rendered_pictures(seed, needed) if rows is None else read_pictures(rows)
    if kind == "image":
        return [(picture.id, [(picture, "")], (_asked(picture),)) for picture in listed[:count]]
    by_id = {picture.id: picture for picture in listed}
    return [
        (chain.id, [(by_id[name], text) for name, text in chain.pictures], chain.questions)
        for chain in draw_chains(listed, count, seed)
    ]


def _asked(picture: CaptionedPicture) -> PictureQuestion:
    """The question about a single picture. Of a file it begins with the caption, as the released rows do."""
    head = f"Find the frame of {picture.caption}. " if picture.caption and picture.path is not None else ""
    return PictureQuestion(name="QA", text=head + picture.question, options=picture.options, answer=picture.answer)
