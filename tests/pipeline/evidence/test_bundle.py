"""Bundles: complete, openable offline, verifiable anywhere, and not to be changed without notice."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.errors import EmptyWindow, EvidenceInvalid, SourceNotFound, UnknownStream, UsageError
from index.store import Store
from ingest.segments.clipping import Redaction
from ingest.segments.redaction import box_pixels, redact
from pipeline.evidence.blur import cover
from pipeline.evidence.bundle import Draft, make_bundle
from pipeline.evidence.manifest import Manifest
from pipeline.evidence.signing import KEY_FILE, SigningKey
from pipeline.evidence.verification import verify_bundle
from pipeline.media.footage import FootageFinder
from tests.support.played import decoded, record_segments, render_pattern, store_file
from tests.support.records import BEGAN, PAIR, SECOND


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.load_or_create(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> FootageFinder:
    folder = tmp_path_factory.mktemp("evidence")
    store = Store.create(folder / "store", PAIR)
    store_file(store, render_pattern(folder / "gate.mp4", seconds=20), "gate", 20)
    store_file(store, render_pattern(folder / "yard.mp4", seconds=12, codec="libx265"), "yard", 12)
    store_file(store, render_pattern(folder / "old.avi", seconds=8, codec="mjpeg"), "old", 8, clock="mtime")
    place = record_segments(folder / "recordings", folder / "gate.mp4", "taped", 20)
    store_file(store, render_pattern(folder / "taped.mp4", seconds=20), "taped", 20, uri="/nowhere/taped.mp4")
    store_file(store, folder / "taped.mp4", "lost", 20, uri="/nowhere/lost.mp4")
    return FootageFinder(store, [place])


def draft(stream: str = "gate", first: float = 4, last: float = 9, **more: object) -> Draft:
    """What a bundle of some seconds of a stream is made of."""
    start, end = BEGAN + round(first * SECOND), BEGAN + round(last * SECOND)
    return Draft(stream_id=stream, start=start, end=end, created_by="ada", reason="case 7/24", **more)  # type: ignore[arg-type]


@pytest.fixture
def made(finder: FootageFinder, key: SigningKey, tmp_path: Path) -> Path:
    """A bundle, a folder."""
    asked = draft(
        question="Who was at <the gate> & when?",
        answer="a red dog",
        details={"probability": 0.9},
        pictures={BEGAN + 5 * SECOND: 0.31, BEGAN + 7 * SECOND: None},
        zone="Europe/Amsterdam",
    )
    make_bundle(finder.store, finder, key, asked, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_holds_everything_and_verifies_anywhere(
    made: Path, finder: FootageFinder, key: SigningKey, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(made, moved)
    verified = verify_bundle(moved)
    manifest = verified.manifest
    assert (verified.fingerprint, verified.key_given) == (key.public.fingerprint, False)
    assert verify_bundle(moved, key.public).key_given
    assert sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()) == [
        "clip.mp4", "frames/001_2024-03-01T08-00-05Z.jpg", "frames/002_2024-03-01T08-00-07Z.jpg", "index.html",
        "manifest.json", "manifest.sig", "public-key.pem", "sheet.jpg",
    ]  # fmt: skip
    (footage,) = manifest.footage
    source = finder.find("gate", BEGAN, BEGAN + SECOND)
    assert footage.kind == "file"
    assert footage.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()  # type: ignore[union-attr]
    assert (manifest.question, manifest.answer) == ("Who was at <the gate> & when?", "a red dog")
    assert [(p.captured_at, p.score) for p in manifest.frames] == [
        ("2024-03-01T08:00:05Z", 0.31),
        ("2024-03-01T08:00:07Z", None),
    ]
    assert [clock.source for clock in manifest.clocks] == ["given"]
    assert manifest.encoders == PAIR
    assert manifest.clip is not None
    assert (manifest.clip.encoded_again, manifest.clip.viewing_copy) == (False, None)
    assert manifest.notices == []
    codec, times, pictures = decoded((made / "clip.mp4").read_bytes())
    assert (codec, len(times)) == ("h264", 50)
    assert [round(float(p.mean()) / 8) - 1 for p in (pictures[0], pictures[-1])] == [4, 8]
    page = (made / "index.html").read_text()
    assert "Who was at &lt;the gate&gt; &amp; when?" in page
    assert "2024-03-01 08:00:05 UTC (2024-03-01 09:00:05 +0100 Europe/Amsterdam)" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page


def test_an_archive_is_the_same(finder: FootageFinder, key: SigningKey, tmp_path: Path) -> None:
    make_bundle(finder.store, finder, key, draft(), tmp_path / "bundle.zip")
    verified = verify_bundle(tmp_path / "bundle.zip", key.public)
    assert len(verified.manifest.frames) == 5
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert verify_bundle(tmp_path / "unpacked").manifest == verified.manifest
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing temporary is left"


def test_footage_that_browsers_cannot_play_comes_twice(finder: FootageFinder, key: SigningKey, tmp_path: Path) -> None:
    manifest = make_bundle(finder.store, finder, key, draft("yard"), tmp_path / "yard")
    assert manifest.clip is not None
    assert (manifest.clip.file, manifest.clip.viewing_copy) == ("clip.mkv", "clip-view.mp4")
    assert decoded((tmp_path / "yard" / "clip.mkv").read_bytes())[0] == "hevc"
    codec, times, _ = decoded((tmp_path / "yard" / "clip-view.mp4").read_bytes())
    assert (codec, len(times)) == ("h264", 50)
    verify_bundle(tmp_path / "yard")
    manifest = make_bundle(finder.store, finder, key, draft("old", 2, 6), tmp_path / "old")
    assert any("The time is a guess" in notice for notice in manifest.notices)
    assert manifest.clip is not None
    verify_bundle(tmp_path / "old")


def test_recordings_and_footage_that_is_gone(finder: FootageFinder, key: SigningKey, tmp_path: Path) -> None:
    manifest = make_bundle(finder.store, finder, key, draft("taped", 4, 12), tmp_path / "taped")
    assert [(f.kind, f.start) for f in manifest.footage] == [
        ("recording", "2024-03-01T08:00:00Z"),
        ("recording", "2024-03-01T08:00:05Z"),
        ("recording", "2024-03-01T08:00:10Z"),
    ]
    assert len(decoded((tmp_path / "taped" / "clip.mp4").read_bytes())[1]) == 80
    manifest = make_bundle(finder.store, finder, key, draft("lost"), tmp_path / "lost")
    assert manifest.clip is None
    assert manifest.notices == ["There is no clip: no recording has this stretch, and the ingested file is not there."]
    verify_bundle(tmp_path / "lost")


def test_what_cannot_be_made(finder: FootageFinder, key: SigningKey, tmp_path: Path) -> None:
    def make(asked: Draft, name: str = "bundle") -> Manifest:
        return make_bundle(finder.store, finder, key, asked, tmp_path / name)

    with pytest.raises(UnknownStream):
        make(draft("vault"))
    with pytest.raises(EmptyWindow):
        make(draft("gate", 30, 40))
    with pytest.raises(UsageError, match="at most 4 hours"):
        make(draft("gate", 0, 5 * 3600))
    with pytest.raises(UsageError, match="at most 4 hours"):
        make(draft("gate", 5, 5))
    with pytest.raises(SourceNotFound, match="cannot be written"):
        make(draft(), "no/such/folder")
    with pytest.raises(UsageError, match="a box is left, top"):
        make(draft(redactions=[Redaction(0, 1, (0.5, 0.5, 0.4, 0.9))]))
    (tmp_path / "bundle").write_text("here")
    with pytest.raises(UsageError, match="exists"):
        make(draft())
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"], "nothing is left of what failed"


# ---- changes -----------------------------------------------------------------------------------------------------------


def changed_manifest(bundle: Path, change: Callable[[dict[str, object]], None], key: SigningKey | None = None) -> None:
    """Change the manifest; sign it again with `key`, if there is one."""
    values = json.loads((bundle / "manifest.json").read_text())
    change(values)
    data = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    (bundle / "manifest.json").write_bytes(data)
    if key is not None:
        (bundle / "manifest.sig").write_bytes(base64.b64encode(key.sign(data)))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: flip(b / "clip.mp4"), "clip.mp4 was changed"),
        (lambda b: flip(b / "index.html"), "index.html was changed"),
        (lambda b: flip(b / "public-key.pem"), "public-key.pem was changed"),
        (lambda b: (b / "clip.mp4").write_bytes(b"short"), "clip.mp4 has 5 bytes instead of"),
        (lambda b: (b / "clip.mp4").unlink(), "clip.mp4 is missing"),
        (lambda b: (b / "frames/003.jpg").write_bytes(b"x"), "'frames/003.jpg' is not listed: it was added"),
        (lambda b: (b / ".hidden").write_bytes(b""), "'.hidden' is not listed: it was added"),
        (lambda b: (b / "manifest.sig").unlink(), "manifest.sig is missing"),
        (lambda b: (b / "manifest.json").unlink(), "not a bundle of evidence, manifest.json is missing"),
        (lambda b: flip(b / "manifest.sig"), "the signature is not that of this manifest"),
        (lambda b: (b / "manifest.sig").write_bytes(b"\xff" * 50), "the signature is not that of this manifest"),
        (lambda b: (b / "manifest.json").write_bytes(b"{"), "manifest.json is not JSON"),
        (lambda b: (b / "manifest.json").write_bytes(b"[" * 100_000), "manifest.json"),
        (lambda b: (b / "manifest.json").write_bytes(b"{}"), "manifest.json: "),
        (
            lambda b: (b / "manifest.json").write_bytes((b / "manifest.json").read_bytes() + b"\n"),
            "not written as this format prescribes",
        ),
        (lambda b: changed_manifest(b, lambda v: v.update(answer="a blue dog")), "the signature is not that"),
        (lambda b: (b / "clip.mp4").rename(b / "frames" / "clip.mp4"), "clip.mp4 is missing"),
        (lambda b: os.symlink("/etc/passwd", b / "link"), "link is a link or a special file"),
        (lambda b: os.mkfifo(b / "pipe"), "pipe is a link or a special file"),
    ],
)  # fmt: skip
def test_every_change_is_found(made: Path, change: Callable[[Path], object], message: str) -> None:
    verify_bundle(made)
    change(made)
    with pytest.raises(EvidenceInvalid, match=message.replace("(", r"\(")):
        verify_bundle(made)


def test_a_bundle_signed_anew_is_that_of_another_key(made: Path, key: SigningKey, tmp_path: Path) -> None:
    other = SigningKey.load_or_create(tmp_path / "forger")
    changed_manifest(made, lambda v: v.update(answer="a blue dog"), other)
    with pytest.raises(EvidenceInvalid, match="the signature is not that"):
        verify_bundle(made)

    def forge(values: dict[str, object]) -> None:
        values.update(answer="a blue dog", public_key=other.public.pem, fingerprint=other.public.fingerprint)
        files = [f for f in values["files"] if f["path"] != "public-key.pem"]  # type: ignore[attr-defined]
        data = other.public.pem.encode()
        (made / "public-key.pem").write_bytes(data)
        files.append({"path": "public-key.pem", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
        values["files"] = sorted(files, key=lambda f: str(f["path"]))

    changed_manifest(made, forge, other)
    assert verify_bundle(made).fingerprint == other.public.fingerprint, "whole, and of a key that its reader must know"
    with pytest.raises(EvidenceInvalid, match="signed with another key"):
        verify_bundle(made, key.public)


def archive(
    path: Path, bundle: Path, change: Callable[[zipfile.ZipFile], None], method: int = zipfile.ZIP_STORED
) -> Path:
    """A bundle as an archive, with something else in it."""
    with zipfile.ZipFile(path, "w", method) as file:
        for each in sorted(p for p in bundle.rglob("*") if p.is_file()):
            file.write(each, each.relative_to(bundle).as_posix())
        change(file)
    return path


def test_hostile_archives(made: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "x.zip"
    assert verify_bundle(archive(path, made, lambda z: None))
    for name in ("../../escaped", "/etc/escaped", "C:\\escaped", "frames/../../escaped"):
        with pytest.raises(EvidenceInvalid, match="is not listed: it was added"):
            verify_bundle(archive(path, made, lambda z, n=name: z.writestr(n, b"x")))  # type: ignore[misc]
    with pytest.raises(EvidenceInvalid, match="holds a file twice"):
        verify_bundle(archive(path, made, lambda z: z.writestr("clip.mp4", b"x")))
    with pytest.raises(EvidenceInvalid, match="is not stored as a bundle's files are"):
        verify_bundle(archive(path, made, lambda z: z.writestr("bomb", bytes(10**7), zipfile.ZIP_DEFLATED)))
    with pytest.raises(EvidenceInvalid, match="is not stored"):
        verify_bundle(archive(path, made, lambda z: z.mkdir("empty")))
    data = archive(path, made, lambda z: None).read_bytes()
    for hostile in (b"MZ" + data, data + b"behind", data[:-1], data[:100], b"PK\x03\x04", b""):
        path.write_bytes(hostile)
        with pytest.raises(EvidenceInvalid):
            verify_bundle(path)
    archive(path, made, lambda z: setattr(z, "comment", b"hello"))
    with pytest.raises(EvidenceInvalid, match="bytes before or behind"):
        verify_bundle(path)
    rng = np.random.default_rng(3)
    for _ in range(150):
        hostile_bytes = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            hostile_bytes[at] ^= int(rng.integers(1, 256))
        path.write_bytes(hostile_bytes)
        try:
            verify_bundle(path)
        except EvidenceInvalid:
            continue
        # The date and attributes of an entry are not content; everything else must be found.
        with zipfile.ZipFile(path) as opened:
            assert {i.filename: opened.read(i) for i in opened.infolist()} == {
                p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()
            }
    for nothing in (tmp_path / "nothing", tmp_path / "nothing.zip"):
        with pytest.raises(SourceNotFound):
            verify_bundle(nothing)


# ---- removal of boxes ---------------------------------------------------------------------------------------------------


def test_what_a_box_covers_is_gone_from_pictures_and_clip(
    finder: FootageFinder, key: SigningKey, tmp_path: Path
) -> None:
    boxes = [Redaction(BEGAN + 5 * SECOND, BEGAN + 7 * SECOND, (0.25, 0.25, 0.75, 0.75))]
    manifest = make_bundle(finder.store, finder, key, draft(redactions=boxes), tmp_path / "bundle")
    assert manifest.clip is not None
    assert manifest.clip.encoded_again
    assert len(manifest.covered) == 1
    assert [
        p.file
        for p in manifest.frames
        if p.stored_sha256 != hashlib.sha256((tmp_path / "bundle" / p.file).read_bytes()).hexdigest()
    ] == [
        "frames/002_2024-03-01T08-00-05Z.jpg",
        "frames/003_2024-03-01T08-00-06Z.jpg",
    ]
    assert not list((tmp_path / "bundle").rglob("*.mkv")), "no file shows what was removed"
    verify_bundle(tmp_path / "bundle")


def test_pixels_inside_cannot_be_told_apart(tmp_path: Path) -> None:
    """Two pictures that differ inside of the box only, in details, become the same."""
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (120, 160, 3)).astype(np.uint8)
    other = one.copy()
    left, top, right, bottom = box_pixels((0.25, 0.25, 0.75, 0.75), 160, 120)
    rows, columns = np.linspace(top, bottom, 5).astype(int), np.linspace(left, right, 5).astype(int)
    for y0, y1 in pairwise(rows):
        for x0, x1 in pairwise(columns):  # shuffled within each cell
            cell = other[y0:y1, x0:x1].reshape(-1, 3)
            other[y0:y1, x0:x1] = rng.permutation(cell).reshape(y1 - y0, x1 - x0, 3)
    assert (one != other).any()
    outside = one.copy()
    for pixels in (one, other):
        redact(pixels, [(0.25, 0.25, 0.75, 0.75)])
    assert np.array_equal(one, other)
    assert len(np.unique(one[top:bottom, left:right].reshape(-1, 3), axis=0)) <= 16
    outside[top:bottom, left:right] = one[top:bottom, left:right]
    assert np.array_equal(outside, one), "nothing outside of the box changes"


def test_a_small_box_becomes_one_colour_and_the_edge_is_covered() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    redact(pixels, [(0.901, 0.901, 1.0, 1.0)])
    assert len(np.unique(pixels[36:, 36:].reshape(-1, 3), axis=0)) == 1


def test_nothing_of_the_old_file_stays_in_a_covered_picture() -> None:
    out, thumbnail = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 10)).save(thumbnail, "JPEG")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(
        out, "JPEG", exif=b"Exif\0\0" + thumbnail.getvalue(), comment=b"a face"
    )
    covered = cover(out.getvalue(), 5, [Redaction(0, 10, (0, 0, 1, 1))])
    assert b"a face" in out.getvalue()
    assert b"a face" not in covered
    assert b"Exif" not in covered
    assert cover(out.getvalue(), 10, [Redaction(0, 10, (0, 0, 1, 1))]) == out.getvalue(), "another time"


# ---- keys --------------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = SigningKey.load_or_create(state)
    assert SigningKey.load_or_create(state).public.raw == first.public.raw
    assert (state / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [p.name for p in state.iterdir()] == [KEY_FILE]
    assert first.public.fingerprint.replace(":", "") == hashlib.sha256(first.public.raw).hexdigest()
    (state / KEY_FILE).chmod(0o644)
    with pytest.raises(UsageError, match="other users may read"):
        SigningKey.load_or_create(state)
    (state / KEY_FILE).chmod(0o600)
    (state / KEY_FILE).write_bytes(b"no key")
    with pytest.raises(UsageError, match="not a private key"):
        SigningKey.load_or_create(state)


def test_processes_that_make_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                (tmp_path / str(number)).write_bytes(SigningKey.load_or_create(tmp_path / "state").public.raw)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1
