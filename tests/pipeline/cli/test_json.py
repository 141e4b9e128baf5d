"""What each command says to machines, and that running again is safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.records import parse_rfc3339
from index.standing_questions import StandingQuestionStore
from index.store import Store
from ingest.live.spool import Spool
from ingest.segments.names import segment_name
from tests.support.command import FRAMES, LENGTHS, Command

BEGAN = 1_709_280_000_000_000
QUESTION = "what colour was the truck at the gate ?"


def rfc3339(text: str) -> int:
    assert text.endswith("Z")
    return parse_rfc3339(text)


def test_streams(sightline: Command, filled: str) -> None:
    result = sightline("streams", "--store", filled, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.data == [
        {
            "stream_id": "back",
            "frames": 12,
            "first": "2024-03-01T08:01:00Z",
            "last": "2024-03-01T08:01:11Z",
            "encoders": {"frame": "tiny-clip", "patch": "tiny-siglip"},
        },
        {
            "stream_id": "front",
            "frames": 24,
            "first": "2024-03-01T08:00:00Z",
            "last": "2024-03-01T08:00:23Z",
            "encoders": {"frame": "tiny-clip", "patch": "tiny-siglip"},
        },
    ]
    assert (
        "front  24 frames  2024-03-01T08:00:00Z to 2024-03-01T08:00:23Z" in sightline("streams", "--store", filled).out
    )


def test_streams_with_their_clocks(sightline: Command, filled: str) -> None:
    result = sightline("streams", "--store", filled, "--stream", "back", "--clocks", "--json")
    assert result.data[0]["clocks"] == [
        {
            "source": "container",
            "zone": None,
            "fold": None,
            "segments": 2,
            "first": "2024-03-01T08:01:00Z",
            "last": "2024-03-01T08:01:12Z",
        }
    ]
    text = sightline("streams", "--store", filled, "--clocks").out
    assert "    clock: container  3 segments  2024-03-01T08:00:00Z to 2024-03-01T08:00:24Z" in text
    assert "clock" not in sightline("streams", "--store", filled).out


def test_ask_with_options(sightline: Command, filled: str, profile: str) -> None:
    options = ("--option", "red", "--option", "blue", "--option", "green")
    result = sightline("ask", QUESTION, *options, "--store", filled, "--profile", profile, "--json")
    assert (result.code, result.err) == (0, "")
    data = result.data
    assert {"answer", "option", "keyframes", "frames", "visual_tokens", "timings_seconds"} <= set(data)
    assert data["answer"] in ("red", "blue", "green")
    assert data["option"] == data["answer"]
    assert data["frames"] == data["window_frames"] == FRAMES
    assert len(data["keyframes"]) == 4
    assert data["visual_tokens"] == 4 * 16 + FRAMES - 4
    assert sum(data["probabilities"].values()) == pytest.approx(1)
    assert max(data["probabilities"], key=data["probabilities"].__getitem__) == data["answer"]
    assert data["timings_seconds"]["total"] > 0
    assert all(seconds >= 0 for seconds in data["timings_seconds"].values())
    assert data["notices"][0] == "random weights"
    began = {"front": rfc3339("2024-03-01T08:00:00Z"), "back": rfc3339("2024-03-01T08:01:00Z")}
    places = []
    for frame in data["keyframes"]:
        assert set(frame) == {"stream_id", "captured_at", "offset_seconds", "score", "clock"}
        assert frame["clock"] == "container"
        at = rfc3339(frame["captured_at"])
        assert frame["offset_seconds"] == (at - began[frame["stream_id"]]) / 1e6
        places.append((frame["stream_id"], at))
    assert places == sorted(places)  # grouped by stream, in time inside each


def test_ask_streams_the_answer_and_then_its_evidence(sightline: Command, filled: str, profile: str) -> None:
    result = sightline("ask", QUESTION, "--stream", "front", "--store", filled, "--profile", profile)
    assert result.code == 0
    assert "  front  2024-03-01T08:00:" in result.out
    assert "4 keyframes of 24 frames" in result.out
    assert result.err == "note: random weights\n"


def test_words_that_the_model_does_not_know_are_said(sightline: Command, filled: str, profile: str) -> None:
    data = sightline("ask", "what was the submarine ?", "--store", filled, "--profile", profile, "--json").data
    assert any("does not know the word submarine" in notice for notice in data["notices"])


def test_a_window_and_its_thinning(sightline: Command, filled: str, profile: str) -> None:
    place = ("--store", filled, "--profile", profile, "--json")
    window = ("--stream", "front", "--from", "2024-03-01T08:00:05Z", "--to", "2024-03-01T08:00:15Z")
    data = sightline("ask", QUESTION, *window, *place).data
    assert data["frames"] == 10
    assert all(5 <= frame["offset_seconds"] < 15 for frame in data["keyframes"])
    whole = sightline("ask", QUESTION, *place).data
    thin = sightline("ask", QUESTION, "--max-frames", "10", *place).data
    assert thin["keyframes"] == whole["keyframes"]  # chosen among all frames, and all kept
    assert (thin["frames"], thin["window_frames"]) == (10, FRAMES)
    assert thin["visual_tokens"] == 4 * 16 + 6
    assert any(f"among all {FRAMES} frames" in notice and "10 frames in all" in notice for notice in thin["notices"])
    assert not any("in all" in notice for notice in whole["notices"])


def test_keyframes_are_those_of_the_answer(sightline: Command, filled: str, profile: str) -> None:
    place = ("--store", filled, "--profile", profile, "--json")
    chosen = sightline("keyframes", QUESTION, *place).data
    assert chosen == sightline("ask", QUESTION, *place).data["keyframes"]
    assert len(sightline("keyframes", QUESTION, "--k", "3", "--tau", "1", *place).data) == 3
    few = sightline("keyframes", QUESTION, "--k", "8", "--tau", "-0.99", *place).data
    filled_up = sightline("keyframes", QUESTION, "--k", "8", "--tau", "-0.99", "--fill", *place).data
    assert len(few) == 1
    assert len(filled_up) == 8
    assert few[0] in filled_up


def test_search(sightline: Command, filled: str, profile: str) -> None:
    place = ("--store", filled, "--profile", profile)
    found = sightline("search", "red truck", "--top", "2", *place, "--json").data
    assert 1 <= len(found) <= 2
    for moment in found:
        assert set(moment) == {
            "stream_id", "start", "end", "best", "score", "percentile", "meaning", "verification",
        }  # fmt: skip
        assert rfc3339(moment["start"]) <= rfc3339(moment["best"]) <= rfc3339(moment["end"])
    scores = [moment["score"] for moment in found]
    assert scores == sorted(scores, reverse=True)
    only = sightline("search", "red truck", "--stream", "back", "--from", "2024-03-01T08:01:03Z", *place, "--json").data
    assert {moment["stream_id"] for moment in only} == {"back"}
    assert min(moment["start"] for moment in only) >= "2024-03-01T08:01:03Z"
    assert sightline("search", "red truck", *place).out.count("best 2024-03-01T08:0") >= 1
    many = sightline("search", "red truck", "--top", "20", *place, "--json").data
    for top in (1, 2, 3, 5):
        assert sightline("search", "red truck", "--top", str(top), *place, "--json").data == many[:top]


def test_verify_and_reindex(sightline: Command, store: str) -> None:
    assert sightline("verify", "--store", store, "--json").data == {"ok": True, "problems": []}
    shards = sorted(Path(store, "faiss").rglob("*.faiss"))
    assert len(shards) == 2  # the footage's day is over
    shards[0].write_bytes(shards[1].read_bytes()[:-64])
    broken = sightline("verify", "--store", store, "--json")
    assert broken.code == 1
    assert not broken.data["ok"]
    assert len(broken.data["problems"]) >= 1
    assert sightline("verify", "--store", store).code == 1
    assert sightline("reindex", "--store", store, "--json").data == {"shards": 2}
    assert sightline("verify", "--store", store).out == "no problems\n"


def test_forget(sightline: Command, store: str) -> None:
    cut = ("--stream", "front", "--before", "2024-03-01T08:00:04Z", "--yes")
    done = sightline("forget", *cut, "--store", store, "--json").data
    assert {name: done[name] for name in ("stream_id", "frames", "spooled", "questions")} == {
        "stream_id": "front", "frames": 4, "spooled": 0, "questions": [],
    }  # fmt: skip
    assert any("recordings" in kept for kept in done["not_deleted"])
    assert any("Kafka" in kept for kept in done["not_deleted"])
    result = sightline("forget", "--stream", "back", "--yes", "--store", store)
    assert result.out == "12 frames of back deleted\n"
    assert "not deleted, because they are not the store's: original files; recordings" in result.err
    left = sightline("streams", "--store", store, "--json").data
    assert [(row["stream_id"], row["frames"], row["first"]) for row in left] == [("front", 20, "2024-03-01T08:00:04Z")]


def test_forget_covers_questions_alert_states_and_the_spool(
    sightline: Command, store: str, profile: str, tmp_path: Path
) -> None:
    place = ("--store", store, "--profile", profile)
    for name, streams in (("one", ("front",)), ("both", ("front", "back")), ("other", ("back",)), ("all", ())):
        named = [part for stream in streams for part in ("--stream", stream)]
        assert sightline("alerts", "add", f"a red truck {name}", "--name", name, *named, *place).code == 0
    alerts = StandingQuestionStore(Store.open(store).url)
    for stream in ("front", "back"):
        alerts.write_state(stream, b"{}")
    live = tmp_path / "live"
    segments = [
        segment_name(stream, start, 10.0, "video/mp4")
        for stream in ("front", "back")
        for start in (BEGAN, BEGAN + 10_000_000)
    ]
    for name in segments:
        (live / "spool" / name).parent.mkdir(parents=True, exist_ok=True)
        (live / "spool" / name).write_bytes(b"footage")

    cut = ("forget", "--stream", "front", "--yes", "--folder", str(live), "--json", *place[:2])
    done = sightline(*cut, "--before", "2024-03-01T08:00:05Z").data
    assert (done["frames"], done["spooled"], done["questions"]) == (5, 1, [])
    assert alerts.read_state("front") is None
    running = Spool(live, max_bytes=2**30)
    busy = sightline(*cut, "--before", "2024-03-01T08:00:06Z").data
    assert (busy["frames"], busy["spooled"]) == (1, 0)
    assert "stop it and forget again" in busy["not_deleted"][0]
    running.close()

    done = sightline(*cut).data
    assert (done["frames"], done["spooled"], done["questions"]) == (18, 1, ["both", "one"])
    assert {question.name: question.streams for question in alerts.questions()} == {
        "both": ("back",), "other": ("back",), "all": (),
    }  # fmt: skip
    assert alerts.read_state("back") == b"{}"
    left = [name for name in segments if (live / "spool" / name).exists()]
    assert left == [name for name in segments if name.startswith("back/")]


def test_what_only_the_spool_has_is_forgotten_too(sightline: Command, store: str, tmp_path: Path) -> None:
    path = tmp_path / "spool" / segment_name("yard", BEGAN, 10.0, "video/mp4")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"footage")
    cut = ("forget", "--stream", "yard", "--yes", "--folder", str(tmp_path), "--store", store)
    assert sightline(*cut).out == "0 frames of yard deleted\n1 segments in the spool deleted\n"
    assert not path.exists()
    assert "no such stream" in sightline(*cut).err


def test_offsets_stay_when_a_beginning_is_forgotten(sightline: Command, store: str, profile: str) -> None:
    place = ("--store", store, "--profile", profile, "--stream", "front", "--k", "30", "--tau", "1", "--json")
    sightline("forget", "--stream", "front", "--before", "2024-03-01T08:00:12Z", "--yes", "--store", store)
    chosen = sightline("keyframes", QUESTION, *place).data
    assert [frame["offset_seconds"] for frame in chosen] == [float(second) for second in range(12, 24)]


def test_ingest_and_ingest_again(sightline: Command, footage: Path, profile: str, tmp_path: Path) -> None:
    junk = tmp_path / "mixed"
    junk.mkdir()
    for path in footage.iterdir():
        (junk / path.name).write_bytes(path.read_bytes())
    (junk / "notes.txt").write_text("no video")
    place = ("--store", tmp_path / "made", "--profile", profile, "--json")
    first = sightline("ingest", junk, *place)
    assert (first.code, first.err) == (0, "")
    assert first.data["frames"] == FRAMES
    assert {file["stream_id"]: file["frames"] for file in first.data["files"]} == LENGTHS
    assert first.data["realtime_factor"] > 0
    again = sightline("ingest", junk, *place)
    assert again.code == 0
    assert [file["skipped"] for file in again.data["files"]] == [True, True]
    assert again.data["frames"] == 0
    assert "stored already" in sightline("ingest", junk, *place[:-1]).out


def test_ingest_keeps_the_good_files_and_names_the_bad(
    sightline: Command, footage: Path, profile: str, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "back.mp4").write_bytes((footage / "back.mp4").read_bytes())
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").touch()
    result = sightline("ingest", folder, tmp_path / "nowhere.mp4", "--store", tmp_path / "made", "--profile", profile)
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("sightline: ") for line in lines)
    assert any("nowhere.mp4" in line for line in lines)
    assert any("text.mp4" in line for line in lines)
    assert any("empty.mp4" in line for line in lines)
    assert sightline("streams", "--store", tmp_path / "made", "--json").data[0]["frames"] == 12


def test_ingest_with_a_stream_and_a_start(sightline: Command, footage: Path, profile: str, tmp_path: Path) -> None:
    given = ("--stream", "roof", "--start", "2024-05-05T05:05:05+02:00")
    place = ("--store", tmp_path / "made", "--profile", profile)
    assert sightline("ingest", footage / "back.mp4", *given, *place).code == 0
    row = sightline("streams", *place[:2], "--json").data[0]
    assert (row["stream_id"], row["first"]) == ("roof", "2024-05-05T03:05:05Z")
    both = sightline("ingest", footage, *given, *place)
    assert (both.code, both.err.count("\n")) == (2, 1)
    assert "--start applies to one file" in both.err


def test_settings_come_from_the_environment_and_from_a_file(
    sightline: Command, filled: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sightline.toml").write_text(f'store = "{filled}"\nprofile = "{profile}"\n')
    assert len(sightline("streams", "--json").data) == 2
    assert len(sightline("keyframes", QUESTION, "--json").data) == 4
    monkeypatch.setenv("SIGHTLINE_STORE", "elsewhere")
    assert "elsewhere" in sightline("streams").err
    assert len(sightline("streams", "--store", filled, "--json").data) == 2
    monkeypatch.setenv("SIGHTLINE_STOER", "typo")
    refused = sightline("streams", "--store", filled)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("sightline: SIGHTLINE_STOER: no such setting")


def test_render(sightline: Command, tmp_path: Path) -> None:
    where = tmp_path / "out"
    result = sightline("render", "--seed", "3", "--minutes", "0.5", "--cameras", "1", "--out", where, "--json")
    assert result.code == 0
    assert result.data == {"truth": str(where / "truth.json"), "files": [str(where / "camera-1.mp4")]}
    assert (where / "camera-1.mp4").stat().st_size > 10_000


def test_bench_decode_of_a_given_file(sightline: Command, footage: Path) -> None:
    data = sightline("bench", "decode", "--path", footage / "back.mp4").data
    row = data["rows"][0]
    assert (row["file"], row["frames"]) == ("back.mp4", 12)
    assert row["ours"]["realtime_factor"] > 0
    if row["ffmpeg"]:
        ratio = row["ffmpeg"]["wall_seconds"] / row["ours"]["wall_seconds"]
        assert row["ratio_to_ffmpeg"] == pytest.approx(ratio)


def test_bench_ingest_and_ask_count_their_work(sightline: Command, profile: str) -> None:
    data = sightline("bench", "ingest", "--minutes", "0.2", "--batch", "1", "--batch", "2", "--profile", profile).data
    assert (data["frames"], data["cameras"], data["weights"]) == (12, 1, "profile")
    assert data["frames_per_second"] > 0
    assert {"decode", "encode", "store"} <= set(data["stages"])
    limits = {stage["stage"]: stage for stage in data["limits"]}
    names = ["demux", "decode", "convert", "transfer", "preprocess", "encode", "pictures", "write"]
    assert list(limits) == names
    used = {name: stage["cpu_seconds"] for name, stage in limits.items()}
    assert data["slowest"] == max(used, key=used.__getitem__)
    assert data["cameras_per_core"] == pytest.approx(1 / sum(used.values()))
    assert data["cameras_per_core_decoding"] == pytest.approx(1 / sum(used[name] for name in names[:4]))
    for stage in data["limits"]:
        assert stage["whole_to_stage"] == pytest.approx(data["frames_per_second"] / stage["frames_per_second"])
        assert (stage["flops"] > 0) == (stage["stage"] == "encode")
    pixels = data["width"] * data["height"]
    assert limits["convert"]["bytes"] >= 4.5 * pixels  # 12 bits of a pixel in, 24 out
    assert limits["preprocess"]["bytes"] == 6 * pixels
    assert [batch["frames"] for batch in data["batches"]] == [1, 2]
    data = sightline("bench", "ask", "--frames", "20", "--frames", "40", "--profile", profile).data
    assert [row["frames"] for row in data["rows"]] == [20, 40]
    for row in data["rows"]:
        assert row["visual_tokens"] == row["keyframes"] * 16 + row["frames"] - row["keyframes"]
        assert row["patch_bytes"] == row["frames"] * 16 * 24 * 2
        assert 0 < row["seconds"]["dks"] < row["seconds"]["wall"]
