"""Pictures and chains of pictures as needles."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from index.errors import UsageError
from ingest.video_writer import VideoWriter
from pipeline.evaluation.needles import entry
from pipeline.evaluation.needles.cases import Piece
from pipeline.evaluation.needles.chains import PictureCase, draw_chains, inserted, spread
from pipeline.evaluation.needles.entry import pictures
from pipeline.evaluation.needles.pictures import caption_pixels, read_pictures, rendered_pictures
from pipeline.evaluation.needles.record import NeedleFolder
from pipeline.evaluation.needles.released import are_chains, read_chains
from pipeline.evaluation.needles.rendered import RenderedFootage


def rows(pieces: list[Piece]) -> list[tuple[str, int]]:
    return [(piece.stream, row) for piece in pieces for row in range(piece.first, piece.stop)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data())
def test_insertion_is_that_into_a_list(sizes: list[int], data: st.DataObject) -> None:
    haystack = [Piece(stream=f"h{i}", first=2, stop=2 + size) for i, size in enumerate(sizes)]
    places = sorted(data.draw(st.lists(st.integers(0, sum(sizes)), max_size=4)))
    needles = [(place, f"p{i}") for i, place in enumerate(places)]
    naive = rows(haystack)
    for place, stream in reversed(needles):
        naive[place:place] = [(stream, row) for row in range(4)]
    assert rows(inserted(haystack, needles)) == naive


def test_the_first_picture_is_in_front_and_the_last_one_behind() -> None:
    assert spread(1000, 5) == [0, 248, 500, 748, 1000]
    assert spread(42, 2) == [0, 42]


def test_a_chain_leads_from_the_question_to_the_only_picture_without_a_text() -> None:
    listed = rendered_pictures(3, 30)
    by_id = {picture.id: picture for picture in listed}
    by_caption = {picture.caption: picture.id for picture in listed}
    for number, chain in enumerate(draw_chains(listed, 12, 3)):
        links = (2, 3, 4)[number % 3]
        texts = dict(chain.pictures)
        assert len(texts) == links + 3
        at = by_caption[chain.questions[0].text.removeprefix("Find the frame of ").split(". Locate")[0]]
        walked = [at]
        while texts[at]:
            at = by_caption[texts[at].removeprefix("Find a frame of ")]
            walked.append(at)
        assert len(walked) == links
        assert sum(not text for text in texts.values()) == 1
        first, second = chain.questions
        assert first.options[first.answer] == by_id[at].caption
        assert len(set(first.options)) == 4
        assert {by_caption[option] for option in first.options} <= texts.keys()
        assert second.options[second.answer] == by_id[at].options[by_id[at].answer]
        decoys = texts.keys() - set(walked)
        assert {by_caption[texts[decoy].removeprefix("Find a frame of ")] for decoy in decoys} == decoys


def test_too_few_captions_are_an_error() -> None:
    with pytest.raises(
        UsageError, match="a chain needs 5 pictures whose captions differ; of 4 with captions only 4 do"
    ):
        draw_chains(rendered_pictures(3, 4), 1, 0)


def test_a_text_changes_the_lower_edge_alone() -> None:
    picture = rendered_pictures(3, 1)[0].pixels()
    shown = caption_pixels(picture, "Find a frame of a red dog at the gate")
    assert shown.shape == picture.shape == (240, 320, 3)
    changed = np.flatnonzero((shown != picture).any((1, 2)))
    assert 190 < changed.min() < changed.max() == 239
    assert (shown[changed.min() :] > 200).any()  # letters
    long = caption_pixels(picture, "Find a frame of " + "four purple umbrellas " * 4)
    assert np.flatnonzero((long != picture).any((1, 2))).min() < changed.min()


def test_no_answer_of_rendered_pictures_is_a_good_guess() -> None:
    """Without a limit "one" is the answer to 47 of 50 questions "how many"."""
    listed = rendered_pictures(0, 80)
    for first in range(4):  # the kinds of questions alternate
        answers = Counter(each.options[each.answer] for each in listed[first::4])
        assert max(answers.values()) <= 7
    asked = [each for each in listed if each.question.startswith("How many")]
    assert len(asked) == 20


END = "\nOnly give the best option. Best option: ("


def test_released_rows_are_read_and_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    question = "Find the frame of a man on a horse.  what is he wearing\nOptions: (A) a hat\n(B) a crown " + END
    bare = "Find the frame of a man ON A HORSE what is he wearing\nOptions: \n(A) a hat\n(B) a crown" + END
    path = tmp_path / "niah.json"
    row = {"question": question, "answer": "B", "image": "single/1.jpg", "id": 7}
    path.write_text(json.dumps([row, {**row, "question": bare, "id": 8}]))
    picture, unstopped = read_pictures(path)
    assert (picture.id, picture.caption, picture.question) == ("7", "a man on a horse", "what is he wearing")
    assert (picture.options, picture.answer, picture.path) == (("a hat", "a crown"), 1, tmp_path / "single" / "1.jpg")
    assert (unstopped.caption, unstopped.question) == ("", "Find the frame of a man ON A HORSE what is he wearing")
    assert (unstopped.options, unstopped.answer) == (("a hat", "a crown"), 1)
    path.write_text(json.dumps([{**row, "answer": "E"}]))
    with pytest.raises(UsageError, match="row 7"):
        read_pictures(path)


def chain_row(images: list[str]) -> dict[str, Any]:
    """A row of the released multi-hop file, with an invented text."""
    head = "Find the frame of a cat on a mat Locate the final frame based on the instructions in the image, and "
    return {
        "images": images,
        "question1": head + "choose the captions that best describe the frame: \nOptions: (A) a dog runs.\n"
        "(B) A red bus, empty. \n(C) two men\n(D) a hill" + END,
        "answer1": "B",
        "question2": head + "answer the following question based on the final frame: what is the color of the bus"
        "\nOptions: (A) red\n(B) blue\n(C) gray\n(D) white" + END,
        "answer2": "A",
    }


def released(folder: Path, count: int = 5) -> list[str]:
    """Pictures with the names of the release below `multi/`; the one without a number is the final one."""
    (folder / "multi").mkdir(parents=True, exist_ok=True)
    names = [f"multi/niah_65_{n}_COCO_val2014_{n:012}.jpg" for n in (5, 1, 4, 3)][: count - 1]
    names.insert(2, "multi/COCO_val2014_000000000002.jpg")
    for number, name in enumerate(names):
        Image.new("RGB", (64, 48), (number * 40, 90, 200)).save(folder / name)
    return names


def test_released_chains_are_read_in_their_order(tmp_path: Path) -> None:
    names = released(tmp_path)
    path = tmp_path / "niah-coco-multihop-1.json"
    path.write_text(json.dumps([chain_row(names)]))
    assert are_chains(path)
    (chain,) = read_chains(path)
    assert [picture.path for picture in chain.pictures] == [tmp_path / name for name in names]
    first, second = chain.questions
    assert first.text.endswith("and choose the captions that best describe the frame:")
    assert first.options == ("a dog runs.", "A red bus, empty.", "two men", "a hill")
    assert second.text.startswith("Find the frame of a cat on a mat Locate the final frame")
    assert second.text.endswith("what is the color of the bus")
    assert (second.options, first.answer, second.answer) == (("red", "blue", "gray", "white"), 1, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer1": "E"}, "row 0, question1: the answer 'E' is not among the options"),
        ({"answer2": ""}, "row 0, question2: needs a question, two options and an answer"),
        ({"question2": None}, "row 0, question2"),
        ({"images": ["multi/gone.jpg", "multi/COCO_val2014_000000000002.jpg"]}, "there is no image .*gone.jpg"),
        ({"images": ["multi/COCO_val2014_000000000002.jpg"]}, "at least two paths"),
        ({"images": ["multi/COCO_val2014_000000000002.jpg"] * 2}, "names an image twice"),
    ],
)
def test_a_released_chain_that_cannot_be_asked_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**chain_row(released(tmp_path)), **change}]))
    with pytest.raises(UsageError, match=words):
        read_chains(path)


def test_pictures_of_a_file_are_hidden_in_videos_of_a_folder(profile: str, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    with VideoWriter(films / "film.mp4", 32, 32, fps=1, gop=1, created=datetime(2024, 3, 1, tzinfo=UTC)) as writer:
        for second in range(48):
            writer.write(np.full((32, 32, 3), second * 5, np.uint8))
    colours = ("red", "green", "blue", "white", "black")
    listed = []
    for number, name in enumerate(colours):
        Image.new("RGB", (64, 48), name).save(tmp_path / f"{number}.png")
        listed.append({"image": f"{number}.png", "caption": f"a {name} wall", "question": "Which colour?",
                       "options": list(colours[:4]), "answer": number % 4, "id": number})  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(listed))
    where: dict[str, Any] = {
        "profile": profile,
        "device": "cpu",
        "lengths": [40],
        "count": 1,
        "seed": 1,
        "rows": path,
        "films": films,
    }
    out, store = tmp_path / "image", str(tmp_path / "store")
    image = pictures("image", store, tmp_path, out, settings=("spliced",), **where)
    assert [heat.total for heat in image.tables["spliced"].rows] == [1] * 6
    lines = NeedleFolder(out).answers()
    assert [line.frames for line in lines.values()] == [44] * 6
    chain = pictures("chain", store, tmp_path, tmp_path / "chain", settings=("blind",), **where)
    assert [heat.total for heat in chain.tables["spliced"].rows] == [1, 1, 1]
    assert sum(chain.pairs.values()) == 1
    line = NeedleFolder(tmp_path / "chain").answers()["40-chain-000", "Q1, spliced"]
    assert (line.frames, line.problem) == (60, None)
    assert (tmp_path / "chain" / "heatmap.png").stat().st_size > 1000

    path.write_text(json.dumps([chain_row(released(tmp_path)), chain_row(released(tmp_path, 4))]))
    where = {**where, "count": 2}
    summary = pictures("chain", store, tmp_path, tmp_path / "released", settings=("spliced",), **where)
    assert [heat.total for heat in summary.tables["spliced"].rows] == [2, 2, 2]
    lines = NeedleFolder(tmp_path / "released").answers()
    assert [lines[f"40-chain-{n}", "Q2, spliced"].frames for n in (0, 1)] == [60, 56]
    with pytest.raises(UsageError, match="use `sightline eval needles chain`"):
        pictures("image", store, tmp_path, tmp_path / "wrong", **where)


def test_the_haystacks_of_rendered_chains_have_enough_footage(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is left out only for the final picture: seven pictures would leave out two thirds of the footage."""
    monkeypatch.setattr(RenderedFootage, "ingest", lambda *arguments: None)
    found: list[PictureCase] = []

    def run(cases: list[PictureCase], *arguments: Any, **more: Any) -> None:
        """Keep the cases."""
        found.extend(cases)

    monkeypatch.setattr(entry, "run_pictures", run)
    monkeypatch.setattr(entry, "ingest_picture", lambda store, encoders, pixels: str(pixels.sum()))
    for kind in ("chain", "image"):
        pictures(
            kind, str(tmp_path / "store"), tmp_path, tmp_path / "out",
            profile=profile, device="cpu", lengths=[1000], count=12, seed=0,
        )  # fmt: skip
    footage = RenderedFootage(0, longest=1000, each=0)
    listed = rendered_pictures(0, 30)
    assert len(found) == 12 + 12 * 6
    for case in found:
        assert sum(map(len, case.haystack)) == 1000
        final = case.questions[-1]
        asked = [each for each in listed if final.text.endswith(each.question) and each.options == final.options]
        assert asked
        for picture in asked[:1]:
            assert picture.stated is not None
            assert not any(footage.fits(picture.stated, piece.stream) for piece in case.haystack)
