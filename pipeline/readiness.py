"""Whether a machine can run a profile: weights, memory, disk, codecs. `sightline doctor --profile` prints it.

Memory is counted from the sizes in the profile: weights of the language model, its key-value cache and the activations
of a prefill at the largest context, and the weights of the encoders. It is an estimate, lower than what a library
reserves by some tenths. Loads no model and fetches nothing; asks the hub for what is not in its cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import torch
from pydantic import BaseModel, ConfigDict

from index.tables import is_remote, normalize_url
from model.checkpoints.files import SourceState, look_up
from model.profiles.profile import Profile, Source

__all__ = ["Check", "Readiness", "check_profile", "memory_need", "stored_bytes_an_hour"]

_CODECS = ("h264", "hevc", "mpeg4", "mjpeg", "vp9", "av1")
_NEEDED = frozenset({"h264"})
_PICTURE_BYTES = 12_000  # a JPEG of 320 pixels, as `ingest` stores
_GIB = 2**30
_FRAMES_AN_HOUR = 3600


class Check(BaseModel):
    """One thing that was checked."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """What it is about."""
    works: bool
    """Whether the profile can work with it."""
    text: str
    """What was found, and what to do where it does not work."""


class Readiness(BaseModel):
    """Whether this machine can run a profile."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    works: bool
    """Whether every check works."""
    checks: list[Check]
    """The checks."""
    outlook: str
    """What the first question will do."""


def check_profile(profile: Profile, store: str) -> Readiness:
    """Check this machine for `profile` and for a store at `store`. Raises UsageError for an invalid place."""
    states = {str(source): look_up(source) for _, source in _sources(profile)}
    checks = [
        *_weights(profile, states),
        _memory(profile, states),
        _disk(profile, store, states),
        _codecs(),
    ]
    fetch = sum(state.bytes for state in states.values() if state.state == "fetchable")
    works = all(check.works for check in checks)
    outlook = (
        "the first question cannot be answered"
        if not works
        else f"the first command downloads {_size(fetch)}, then loads the models"
        if fetch
        else "the first question loads the models and needs no network"
    )
    return Readiness(profile=profile.name, works=works, checks=checks, outlook=outlook)


def memory_need(profile: Profile, encoder_bytes: int, bytes_a_number: int) -> tuple[int, int, int] | None:
    """Bytes of weights, of the key-value cache, and of the activations of a prefill, at the largest context.

    Args:
        profile: the profile.
        encoder_bytes: weights of both encoders.
        bytes_a_number: 2 for half precision on a GPU, 4 on a CPU.

    Returns:
        The three; None for a profile without a `shape` section.
    """
    shape = profile.shape
    if shape is None:
        return None
    head = shape.width // shape.heads
    layer = 2 * shape.width**2 + 2 * shape.width * shape.kv_heads * head + 3 * shape.width * shape.feed_forward
    parameters = shape.layers * layer + shape.vocabulary * shape.width * (1 if shape.tied else 2)
    tokens = min(profile.language_model.max_context, shape.positions)
    cache = 2 * shape.layers * shape.kv_heads * head * tokens
    activations = tokens * (3 * shape.feed_forward + 4 * shape.width)
    return (
        parameters * bytes_a_number + encoder_bytes,
        cache * bytes_a_number,
        activations * bytes_a_number,
    )


def stored_bytes_an_hour(profile: Profile) -> int | None:
    """Bytes that an hour of one stream takes in a store of half-precision patches; None without a `shape` section."""
    shape = profile.shape
    if shape is None:
        return None
    tokens = shape.patches if profile.hico is None else profile.hico.frame_tokens
    vectors = 4 * (shape.query_dim + shape.patch_dim)
    return _FRAMES_AN_HOUR * (2 * tokens * shape.patch_dim + vectors + _PICTURE_BYTES)


def _sources(profile: Profile) -> Iterator[tuple[str, Source]]:
    """The sources of weights of a profile, with what they are for."""
    for name, encoder in (("frame encoder", profile.frame_encoder), ("patch encoder", profile.patch_encoder)):
        yield name, encoder.source
        if encoder.tower is not None:
            yield f"{name}, tower", encoder.tower
    yield "language model", profile.language_model.source
    yield "connector", profile.connector.source


def _weights(profile: Profile, states: dict[str, SourceState]) -> list[Check]:
    uses: dict[str, list[str]] = {}
    for name, source in _sources(profile):
        uses.setdefault(str(source), []).append(name)
    checks = []
    for place, names in uses.items():
        state = states[place]
        found = {
            "here": f"on this machine, {_size(state.bytes)}",
            "fetchable": f"not here; will be fetched, {_size(state.bytes)}",
            "missing": f"{state.problem}; download it on another machine and name its folder in a profile file",
        }[state.state]
        checks.append(
            Check(name="weights", works=state.state != "missing", text=f"{', '.join(names)}: {place}: {found}")
        )
    return checks


def _memory(profile: Profile, states: dict[str, SourceState]) -> Check:
    encoders = {str(e.tower or e.source) for e in (profile.frame_encoder, profile.patch_encoder)}
    language = str(profile.language_model.source)
    encoder_bytes = sum(states[source].bytes for source in encoders - {language})
    gpu = torch.cuda.is_available()
    need = memory_need(profile, encoder_bytes, 2 if gpu else 4)
    place = "memory of the GPU" if gpu else "memory, as there is no GPU"
    if need is None:
        return Check(name="memory", works=True, text=f"{place}: not counted, the profile has no [shape] section")
    weights, cache, activations = need
    held = torch.cuda.get_device_properties(0).total_memory if gpu else _machine_memory()
    text = (
        f"{place}: {_size(sum(need))} at the largest context ({_size(weights)} weights, {_size(cache)} cache of keys "
        f"and values, {_size(activations)} activations); this machine has {_size(held)}"
    )
    works = sum(need) <= held
    advice = "use a smaller profile, a larger machine, or a model service (--service)"
    return Check(name="memory", works=works, text=text if works else f"{text}; {advice}")


def _disk(profile: Profile, store: str, states: dict[str, SourceState]) -> Check:
    hour = stored_bytes_an_hour(profile)
    place = normalize_url(store)
    if hour is None:
        return Check(name="disk", works=True, text="bytes an hour: not counted, the profile has no [shape] section")
    text = f"an hour of one stream takes {_size(hour)} in the store (int8 patches: about half)"
    if is_remote(place):
        return Check(name="disk", works=True, text=f"{text}; room in {store} is not known")
    folder = next(path for path in (Path(place), *Path(place).parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    left = free - sum(state.bytes for state in states.values() if state.state == "fetchable")
    text = f"{text}; {_size(free)} are free at {folder}, room for {max(0, left) / hour:,.0f} hours"
    works = left >= hour
    return Check(name="disk", works=works, text=text if works else f"{text}; free some, or choose another --store")


def _codecs() -> Check:
    absent = [name for name in _CODECS if not _decodes(name)]
    text = f"decoders: {', '.join(name for name in _CODECS if name not in absent)}"
    if absent:
        text += f"; without {', '.join(absent)}, such footage is refused"
    return Check(name="codecs", works=not _NEEDED & set(absent), text=text)


def _decodes(name: str) -> bool:
    try:
        av.Codec(name, "r")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.1f} MiB"
