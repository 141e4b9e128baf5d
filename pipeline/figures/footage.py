"""Sections about footage on its way into the store: decoding, encoders, ingest, backfill, Kafka, live cameras,
memory."""

from __future__ import annotations

from typing import Any

from pipeline.figures.charts import Bar, bars
from pipeline.figures.section import Results, Section, SectionSpec, Table
from pipeline.figures.units import count, factor, percent, seconds, signed, size

__all__ = ["SECTIONS"]

_GROUP = "Into the store"


def _decode(results: Results) -> Section:
    data = results["decode"]
    rows, cores = data["rows"], data["cores"]
    chart: list[Bar] = []
    for row in rows:
        name = row["file"].removesuffix(".mp4").replace("-gop", ", intra frame every ")
        chart.append(Bar(f"{name}: Sightline", row["ours"]["realtime_factor"], factor(row["ours"]["realtime_factor"])))
        if row["ffmpeg"] is not None:
            other = row["ffmpeg"]["realtime_factor"]
            chart.append(Bar(f"{name}: ffmpeg -vf fps=1", other, factor(other), 1))
    fast = max(rows, key=lambda row: row["ours"]["realtime_factor"])
    slow = min(rows, key=lambda row: row["ours"]["realtime_factor"])
    beside = (
        ""
        if slow["ffmpeg"] is None
        else (
            f", {factor(slow['ratio_to_ffmpeg'])} to {factor(fast['ratio_to_ffmpeg'])} the speed of ffmpeg on the same "
            "files"
        )
    )
    busy = [row["ours"]["cpu_seconds"] / row["ours"]["wall_seconds"] / cores for row in rows]
    return Section(
        finding=(
            f"One frame a second of 1080p30 H.264 is decoded at {factor(slow['ours']['realtime_factor'])} to "
            f"{factor(fast['ours']['realtime_factor'])} real time on {cores} cores{beside}. The more intra frames a "
            "file has, the more of it need not be decoded."
        ),
        headline=(factor(fast["ours"]["realtime_factor"]), "real time: decoding 1080p"),
        chart=bars(chart, title="Decoding speed beside ffmpeg, times real time"),
        reading="Seconds of footage decoded in one second; longer is faster. Both decoders ran in turn.",
        limit=(
            f"{percent(min(busy))} to {percent(max(busy))} of the {cores} cores are busy. What remains is entropy "
            "decoding of the frames that are needed, which has no shortcut."
        ),
    )


def _encoders(results: Results) -> Section:
    data = results["encoders"]
    names = {"frame": "CLIP (frame encoder)", "patch": "SigLIP (patch encoder)"}
    rows = data["rows"]
    both = 1 / sum(1 / row["frames_per_second"] for row in rows)
    prepared = [row["preprocessing_seconds"] / row["seconds"] for row in rows]
    chart = [
        Bar(names[row["encoder"]], row["frames_per_second"], f"{count(row['frames_per_second'])}/s") for row in rows
    ]
    chart.append(Bar("both, one after the other", both, f"{count(both)}/s", 3))
    return Section(
        finding=(
            f"The {data['profile']} encoders together turn {count(both)} frames of {data['width']} × {data['height']} "
            f"a second into vectors ({data['device']}), at one frame a second enough for {count(both)} cameras."
        ),
        chart=bars(chart, title="Frames encoded a second"),
        reading="Frames a second from decoded pixels to vectors in memory; longer is faster.",
        limit=(
            f"Preprocessing (resizing 1080p frames) takes {percent(min(prepared))} to {percent(max(prepared))} of the "
            "time, the network the rest."
        ),
    )


def _ingest(results: Results) -> Section:
    data, encoders = results["backfill"], results["encoders"]
    rate = data["frames"] / data["ingest_seconds"]
    network = 1 / sum((row["seconds"] - row["preprocessing_seconds"]) / encoders["frames"] for row in encoders["rows"])
    chart = [
        Bar("sightline ingest, from files to the store", rate, f"{count(rate)}/s"),
        Bar("limit: both encoders' networks alone", network, f"{count(network)}/s", 2),
    ]
    return Section(
        finding=(
            f"Ingest takes {count(data['footage_seconds'] / 3600)} hours of footage into the store in "
            f"{seconds(data['ingest_seconds'])}: {factor(data['footage_seconds'] / data['ingest_seconds'])} real time, "
            f"or {count(rate)} frames a second, with the {data['profile']} profile."
        ),
        headline=(factor(data["footage_seconds"] / data["ingest_seconds"]), "real time: ingest of files"),
        chart=bars(chart, title="Frames ingested a second"),
        reading="Frames a second; longer is faster. The limit leaves out decoding, resizing, pictures and storing.",
        limit=f"{percent(rate / network)} of what the encoders could do if nothing else had to be done.",
    )


def _backfill(results: Results) -> Section:
    data = results["backfill"]
    overhead = data["overhead"]
    chart = [
        Bar("sightline ingest", data["ingest_seconds"], seconds(data["ingest_seconds"]), 1),
        Bar("backfill, in one process", data["pipeline_seconds"], seconds(data["pipeline_seconds"])),
        Bar("backfill, one worker process", data["one_worker_seconds"], seconds(data["one_worker_seconds"]), 3),
        Bar("backfill, two worker processes", data["two_workers_seconds"], seconds(data["two_workers_seconds"]), 3),
    ]
    same = "nothing measurable" if abs(overhead) <= 0.03 else signed(overhead)
    rate = data["footage_seconds"] / data["two_workers_seconds"]
    return Section(
        finding=(
            f"The Beam pipeline costs {same} over plain ingest of the same files, and a second worker process makes it "
            f"{factor(data['scaling'])} as fast: {count(data['footage_seconds'] / 3600)} hours of footage in "
            f"{seconds(data['two_workers_seconds'])}, {factor(rate)} real time."
        ),
        headline=(factor(rate), "real time: backfill, two workers"),
        chart=bars(chart, title="Seconds to index the same files"),
        reading=f"Seconds for the same {data['files']} files ({count(data['frames'])} frames); shorter is better.",
        limit=(
            "Two workers could at best be 2× as fast, if each had a core for itself; each also has a decoding process."
        ),
    )


def _consume(results: Results) -> Section:
    data = results["consume"]
    chart = [
        Bar("Kafka worker, end to end", data["consumer"], f"{data['consumer']:.1f}/s"),
        Bar("limit: decode, encode and JPEG in turn", data["limit"], f"{data['limit']:.1f}/s", 2),
        Bar("fetching and decoding alone", data["decoder"], f"{data['decoder']:.1f}/s", 3),
        Bar("encoders alone", data["encoder"], f"{data['encoder']:.1f}/s", 3),
    ]
    return Section(
        finding=(
            f"The Kafka worker stores {count(data['realtime_factor'])} seconds of footage a second, so one worker on "
            f"{data['cores']} cores keeps up with {count(data['realtime_factor'])} cameras. A commit takes "
            f"{seconds(data['commit_seconds_median'])} (median)."
        ),
        headline=(count(data["realtime_factor"]), "cameras: one Kafka worker"),
        chart=bars(chart, title="Segments a second through the Kafka worker"),
        reading=f"Segments of {data['segment_seconds']:g} s a second; longer is faster.",
        limit=(
            f"{percent(data['share_of_limit'])} of the limit that its parts allow when each uses all cores; "
            f"{percent(data['share_of_encoder'])} of the encoders' own speed, because starting a confined decoder for "
            "each segment costs more than encoding it."
        ),
    )


def _live(results: Results) -> Section:
    names = ["through Kafka", "watch"]
    chart: list[Bar] = []
    table = Table(["", "cameras", "cameras a core", "frames stored"], [])
    for row, name in zip(results["live"]["rows"], names, strict=True):
        late: dict[str, float] = row["capture_to_searchable_seconds"]
        chart.append(Bar(f"{name}: half of the frames", late["p50"], seconds(late["p50"])))
        chart.append(Bar(f"{name}: 95 %", late["p95"], seconds(late["p95"]), 3))
        table.rows.append([name, count(row["cameras"]), f"{row['cameras_per_core']:.0f}", count(row["frames_stored"])])
    first = results["live"]["rows"][0]
    return Section(
        finding=(
            f"A frame of a live camera can be searched {seconds(first['capture_to_searchable_seconds']['p50'])} after "
            f"it was captured (median), with segments of {first['segment_seconds']} s; one core serves "
            f"{min(row['cameras_per_core'] for row in results['live']['rows']):.0f} cameras."
        ),
        headline=(seconds(first["capture_to_searchable_seconds"]["p50"]), "from a live camera to search (median)"),
        chart=bars(chart, title="Seconds from capture to search"),
        table=table,
        reading="Seconds from a frame's capture until a search finds it; shorter is better.",
        limit=(
            f"A segment of {first['segment_seconds']} s must end before it can be sent, which is "
            f"{first['segment_seconds'] / 2:g} s of the median."
        ),
    )


def _memory(results: Results) -> Section:
    data = results["memory"]
    short, long = data["rows"]
    chart: list[Bar] = []
    for row in (short, long):
        length = f"{row['minutes']:g} minutes of footage"
        chart.append(Bar(f"{length}: ingest", row["ingest_peak_bytes"], size(row["ingest_peak_bytes"])))
        chart.append(Bar(f"{length}: decoder", row["decoder_peak_bytes"], size(row["decoder_peak_bytes"]), 3))
    return Section(
        finding=(
            f"{factor(long['minutes'] / short['minutes'])} the footage takes {factor(data['ingest_ratio'])} the "
            f"memory: {size(short['ingest_peak_bytes'])} at {short['minutes']:g} minutes, "
            f"{size(long['ingest_peak_bytes'])} at {long['minutes']:g}."
        ),
        chart=bars(chart, title="Peak memory of ingest"),
        reading="Peak resident memory of the ingesting process, models included, and of the decoder's process.",
    )


def _day(results: Results) -> Section:
    data = results["day"]
    memory: dict[str, float] = data["consumer_rss_mb"]
    names = {"start": "at the start", "middle": "in the middle", "end": "at the end", "max": "at most"}
    chart = [Bar(f"Kafka worker, {text}", memory[name], f"{memory[name]:,.0f} MB") for name, text in names.items()]
    chart.append(Bar("compaction, at most", data["compactor_rss_max_mb"], f"{data['compactor_rss_max_mb']:,.0f} MB", 3))
    table = Table(["table", "live files, at most", "at the end", "bytes at the end"], [])
    for name, end in data["at_the_end"].items():
        most: dict[str, Any] = data["most_at_any_time"][name]
        table.rows.append([name, count(most["files"]), count(end["files"]), size(end["bytes"])])
    return Section(
        finding=(
            f"{count(data['segments'])} segments, a day of {data['cameras']} cameras, are stored at "
            f"{data['segments_per_second']:.0f} a second. The worker takes "
            f"{memory['start']:,.0f} MB at the start and {memory['end']:,.0f} MB at the end, and no table ever has "
            f"more than {count(max(most['files'] for most in data['most_at_any_time'].values()))} live files."
        ),
        chart=bars(chart, title="Memory of the Kafka worker over a day of segments"),
        table=table,
        reading="Resident memory; the worker's includes the test and its libraries.",
        limit=(
            f"The last hundred commits took {seconds(data['commit_seconds_last_100']['median'])} (median) and at most "
            f"{seconds(data['commit_seconds_last_100']['max'])}, beside other work on the same cores."
        ),
    )


SECTIONS = (
    SectionSpec("decode", _GROUP, "Decoding", "How fast is decoding?", ("decode",), _decode, ("ingest", "consume")),
    SectionSpec(
        "encoders",
        _GROUP,
        "Encoders",
        "How fast do frames become vectors?",
        ("encoders",),
        _encoders,
        ("ingest", "decode"),
    ),
    SectionSpec(
        "ingest",
        _GROUP,
        "Ingest",
        "How fast is ingest?",
        ("backfill", "encoders"),
        _ingest,
        ("decode", "encoders", "memory"),
    ),
    SectionSpec(
        "backfill", _GROUP, "Backfill", "What does the Beam pipeline cost?", ("backfill",), _backfill, ("ingest", "day")
    ),
    SectionSpec(
        "consume",
        _GROUP,
        "Kafka worker",
        "How many cameras can one Kafka worker store?",
        ("consume",),
        _consume,
        ("live",),
    ),
    SectionSpec(
        "live",
        _GROUP,
        "Live cameras",
        "How soon can a live frame be searched?",
        ("live",),
        _live,
        ("consume", "alerts"),
    ),
    SectionSpec(
        "memory", _GROUP, "Memory", "Does ingest need more memory for more footage?", ("memory",), _memory, ("day",)
    ),
    SectionSpec(
        "day",
        _GROUP,
        "A day of segments",
        "Does it slow down or grow over a day of cameras?",
        ("day",),
        _day,
        ("memory",),
    ),
)
"""Sections in the order of the page."""
