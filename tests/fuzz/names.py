"""Hostile names: files and folders of any bytes, and stream names of any text.

Each case makes a few files with hostile names in a folder, and plans a run over it. Every file must be listed, once and by
its own bytes; each must have a valid stream, and none may end the run. Stream ids must be lossless where they become part
of a path, and never leave their folder; a few are written to a real store. Files of one case have different footage: two of
them may share a stream and its seconds only with a StreamConflict that names both.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from index.errors import StreamConflict
from index.schemas import StreamId, check_stream_id, decode_stream_id, encode_stream_id, partition_folder
from index.store import Store
from ingest.footage_plan import FootagePlan, plan_footage
from ingest.sources.files import fetched
from tests.support.footage import make_video
from tests.support.records import PAIR, make_records, make_segment

__all__ = ["NamesResult", "fuzz_names", "hostile_name"]

_STORED = 25
"""One case in this many is written to the store."""

_FILMED = 10
"""One case in this many has real footage."""

_PARTS: tuple[bytes, ...] = (
    *(
        b"front",
        b"20240301_080000",
        b"2024-03-01T08-00-00Z",
        b"1709280000",
        b"video",
        b"CAM",
        b"cam",
        b"12.34",
        b"12:30:05",
    ),
    *(
        b".",
        b"..",
        b"...",
        b"-",
        b"--",
        b"--store",
        b"~",
        b"~root",
        b"$HOME",
        b"`id`",
        b"%2e%2e%2f",
        b"%00",
        b"%",
        b"\\",
        b"\\..\\",
    ),
    *(
        b"*",
        b"?",
        b"[1]",
        b"[!a]",
        b"{a,b}",
        b"**",
        b"'",
        b'"',
        b";",
        b"|",
        b"&",
        b"#",
        b"?x=1",
        b":",
        b"::",
        b"file:",
        b"http:",
        b"s3:",
    ),
    *(
        b" ",
        b"\t",
        b"\n",
        b"\r\n",
        b"\x1b[31m",
        b"\x07",
        b"\x7f",
        b"\xff\xfe",
        b"\xc3",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
    ),
    *(
        "前门 后门 Straße الباب दरवाज़ा ประตู é e\u0301 ﬁ Ⅷ ① ٣ İ ı ß ẞ 𝒳 🎥 👩‍👩‍👧 \u202e \u200b \ufeff \u0300 \u2028 \u2215 \uff0f \uff0e ۔ \u0085".encode().split(
            b" "
        )
    ),
    *(
        b"CON",
        b"NUL",
        b"aux.txt",
        b"stream_id=a",
        b"_delta_log",
        b"date=2024-03-01",
        b"__HIVE_DEFAULT_PARTITION__",
        b"._front",
        b"a" * 120,
    ),
)
_SUFFIXES = (b".mp4",) * 6 + (b".MKV", b".ts", b".mp4.mp4", b" .mp4", b".m\xffp4", b"", b".txt", b".dav")


def hostile_name(rng: random.Random, longest: int = 250) -> bytes:
    """Bytes that a Linux file system takes as a name."""
    parts = [
        rng.choice(_PARTS) if rng.random() < 0.8 else rng.randbytes(rng.randrange(1, 12))
        for _ in range(rng.randrange(1, 6))
    ]
    name = rng.choice([b"", b"", b"_", b"-", b" "]).join(parts).replace(b"/", b"").replace(b"\0", b"")[:longest]
    return name if name not in (b"", b".", b"..") else b"x"


@dataclass(slots=True)
class NamesResult:
    """What became of all names."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Files that were planned, skipped, or refused with a conflict; stream ids that were valid, invalid, stored."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of each case that broke a promise."""
    seconds: float = 0.0
    """Seconds that all took."""


def fuzz_names(folder: Path, *, seed: int, cases: int, first: int = 0) -> NamesResult:
    """Try `cases` folders of about six hostile names; see `NamesResult`. Each depends on the seed and its number alone."""
    result, began = NamesResult(), time.monotonic()
    films = [folder / f"{number}.mp4" for number in range(3)]
    for number, film in enumerate(films):
        make_video(film, seconds=3, rate=5, gop=number + 2)
    store = Store.create(folder / "store", PAIR)
    for number in range(first, first + cases):
        rng = random.Random(f"{seed}/{number}")
        place = folder / "case"
        place.mkdir()
        try:
            _files(rng, place, films if number % _FILMED == 0 else [], result.outcomes)
            _streams(rng, store, result.outcomes, stored=number % _STORED == 0)
        except Exception as error:
            result.failures.append((number, f"{type(error).__name__}: {error}"))
        shutil.rmtree(os.fsencode(place))
    if problems := store.verify():
        result.failures.append((first + cases, f"verify: {problems}"))
    if strange := {each.name for each in folder.iterdir()} - {"store", *(film.name for film in films)}:
        result.failures.append((first + cases, f"something was made beside the store: {strange}"))
    result.seconds = time.monotonic() - began
    return result


def _files(rng: random.Random, place: Path, films: list[Path], outcomes: Counter[str]) -> None:
    """Make files with hostile names and plan a run over them. Raises AssertionError."""
    made, base = set[bytes](), hostile_name(rng, 200)
    for number in range(rng.randrange(1, 4) if films else rng.randrange(1, 9)):
        below = os.fsencode(place)
        if rng.random() < 0.4:
            below = os.path.join(below, hostile_name(rng))
            os.makedirs(below, exist_ok=True)
        name = hostile_name(rng) + rng.choice(_SUFFIXES)
        if films:  # names that may become one stream
            name = (
                rng.choice([base, base.swapcase(), base.replace(b" ", b"-"), b" " + base, base + b"'", name]) + b".mp4"
            )
        path = os.path.join(below, name)
        if os.path.exists(path):
            continue
        content = films[number].read_bytes() if films else f"{number}".encode()
        with open(path, "wb") as file:
            file.write(content)
        made.add(path)
    try:
        plan = plan_footage([place])
    except StreamConflict as error:
        said = str(error)
        named = sum(path.decode("utf-8", "backslashreplace") in said for path in made)
        if not films or named < 2:
            raise AssertionError(f"a conflict that names {named} files: {said}") from None
        outcomes["conflicts"] += 1
        _compare(plan_footage([place], overlap="first"), made, outcomes)
        return
    _compare(plan, made, outcomes)
    streams = Counter((file.name.stream, file.name.start) for file in plan.files)
    if films and (shared := [key for key, count in streams.items() if count > 1]):
        raise AssertionError(f"{shared} is the stream and start of two files with different footage, without a word")


def _compare(plan: FootagePlan, made: set[bytes], outcomes: Counter[str]) -> None:
    listed = [os.fsencode(file.source) for file in plan.files]
    assert len(listed) == len(set(listed)), "a file is listed twice"
    assert set(listed) <= made, f"what is not there is listed: {set(listed) - made}"
    passed = made - set(listed)
    if listed or not made:
        assert len(plan.skipped) == len(passed), f"{len(passed)} files are not listed, {plan.skipped} are named"
    else:
        assert [type(error).__name__ for _, error in plan.problems] == ["SourceNotFound"]
    for text in (*plan.skipped, *(f"{shown} {error}" for shown, error in plan.problems)):
        text.encode("utf-8", "surrogateescape")
    for file in plan.files:
        file.shown.encode()  # it is stored, and printed
        check_stream_id(file.name.stream)
        with fetched(file.source) as path:
            assert os.path.samefile(path, os.fsencode(file.source)), "another file is opened"
    outcomes["files planned"] += len(listed)
    outcomes["files skipped"] += len(passed)


def _streams(rng: random.Random, store: Store, outcomes: Counter[str], *, stored: bool) -> None:
    """Check hostile stream names, and write one to the store. Raises AssertionError."""
    root = Path(store.url)
    for _ in range(5):
        text = hostile_name(rng, 400).decode("utf-8", rng.choice(["replace", "surrogateescape", "ignore"])) or "x"
        try:
            name = TypeAdapter(StreamId).validate_python(text)
        except ValidationError:
            outcomes["streams refused"] += 1
            continue
        outcomes["streams valid"] += 1
        assert decode_stream_id(encode_stream_id(name)) == name, f"{name!r} is not what it was"
        part = partition_folder(name)
        assert os.path.normpath(part) == part, f"{part!r} is another folder"
        assert "/" not in part, f"{part!r} is no single folder"
        assert len(part) <= 255, f"{part!r} is too long for a file system"
        assert (root / part).resolve().parent == root.resolve(), f"{part!r} leaves its folder"
    while stored:
        try:
            name = TypeAdapter(StreamId).validate_python(hostile_name(rng, 60).decode("utf-8", "ignore").strip())
        except ValidationError:
            continue
        if name in {each.stream_id for each in store.streams()}:
            store.forget(name)
        records = make_records(name, n=2)
        store.append(make_segment(records), records)
        assert len(store.window([name])) == 2, f"{name!r} cannot be read"
        outcomes["streams stored"] += 1
        stored = False
