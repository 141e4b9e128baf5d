"""Pictures as needles: a still of four seconds, which is one clip, ingested once as a stream of its own.

A clue carries a text in a translucent band at its lower edge. Pictures come from the user's captioned files or from the
rendered world. Does not know haystacks or questions' places.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from index.errors import UsageError
from index.records import to_micros
from index.store import Store
from ingest.file_ingest import ingest_sources
from ingest.video_writer import VideoWriter
from model.encoders.encoder import Encoders
from model.world.drawing import draw
from model.world.questions import Constraint, QuestionMaker
from model.world.scenes import COLOURS, COUNTS, PLACES, PLURALS, Event, make_camera, make_clip, rng_of
from pipeline.evaluation.benchmarks.rows import answer_index, options_in_text, read_rows, strip_options
from pipeline.evaluation.needles.cases import CLIP
from pipeline.evaluation.needles.rendered import BEGAN, anchor
from pipeline.pictures.uploaded import read_picture

__all__ = ["CaptionedPicture", "Picture", "caption_pixels", "ingest_picture", "read_pictures", "rendered_pictures"]

_FIND = "Find the frame of "


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture, of a file or rendered."""

    id: str
    """Unique among the pictures."""
    path: Path | None = None
    """The file; None for a rendered picture."""
    event: Event | None = None
    """What a rendered picture shows."""
    seed: int = 0
    """Seed of the camera of a rendered picture."""
    stated: Constraint | None = None
    """What the question of a rendered picture states; nobody in its haystack may fit it."""

    def pixels(self) -> NDArray[np.uint8]:
        """The picture, RGB uint8[H, W, 3] with even sides. Raises PictureInvalid or SourceNotFound for a file."""
        if self.path is not None:
            picture = read_picture(self.path)
            return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        events = [] if self.event is None else [self.event]
        middle = (self.event.start + self.event.end) / 2 if self.event is not None else 0.0
        return draw(make_camera(self.seed), events, middle, "", 0)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedPicture(Picture):
    """A picture with a caption and a question."""

    caption: str
    """What it shows, without a full stop; empty if there is none."""
    question: str
    """The question about it."""
    options: tuple[str, ...]
    """Options without labels."""
    answer: int
    """Index of the right option."""


def read_pictures(path: Path) -> list[CaptionedPicture]:
    """The captioned pictures of a file of rows {image, question, answer} and, if there are, {caption, options, id}.

    Options may be the last lines of the question, as released rows have them; `Find the frame of CAPTION.` before the
    question is its caption, where there is no other. A few released captions have no full stop: the caption is then
    not known, and the question keeps it. Images are relative to the file.

    Raises:
        UsageError: the file cannot be read, or a row cannot be asked; the message names the row.
    """
    found = []
    for number, row in enumerate(read_rows(path)):
        name = str(row.get("id", number))
        question, options = released_question(str(row.get("question", "")))
        listed = row.get("options")
        options = strip_options(listed.split("|") if isinstance(listed, str) else listed) or options
        caption = str(row.get("caption") or "").strip().rstrip(".")
        head, _, tail = question.partition(". ")
        if head.startswith(_FIND) and tail:
            caption, question = caption or head.removeprefix(_FIND), tail.strip()
        found.append(
            CaptionedPicture(
                id=name,
                caption=caption,
                question=question,
                options=options,
                answer=checked_answer(row.get("answer"), question, options, f"{path}: row {name}"),
                path=path.parent / str(row.get("image", "")),
            )
        )
    return found


def released_question(text: str) -> tuple[str, tuple[str, ...]]:
    """A released question without its options and the sentence that asks for the letter, and the options.

    The options are lines that begin with `(A)` to `(D)`; the first one may follow `Options:`.
    """
    lines = [line.removeprefix("Options:").strip() for line in text.splitlines()]
    return options_in_text(
        "\n".join(line for line in lines if line and not line.startswith("Only give the best option"))
    )


def checked_answer(answer: object, question: str, options: Sequence[str], where: str) -> int:
    """The index of the right option. Raises UsageError, which begins with `where`, if the row cannot be asked."""
    try:
        index = answer_index(answer, options)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    if index is None or len(options) < 2 or not question:
        raise UsageError(f"{where}: needs a question, two options and an answer")
    return index


def rendered_pictures(seed: int, count: int) -> list[CaptionedPicture]:
    """`count` rendered pictures of one event each, with different captions and questions, by turns of four kinds.

    About a third of the questions of a kind have the same answer at most: nearly all events are of one participant, so
    that "one" would be right for most of the questions "how many".
    """
    found: dict[str, CaptionedPicture] = {}
    kinds = ("what", "colour", "where", "how many")
    answers = {kind: Counter[str]() for kind in kinds}
    number = 0
    while len(found) < count:
        rng, number = rng_of("picture", seed, number), number + 1
        clip = make_clip(rng, 0.0)
        event = clip.events[0]
        if len(event.actors) > 1:
            continue
        alone = type(clip)(clip.start, clip.end, (event,))
        kind = kinds[len(found) % len(kinds)]
        question = QuestionMaker([alone], BEGAN).make(kind, rng, count=event.count)
        caption = _caption(event)
        if question is None or caption in found:
            continue
        if answers[kind][question.answer] > answers[kind].total() // 3:
            continue
        answers[kind][question.answer] += 1
        found[caption] = CaptionedPicture(
            id=f"{seed}-{len(found):03}",
            caption=caption,
            question=question.text,
            options=question.options,
            answer=question.options.index(question.answer),
            event=event,
            seed=3_000_000_000 + seed * 10_000 + number,
            stated=anchor(question),
        )
    return list(found.values())


def _caption(event: Event) -> str:
    actor, place = event.actors[0], PLACES[event.place]
    if event.count > 1:
        return f"{COUNTS[event.count - 1]} {COLOURS[actor.colour]} {PLURALS[actor.kind]} at the {place}"
    return f"a {actor.name} at the {place}"


def caption_pixels(pixels: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A picture with a text in a translucent dark band at its lower edge, of the same shape."""
    image = Image.fromarray(pixels).convert("RGBA")
    font = ImageFont.load_default(max(11, image.height // 17))
    lines = _wrapped(text, font, image.width - 12)
    high = round(font.size * 1.3) if isinstance(font, ImageFont.FreeTypeFont) else 14
    band = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(band)
    top = image.height - high * len(lines) - 8
    pen.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 150))
    for number, line in enumerate(lines):
        pen.text((6, top + 4 + number * high), line, fill=(255, 255, 255, 255), font=font)
    return np.asarray(Image.alpha_composite(image, band).convert("RGB"))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def ingest_picture(store: Store, encoders: Encoders, pixels: NDArray[np.uint8]) -> str:
    """The stream of a picture, four equal frames, which is ingested if the store lacks it.

    The name is that of the pixels' digest, so equal pictures are encoded once.
    """
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    stream = f"picture-{digest[:20]}"
    if any(segment.final for segment in store.segments(stream)):
        return stream
    height, width = pixels.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.mp4"
        with VideoWriter(path, width, height, fps=1, gop=1, created=BEGAN) as writer:
            for _ in range(CLIP):
                writer.write(pixels)
        ingest_sources([path], store=store, encoders=encoders, stream=stream, start=to_micros(BEGAN))
    return stream


__all__ += ["checked_answer", "released_question"]
