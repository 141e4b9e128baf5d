from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.benchmarks.longvideobench import LongVideoBench
from pipeline.evaluation.benchmarks.subtitles import Cue, read_subtitles, select_cues
from pipeline.evaluation.benchmarks.videomme import VideoMme

SRT = (
    '\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<font color="#fff">A red\r\n<b>dog</b></font>\r\n\r\n'
    "2\r\n00:00:02,500 --> 00:00:04,000\r\nruns &amp; barks\r\n\r\n"
    "3\r\nnot a time\r\nlost\r\n\r\n"
    "4\r\n01:00:00,000 --> 01:00:01,000\r\n{\\an8}late\r\n5\r\n01:00:02,000 --> 01:00:03,000\r\n\r\n"
)


def test_srt_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(SRT.encode())
    assert read_subtitles(path) == [Cue(1, 2.5, "A red dog"), Cue(2.5, 4, "runs & barks"), Cue(3600, 3601, "late")]


def test_no_tags_and_bad_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(b"1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n")
    assert [cue.text for cue in read_subtitles(path)] == ["caf�"]
    path.write_bytes(b"")
    assert read_subtitles(path) == []


def test_json_of_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [
        {"start": "00:01:41.000", "end": "00:01:41.500", "line": "one"},
        {"timestamp": [103.0, None], "text": "two"},
        {"timestamp": [50.0, 60.0], "text": "before the cut"},
    ]
    path.write_text(json.dumps(rows))
    assert read_subtitles(path, 100.0) == [Cue(1, 1.5, "one"), Cue(3, 3, "two")]


def test_rules() -> None:
    cues = [
        Cue(0.2, 0.4, "short"),
        Cue(2.2, 2.9, "short too"),
        Cue(5, 9, "long"),
        Cue(7, 9, "long"),
        Cue(20, 21, "late"),
    ]
    assert select_cues(cues, "none", [0, 5]) == []
    assert select_cues(cues, "all", []) == ["short", "short too", "long", "late"]
    assert select_cues(cues, "aligned", []) == []
    # Video-MME: a line is aligned if [start, end) holds a frame.
    assert select_cues(cues, "aligned", [0, 3, 5, 8], VideoMme().alignment) == ["long"]
    assert select_cues(cues, "aligned", [9, 21], VideoMme().alignment) == []
    assert select_cues(cues, "aligned", [20], VideoMme().alignment) == ["late"]
    # LongVideoBench: strictly between its ends, and a line shorter than 1 s is widened about its middle.
    assert select_cues(cues, "aligned", [0, 5, 8], LongVideoBench().alignment) == ["short", "long"]
    assert select_cues(cues, "aligned", [3], LongVideoBench().alignment) == ["short too"]
    assert select_cues(cues, "aligned", [5, 9, 20, 21], LongVideoBench().alignment) == []
    assert select_cues([Cue(4, 4, "open end")], "aligned", [4], LongVideoBench().alignment) == ["open end"]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9))), st.sets(st.integers(0, 70)))
def test_aligned_against_every_second(spans: list[tuple[int, int]], seconds: set[int]) -> None:
    cues = [Cue(start, start + length, str(number)) for number, (start, length) in enumerate(spans)]
    expected = [cue.text for cue in cues if seconds & set(range(int(cue.start), int(cue.end)))]
    assert select_cues(cues, "aligned", sorted(seconds)) == expected
