"""Drawing of a rendered camera's picture at any second: places, sprites, light, noise, clock overlay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.world.scenes import (
    COLOURS,
    EVENTS,
    HEIGHT,
    KINDS,
    PLACES,
    SLOTS,
    WALK_SECONDS,
    WIDTH,
    Event,
    SceneCamera,
    rng_of,
)

RGB: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "orange": (250, 130, 10),
    "yellow": (245, 230, 40),
    "green": (35, 165, 50),
    "cyan": (40, 215, 225),
    "blue": (35, 60, 225),
    "purple": (165, 40, 190),
    "white": (250, 250, 250),
}
_DARK = (25, 25, 30, 255)
_SCALE = 4  # supersampling of sprites


def _draw_kind(kind: str, colour: tuple[int, int, int]) -> Image.Image:
    """One actor on a transparent square of 64 × 64 pixels, drawn four times larger."""
    n = 64 * _SCALE
    image = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    d = ImageDraw.Draw(image)
    c = (*colour, 255)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (x0 * _SCALE, y0 * _SCALE, x1 * _SCALE, y1 * _SCALE)

    def points(*xy: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * _SCALE, y * _SCALE) for x, y in xy]

    w = 2 * _SCALE
    if kind == "person":
        d.ellipse(box(25, 2, 39, 16), fill=(235, 190, 150, 255), outline=_DARK, width=w)
        d.rounded_rectangle(box(21, 16, 43, 42), 5 * _SCALE, fill=c, outline=_DARK, width=w)
        d.rectangle(box(23, 42, 30, 62), fill=_DARK)
        d.rectangle(box(34, 42, 41, 62), fill=_DARK)
    elif kind == "dog":
        d.rounded_rectangle(box(12, 28, 46, 44), 6 * _SCALE, fill=c, outline=_DARK, width=w)
        d.ellipse(box(40, 16, 60, 34), fill=c, outline=_DARK, width=w)
        d.polygon(points((42, 18), (40, 6), (49, 15)), fill=_DARK)
        d.line(points((13, 30), (3, 14)), fill=c, width=5 * _SCALE)
        for x in (15, 23, 34, 41):
            d.rectangle(box(x, 44, x + 4, 60), fill=c, outline=_DARK, width=_SCALE)
    elif kind == "car":
        d.polygon(points((14, 34), (22, 20), (43, 20), (51, 34)), fill=(150, 190, 210, 255), outline=_DARK, width=w)
        d.rounded_rectangle(box(2, 32, 62, 50), 6 * _SCALE, fill=c, outline=_DARK, width=w)
        for x in (9, 41):
            d.ellipse(box(x, 42, x + 15, 57), fill=_DARK)
    elif kind == "truck":
        d.rectangle(box(2, 6, 42, 48), fill=c, outline=_DARK, width=w)
        d.rectangle(box(43, 22, 62, 48), fill=(90, 90, 95, 255), outline=_DARK, width=w)
        for x in (6, 24, 46):
            d.ellipse(box(x, 44, x + 15, 59), fill=_DARK)
    elif kind == "bicycle":
        for x in (2, 36):
            d.ellipse(box(x, 30, x + 26, 56), outline=c, width=5 * _SCALE)
        d.line(points((15, 43), (28, 20), (46, 22), (49, 43)), fill=c, width=5 * _SCALE)
        d.line(points((15, 43), (32, 43), (46, 22)), fill=c, width=4 * _SCALE)
        d.line(points((40, 14), (52, 14)), fill=_DARK, width=4 * _SCALE)
    elif kind == "bird":
        d.polygon(points((32, 34), (2, 8), (10, 34)), fill=c, outline=_DARK, width=w)
        d.polygon(points((32, 34), (62, 8), (54, 34)), fill=c, outline=_DARK, width=w)
        d.ellipse(box(25, 24, 39, 54), fill=c, outline=_DARK, width=w)
        d.polygon(points((28, 24), (36, 24), (32, 12)), fill=(240, 170, 30, 255))
    elif kind == "umbrella":
        d.pieslice(box(2, 4, 62, 64), 180, 360, fill=c, outline=_DARK, width=w)
        d.line(points((32, 34), (32, 58)), fill=_DARK, width=4 * _SCALE)
        d.arc(box(32, 50, 44, 62), 0, 180, fill=_DARK, width=4 * _SCALE)
    else:
        d.ellipse(box(16, 1, 48, 39), fill=c, outline=_DARK, width=w)
        d.polygon(points((28, 43), (36, 43), (32, 38)), fill=c)
        d.line(points((32, 43), (29, 52), (34, 63)), fill=_DARK, width=2 * _SCALE)
    return image


@lru_cache(maxsize=4096)
def sprite(kind: int, colour: int, size: int, fallen: bool, mirrored: bool) -> NDArray[np.float32]:
    """One actor, float32[size, size, 4]: premultiplied RGB in grey levels, alpha in 0…1. `kind` and `colour` are
    indices."""
    image = _draw_kind(KINDS[kind], RGB[COLOURS[colour]])
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if fallen:
        image = image.transpose(Image.Transpose.ROTATE_90)
    return _premultiplied(image.resize((size, size), Image.Resampling.LANCZOS))


def _premultiplied(image: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(image, np.float32).copy()
    pixels[..., 3] /= 255.0
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


@lru_cache(maxsize=64)
def _effect(name: str, size: int, step: int) -> NDArray[np.float32]:
    """Flames, the halo of a light, or a box, float32[size, size, 4]; `step` is the phase of the animation."""
    image = Image.new("RGBA", (size * 2, size * 2), (0, 0, 0, 0))
    d = ImageDraw.Draw(image)
    s = size * 2
    if name == "burn":
        rng = rng_of("flame", step)
        for i, colour in enumerate(((255, 90, 0, 235), (255, 190, 20, 240), (255, 250, 150, 240))):
            r = s * (0.34 - 0.09 * i)
            for _ in range(5):
                x = s / 2 + rng.uniform(-0.28, 0.28) * s * (1 - 0.25 * i)
                y = s * 0.36 + rng.uniform(-0.1, 0.1) * s
                d.polygon(
                    [(x - r * 0.4, y + r), (x + r * 0.4, y + r), (x + rng.uniform(-6, 6), y - r * 0.9)], fill=colour
                )
    elif name == "flash":
        for r, alpha in ((0.5, 60), (0.42, 110), (0.33, 170)):
            d.ellipse((s * (0.5 - r), s * (0.5 - r), s * (0.5 + r), s * (0.5 + r)), fill=(255, 255, 200, alpha))
        for k in range(8):
            a = np.pi * k / 4 + step * 0.4
            d.line(
                (s / 2, s / 2, s / 2 + np.cos(a) * s / 2, s / 2 + np.sin(a) * s / 2),
                fill=(255, 255, 160, 255),
                width=s // 22,
            )
    else:
        d.rectangle(
            (s * 0.1, s * 0.25, s * 0.9, s * 0.9), fill=(130, 85, 40, 255), outline=(40, 25, 10, 255), width=s // 20
        )
        d.line((s * 0.1, s * 0.55, s * 0.9, s * 0.55), fill=(225, 200, 130, 255), width=s // 9)
        d.line((s * 0.5, s * 0.25, s * 0.5, s * 0.9), fill=(225, 200, 130, 255), width=s // 9)
    return _premultiplied(image.resize((size, size), Image.Resampling.LANCZOS))


def _blend(canvas: NDArray[np.float32], picture: NDArray[np.float32], cx: float, cy: float) -> None:
    h, w = picture.shape[:2]
    x0, y0 = round(cx - w / 2), round(cy - h / 2)
    left, top = max(0, -x0), max(0, -y0)
    right, bottom = min(w, WIDTH - x0), min(h, HEIGHT - y0)
    if left >= right or top >= bottom:
        return
    part = picture[top:bottom, left:right]
    target = canvas[y0 + top : y0 + bottom, x0 + left : x0 + right]
    target *= 1.0 - part[..., 3:]
    target += part[..., :3]


def _draw_place(d: ImageDraw.ImageDraw, place: str, cx: int, cy: int) -> None:
    x, y = cx, cy - 8
    if place == "gate":
        for i in range(-40, 41, 10):
            d.line((x + i, y - 38, x + i, y + 34), fill=(45, 45, 50), width=3)
        d.line((x - 44, y - 28, x + 44, y - 28), fill=(45, 45, 50), width=4)
        d.line((x - 44, y + 24, x + 44, y + 24), fill=(45, 45, 50), width=4)
    elif place == "door":
        d.rectangle((x - 44, y - 42, x + 44, y + 36), fill=(150, 118, 98))
        d.rectangle((x - 17, y - 26, x + 17, y + 36), fill=(72, 44, 26), outline=(30, 20, 12), width=3)
        d.ellipse((x + 8, y + 4, x + 13, y + 9), fill=(220, 200, 90))
    elif place == "bench":
        for i in (-6, 4, 18):
            d.rectangle((x - 42, y + i, x + 42, y + i + 6), fill=(120, 82, 45))
        for i in (-36, 30):
            d.rectangle((x + i, y - 6, x + i + 6, y + 38), fill=(60, 42, 25))
    elif place == "fountain":
        d.ellipse((x - 44, y + 6, x + 44, y + 40), fill=(120, 125, 130))
        d.ellipse((x - 36, y + 10, x + 36, y + 34), fill=(95, 135, 160))
        for i in (-18, 0, 18):
            d.arc((x - 20 + i, y - 34, x + 20 + i, y + 46), 200, 340, fill=(190, 210, 225), width=3)
    elif place == "tree":
        d.rectangle((x - 6, y + 2, x + 6, y + 40), fill=(80, 55, 32))
        for dx, dy in ((-22, -8), (22, -8), (0, -24), (0, 0)):
            d.ellipse((x + dx - 22, y + dy - 18, x + dx + 22, y + dy + 18), fill=(48, 88, 42))
    else:
        d.polygon(((x - 26, y + 40), (x - 14, y - 44), (x + 14, y - 44), (x + 26, y + 40)), fill=(105, 105, 112))
        for i in range(-30, 36, 16):
            d.rectangle((x - 6, y + i, x + 6, y + i + 7), fill=(45, 48, 60))
        d.rectangle((x - 22, y - 46, x + 22, y - 38), fill=(60, 60, 66))


@lru_cache(maxsize=64)
def _background(camera: SceneCamera) -> NDArray[np.float32]:
    rng = rng_of("background", camera.seed)
    sky, ground = np.asarray(camera.sky), np.asarray(camera.ground)
    mix = np.clip((np.arange(HEIGHT) - 30) / 40, 0, 1)[:, None, None]
    base = sky * (1 - mix) + ground * mix + np.zeros((HEIGHT, WIDTH, 3))
    coarse = rng.normal(0, 7, (HEIGHT // 8, WIDTH // 8, 1)).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(np.clip(base + coarse + rng.normal(0, 2.5, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8))
    d = ImageDraw.Draw(image)
    for _ in range(camera.clutter):
        x, y, s = int(rng.integers(0, WIDTH)), int(rng.integers(60, HEIGHT)), int(rng.integers(4, 11))
        grey = int(rng.integers(50, 150))
        d.rectangle((x, y, x + s, y + s), fill=(grey, grey, grey))
    for place, slot in enumerate(camera.layout):
        _draw_place(d, PLACES[place], *SLOTS[slot])
    return np.asarray(image, np.float32)


@lru_cache(maxsize=8)
def _noise(seed: int) -> NDArray[np.float32]:
    return rng_of("noise", seed).normal(0, 1, (2 * HEIGHT, 2 * WIDTH, 1)).astype(np.float32)


@lru_cache(maxsize=16)
def _glyph(character: str) -> NDArray[np.bool_]:
    image = Image.new("L", (7, 11), 0)
    ImageDraw.Draw(image).text((0, -1), character, fill=255, font=ImageFont.load_default(11))
    return np.asarray(image) > 110


def _draw_clock(canvas: NDArray[np.float32], text: str) -> None:
    canvas[3:18, 3 : 7 + 8 * len(text)] *= 0.35
    for i, character in enumerate(text):
        x = 6 + 8 * i
        canvas[5:16, x : x + 7][_glyph(character)] = 240.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sprite that was drawn; ground truth for training."""

    event: int
    """Index of its event."""
    actor: int
    """Index of its actor in the event."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels."""


_OFFSETS = {
    1: ((0, 0),),
    2: ((-25, 2), (25, 2)),
    3: ((-26, -14), (26, -14), (0, 22)),
    4: ((-26, -16), (26, -16), (-26, 26), (26, 26)),
}
_SIZES = {1: 64, 2: 54, 3: 46, 4: 46}


def _position(camera: SceneCamera, event: Event, t: float) -> tuple[float, float] | None:
    """Position of the event's actors at second `t`: they walk in for WALK_SECONDS, stay, and walk out the same way."""
    x, y = SLOTS[camera.layout[event.place]]
    outside = -60.0 if event.side < 0 else WIDTH + 60.0
    if t < event.start:
        share = 1 - (event.start - t) / WALK_SECONDS
    elif t > event.end:
        share = 1 - (t - event.end) / WALK_SECONDS
    else:
        share = 1.0
        name = EVENTS[event.kind]
        if name == "pass":
            x += int(36 * np.sin(np.pi * ((t - event.start) / (event.end - event.start) - 0.5)))
        elif name != "fall":
            x += int(6 * np.sin(2 * np.pi * (0.2 * t + event.phase)))
    if share <= 0:
        return None
    return outside + (x - outside) * share, float(y)


def draw(
    camera: SceneCamera, events: Sequence[Event], t: float, clock: str, frame: int
) -> tuple[NDArray[np.uint8], list[Drawn]]:
    """Draw the picture at stream second `t`.

    Args:
        camera: the camera.
        events: the events of the stream; those that are not visible at `t` are skipped.
        t: seconds of stream time.
        clock: text of the overlay, such as "08:00:00"; empty for none.
        frame: number of the frame, the seed of its noise.

    Returns:
        uint8[240, 320, 3] RGB, and the sprites that were drawn.
    """
    canvas = _background(camera).copy()
    drawn: list[Drawn] = []
    for number, event in enumerate(events):
        if not event.start - WALK_SECONDS < t < event.end + WALK_SECONDS:
            continue
        at = _position(camera, event, t)
        name = EVENTS[event.kind]
        if name == "drop" and t > event.start + 1:
            box_x, box_y = SLOTS[camera.layout[event.place]]
            _blend(canvas, _effect("drop", 34, 0), box_x + (40 if event.side < 0 else -40), box_y + 20)
        if at is None:
            continue
        standing = event.start <= t <= event.end
        copies = event.count if len(event.actors) == 1 else len(event.actors)
        size = _SIZES[copies]
        for i, (dx, dy) in enumerate(_OFFSETS[copies]):
            who = i if len(event.actors) > 1 else 0
            actor = event.actors[who]
            x, y = at[0] + dx, at[1] + dy
            if name == "flash" and standing:
                _blend(canvas, _effect("flash", size + 34, int(t * 2) % 4), x, y)
            fallen = name == "fall" and t > event.start + 0.5
            _blend(canvas, sprite(actor.kind, actor.colour, size, fallen, event.side > 0), x, y)
            if name == "burn" and standing:
                _blend(canvas, _effect("burn", size, int(t * 5) % 6), x, y - size * 0.42)
            drawn.append(Drawn(number, who, (x - size / 2, y - size / 2, x + size / 2, y + size / 2)))
    if camera.pole is not None:
        canvas[20:, camera.pole - 4 : camera.pole + 4] = (58.0, 56.0, 52.0)
    canvas *= camera.light(t)
    rng = rng_of("frame", camera.seed, frame)
    ox, oy = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
    canvas += camera.noise * _noise(camera.seed % 4)[oy : oy + HEIGHT, ox : ox + WIDTH]
    if clock:
        _draw_clock(canvas, clock)
    return np.clip(canvas, 0, 255).astype(np.uint8), drawn
