"""Sections about questions and answers: keyframes, the model, the service, accuracy, alerts, and patches."""

from __future__ import annotations

import math
from typing import Any

from pipeline.figures.charts import Bar, Interval, Line, bars, intervals, lines
from pipeline.figures.readings import readings_section
from pipeline.figures.section import Results, Section, SectionSpec, Table
from pipeline.figures.selection import selectors_section
from pipeline.figures.units import count, factor, flops, percent, points, seconds, signed, size, speed

__all__ = ["SECTIONS"]

_SPEED, _QUALITY = "Out of the store", "What is right"
_VARIANTS = {
    "dks + dfm": "DKS and DFM, as shipped",
    "top-k": "query-guided top-K in place of DKS",
    "mean pooling": "mean pooling in place of DFM",
    "keyframes only": "keyframes only",
    "uniform": "uniform sampling in place of DKS",
    "blind": "no pictures at all",
}
_METHODS = {"dks": "DKS", "top-k": "top-K", "uniform": "uniform sampling"}


def _tick(value: float) -> str:
    """A tick of an axis of frames: `1,000`, `1M`."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value:,.0f}"


def _tick_seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"


def _dks(results: Results) -> Section:
    data = results["dks"]
    rows: list[dict[str, Any]] = data["rows"]
    naive = [(row["frames"], row["naive_seconds"]) for row in rows if row["naive_seconds"] is not None]
    first, last = rows[0], rows[-1]
    beside = "" if first["speedup"] is None else f", {factor(first['speedup'])} as fast as the naive algorithm"
    return Section(
        finding=(
            f"Selecting {data['k']} keyframes from {count(first['frames'])} frames takes {seconds(first['seconds'])} "
            f"on one core{beside}; from {count(last['frames'])} frames it takes {seconds(last['seconds'])}."
        ),
        headline=(seconds(first["seconds"]), f"keyframes of {count(first['frames'])} frames"),
        chart=lines(
            [
                Line("DKS", [(row["frames"], row["seconds"]) for row in rows], 0),
                Line("naive Algorithm 1", naive, 1),
                Line(
                    "limit: reading the vectors once",
                    [(row["frames"], row["bytes_read"] / row["memory_bytes_per_second"]) for row in rows],
                    2,
                ),
            ],
            title="Seconds of keyframe selection by number of frames",
            x_label="frames",
            x_text=_tick,
            y_text=_tick_seconds,
        ),
        reading="Both axes are logarithmic. The result is exact: the same frames as the naive algorithm.",
        limit=(
            f"{percent(last['share_of_memory_bandwidth'])} of the speed at which memory can be read, at "
            f"{count(last['frames'])} frames. Time grows with the number of frames, not with its square."
        ),
    )


def _model(results: Results) -> Section:
    data = results["model"]
    rows: list[dict[str, Any]] = [row for row in data["rows"] if row["refused"] is None]
    names = {"prefill": "prefill", "dfm": "DFM", "projector": "projector", "patch_load": "waiting for patches"}
    series = [Line("first token", [(row["frames"], row["first_token_seconds"]) for row in rows], 2)]
    for colour, (stage, name) in zip((0, 1, 3, 4), names.items(), strict=True):
        series.append(Line(name, [(row["frames"], row["stages"][stage]["seconds"]) for row in rows], colour))
    last = rows[-1]
    wide = next(row for row in rows if row["frames"] >= last["frames"] / 16)
    growth = {
        stage: last["stages"][stage]["seconds"] / wide["stages"][stage]["seconds"] for stage in ("dfm", "prefill")
    }
    prefill = last["stages"]["prefill"]
    shares = {stage: last["stages"][stage]["seconds"] / last["first_token_seconds"] for stage in ("dfm", "prefill")}
    reached = f"Prefill does {flops(prefill['flops'] / prefill['seconds'])}"
    if prefill["flops_fraction"] is not None:
        reached += f", {percent(prefill['flops_fraction'])} of the device's peak"
    return Section(
        finding=(
            f"A question over {count(last['frames'])} frames has its first token after "
            f"{seconds(last['first_token_seconds'])} ({data['profile']}, {data['device']}). Folding all other frames "
            f"by DFM is {percent(shares['dfm'])} of that, prefill {percent(shares['prefill'])}."
        ),
        headline=(seconds(last["first_token_seconds"]), f"to the first token, {count(last['frames'])} frames"),
        chart=lines(
            series,
            title="Seconds of each stage of the model by number of frames",
            x_label="frames of the question",
            x_text=_tick,
            y_text=_tick_seconds,
        ),
        reading="Both axes are logarithmic.",
        limit=(
            f"From {count(wide['frames'])} to {count(last['frames'])} frames "
            f"({factor(last['frames'] / wide['frames'])}), DFM takes {factor(growth['dfm'])} the time. Prefill takes "
            f"{factor(growth['prefill'])}, because each of its {count(last['prompt_tokens'])} tokens attends to all "
            f"before it. {reached}."
        ),
    )


def _ask(results: Results) -> Section:
    data = results["ask"]
    rows: list[dict[str, Any]] = data["rows"]
    last = rows[-1]
    wall = last["seconds"]["wall"]
    stages = {
        name: value
        for name, value in last["seconds"].items()
        if name not in ("wall", "total", "first_token") and value >= 0.001
    }
    stages = dict(sorted(stages.items(), key=lambda item: -item[1]))
    longest = next(iter(stages))
    chart = [
        Bar(name.replace("_", " "), value, seconds(value), 0 if name == longest else 3)
        for name, value in stages.items()
    ]
    table = Table(
        ["frames", "whole question", "tokens", "patches read"],
        [
            [
                count(row["frames"]),
                seconds(row["seconds"]["wall"]),
                count(row["visual_tokens"]),
                size(row["patch_bytes"]),
            ]
            for row in rows
        ],
    )
    return Section(
        finding=(
            f"A question over {count(last['frames'])} frames ({last['frames'] / 3600:.1f} hours) is answered in "
            f"{seconds(wall)} with the {data['profile']} profile; {longest.replace('_', ' ')} is "
            f"{percent(stages[longest] / wall)} of that."
        ),
        headline=(seconds(wall), f"a whole question, {count(last['frames'])} frames"),
        chart=bars(chart, title="Seconds of a question by stage"),
        table=table,
        reading=(
            f"Seconds of the stages at {count(last['frames'])} frames, the longest first; models are loaded already."
        ),
        limit=(
            f"{factor(last['frames'] / rows[0]['frames'])} the frames take {factor(wall / rows[0]['seconds']['wall'])} "
            "the time."
            if len(rows) > 1
            else ""
        ),
    )


def _service(results: Results) -> Section:
    data = results["service"]
    latency: dict[str, float] = data["latency"]
    names = {"p50": "half of the answers", "p95": "95 %", "p99": "99 %", "most": "the slowest"}
    chart = [
        Bar(text, latency[name], seconds(latency[name]), 0 if name == "p50" else 3) for name, text in names.items()
    ]
    bad = sum(data["lost"].values()) + data["wrong"]
    return Section(
        finding=(
            f"{data['clients']} clients that ask without a pause get {data['answers_per_second']:.1f} answers a "
            f"second. Of {count(data['requests'])} requests {count(bad) if bad else 'none'} got lost or a wrong "
            f"answer, and memory changed by {signed(data['rss_growth'])} in {seconds(data['seconds'])}."
        ),
        headline=(f"{data['answers_per_second']:.1f}/s", f"answers, {data['clients']} clients at once"),
        chart=bars(chart, title="Seconds to an answer under load"),
        reading="Seconds from sending a request to its whole answer; shorter is better.",
        limit=(
            f"One model answers them in turn, {seconds(1 / data['answers_per_second'])} each: with {data['clients']} "
            f"clients in the queue that makes {seconds(data['clients'] / data['answers_per_second'])}."
        ),
    )


def _micro(results: Results) -> Section:
    data = results["micro"]
    accuracy: dict[str, dict[str, dict[str, float]]] = data["accuracy"]
    shipped, blind = accuracy["dks + dfm"], accuracy["blind"]["all"]
    rows = []
    for number, (variant, name) in enumerate(_VARIANTS.items()):
        found = accuracy[variant]["all"]
        colour = 0 if number == 0 else 3
        rows.append(Interval(name, found["share"], found["low"], found["high"], percent(found["share"]), colour))
    apart = max(abs(shipped["all"]["share"] - accuracy[other]["all"]["share"]) for other in ("top-k", "mean pooling"))
    kinds = {kind: found["share"] for kind, found in shipped.items() if kind != "all"}
    worst = min(kinds, key=lambda kind: kinds[kind])
    return Section(
        finding=(
            f"The {data['profile']} profile answers {percent(shipped['all']['share'])} of {data['questions']} "
            f"questions about footage it has never seen, {points(shipped['all']['share'] - blind['share'])} more than "
            f"without pictures. Its weak spot is “{worst}”, {percent(kinds[worst])}."
        ),
        headline=(percent(shipped["all"]["share"]), f"of questions right ({data['profile']})"),
        chart=intervals(rows, title="Share of right answers by method", mark=(0.25, "chance")),
        table=Table(
            ["question", "right", "95 % interval"],
            [
                [kind, percent(found["share"]), f"{percent(found['low'])} to {percent(found['high'])}"]
                for kind, found in shipped.items()
                if kind != "all"
            ],
        ),
        reading="Dots are shares of right answers to questions with four options, lines their 95 % intervals.",
        limit=(
            f"Top-K in place of DKS and mean pooling in place of DFM change that by {100 * apart:.1f} points at most: "
            "these questions do not tell the methods apart by their answers, but by the evidence they show (see "
            "Evidence)."
            if apart < 0.03
            else ""
        ),
    )


def _keyframes(results: Results) -> Section:
    hits: dict[str, dict[str, dict[str, dict[str, float]]]] = results["micro"]["hits"]
    rows = []
    for k, methods in hits.items():
        for number, (method, name) in enumerate(_METHODS.items()):
            found = methods[method]["all of several"]
            label = f"{name}, {k} keyframes"
            colour = (0, 1, 3)[number]
            rows.append(Interval(label, found["share"], found["low"], found["high"], percent(found["share"]), colour))
    k = str(results["micro"]["k"])
    dks, top = hits[k]["dks"], hits[k]["top-k"]
    return Section(
        finding=(
            f"{k} keyframes by DKS show the evidence of {percent(dks['any']['share'])} of the questions. Where a "
            f"question needs several events, they show all of them in {percent(dks['all of several']['share'])} of the "
            f"cases, top-K in {percent(top['all of several']['share'])}."
        ),
        chart=intervals(rows, title="Questions of several events whose keyframes show all of them"),
        reading=(
            f"Share of the {count(dks['all of several']['total'])} questions about several events whose keyframes show "
            "every one of them, with 95 % intervals."
        ),
    )


def _alerts(results: Results) -> Section:
    data = results["alerts"]
    ours = data["calibrated"]
    rows: list[Interval] = []
    sets = [("workers' rule", ours, 0)] + [
        (f"{name.split()[0]}, threshold in hindsight", found, 3) for name, (_, found) in data["hindsight"].items()
    ]
    for name, found, colour in sets:
        for kind in ("precision", "recall"):
            value = found[kind]
            rows.append(
                Interval(
                    f"{kind}: {name}", value["share"], value["low"], value["high"], percent(value["share"]), colour
                )
            )
    middle, late = ours["latency_seconds"]
    return Section(
        finding=(
            f"{percent(ours['precision']['share'])} of the alerts are right, and {percent(ours['recall']['share'])} of "
            f"the events raise one, {seconds(middle)} after they begin (median; 95 % within {seconds(late)}). A "
            f"question raises one false alert in {1 / ours['false_per_hour']:.0f} hours of a camera."
        ),
        headline=(percent(ours["precision"]["share"]), "of alerts right"),
        chart=intervals(rows, title="Precision and recall of alerts"),
        reading=(
            f"{count(data['questions'])} standing questions on {data['camera_hours']:g} camera hours of rendered "
            "footage. The grey rows know the truth when they choose their threshold; no worker could."
        ),
    )


def _patches(results: Results) -> Section:
    data = results["patches"]
    series: list[Line] = []
    for colour, (name, file) in enumerate((("rendered footage", "patches"), ("a real street", "patches_real"))):
        rows = [row for row in results[file]["rows"] if row["encoding"] == "differential"]
        path = sorted((100 * row["share_of_fp16"], row["delta_cosine_max"]) for row in rows)
        series.append(Line(f"differential, {name}", path, colour))
    int8 = next(row for row in data["rows"] if row["encoding"] == "int8")
    series.append(Line("int8", [(100 * int8["share_of_fp16"], int8["delta_cosine_max"])], 3))
    small = [row for row in data["rows"] if row["share_of_fp16"] <= data["share_of_fp16_goal"]]
    best = max(small, key=lambda row: row["share_of_fp16"])
    met = "is met" if data["goal_met"] else "is not met"
    return Section(
        finding=(
            f"At ε = {best['epsilon']:g} patches take {percent(best['share_of_fp16'])} of their fp16 size and "
            f"{count(best['answers_changed']) if best['answers_changed'] else 'none'} of {best['answers']} answers "
            f"changes, but a single cosine moves by up to {best['delta_cosine_max']:.3f}. int8 takes "
            f"{percent(int8['share_of_fp16'])} and moves none by more than "
            f"{math.ceil(1e4 * int8['delta_cosine_max']) / 1e4:g}."
        ),
        headline=(percent(best["share_of_fp16"]), "of the patches' size, same answers"),
        chart=lines(
            series,
            title="Error of cosines by size of the stored patches",
            x_label="stored size, % of fp16",
            x_text=lambda value: f"{value:g} %",
            y_text=lambda value: f"{value:g}",
            x_goal=100 * data["share_of_fp16_goal"],
            y_goal=data["delta_cosine_goal"],
        ),
        reading=(
            "Largest change of a cosine between patch and question, by stored size; each dot is one ε. Lower left is "
            "better, dashed lines are the goals."
        ),
        limit=(
            f"The goal of {percent(data['share_of_fp16_goal'])} at {data['delta_cosine_goal']:g} {met}: the camera's "
            f"own noise moves a cosine by up to {data['still_delta_cosine']['1']:.3f} from one second to the next."
        ),
    )


def _loading(results: Results) -> Section:
    rows: list[dict[str, Any]] = results["patches"]["loading"]
    table = Table(["patches", "encoding", "file", "load", "patches a second", "of a plain read"], [])
    for row in rows:
        shape = " × ".join(map(str, [row["frames"], *row["shape"]]))
        name = row["encoding"].replace("differential with ", "")
        table.rows.append(
            [
                shape,
                name,
                size(row["file_bytes"]),
                seconds(row["load_cold_seconds"]),
                speed(row["patch_bytes_per_second"]),
                percent(row["share_of_plain_read"]),
            ]
        )
    plain = [row for row in rows if row["encoding"] == "fp16"]
    tight = [row for row in rows if row["encoding"].startswith("differential")][-1]
    return Section(
        finding=(
            f"fp16 patches load at {speed(min(row['patch_bytes_per_second'] for row in plain))}, "
            f"{percent(min(row['share_of_plain_read'] for row in plain))} or more of the speed of reading the same "
            f"files. Full-size differential patches come at {speed(tight['patch_bytes_per_second'])}, because only "
            "what changes is read."
        ),
        table=table,
        reading=(
            "Seconds with nothing in the page cache. A row of patches is frames × patches × dimension; ε is "
            "differential. The last column compares with reading the same files and nothing else."
        ),
        limit="int8 and differential patches have to be unpacked, which takes longer than reading their smaller files.",
    )


def _desk(results: Results) -> Section:
    data = results["desk"]
    names = {
        "first_page": "first page",
        "search_list": "list of results",
        "next_page": "next page of results",
        "thumbnail": "thumbnail",
    }
    rows = [
        [text, *(f"{data[name][key]:,.0f} ms" for key in ("mean_cpu_ms", "median_ms", "p95_ms"))]
        for name, text in names.items()
    ]
    busy = data["search_list"]["mean_cpu_ms"]
    return Section(
        finding=(
            f"A search through {count(data['frames'])} frames takes the desk {busy:,.0f} ms of CPU time, a thumbnail "
            f"{data['thumbnail']['mean_cpu_ms']:,.0f} ms."
        ),
        table=Table(["request", "CPU time (mean)", "time (median)", "time (95 %)"], rows),
        reading="Requests of one client over HTTP on loopback; less is better.",
        limit="Aims on an idle machine: first page 1 s, list of results 300 ms, thumbnails 100 ms (95 %).",
    )


SECTIONS = (
    SectionSpec(
        "dks", _SPEED, "Keyframes (DKS)", "How fast are keyframes selected?", ("dks",), _dks, ("keyframes", "ask")
    ),
    SectionSpec(
        "model",
        _SPEED,
        "DFM and prefill",
        "What does the model cost as a question grows?",
        ("model",),
        _model,
        ("ask", "dks"),
    ),
    SectionSpec(
        "ask", _SPEED, "A question", "How long does a whole question take?", ("ask",), _ask, ("model", "service")
    ),
    SectionSpec(
        "service",
        _SPEED,
        "Service",
        "How many clients can one model service answer?",
        ("service",),
        _service,
        ("ask", "model"),
    ),
    SectionSpec("desk", _SPEED, "The desk", "How long does a browser wait?", ("desk",), _desk, ("ask", "dks")),
    SectionSpec(
        "loading", _SPEED, "Loading patches", "How fast do patches load?", ("patches",), _loading, ("patches", "model")
    ),
    SectionSpec(
        "micro", _QUALITY, "Answers", "What does micro get right?", ("micro",), _micro, ("keyframes", "alerts")
    ),
    SectionSpec(
        "keyframes",
        _QUALITY,
        "Evidence",
        "Do the keyframes show the evidence?",
        ("micro",),
        _keyframes,
        ("micro", "dks"),
    ),
    SectionSpec(
        "selectors",
        _QUALITY,
        "Fixed cameras",
        "Which keyframes does a fixed camera need?",
        ("selectors",),
        selectors_section,
        ("keyframes", "dks"),
    ),
    SectionSpec(
        "readings",
        _QUALITY,
        "DFM and HiCo",
        "Which of the two papers reads footage better?",
        ("hico",),
        readings_section,
        ("micro", "patches"),
    ),
    SectionSpec("alerts", _QUALITY, "Alerts", "Can alerts be trusted?", ("alerts",), _alerts, ("live", "micro")),
    SectionSpec(
        "patches",
        _QUALITY,
        "Patches",
        "How small can patches be, and still be right?",
        ("patches", "patches_real"),
        _patches,
        ("loading", "micro"),
    ),
)
"""Sections in the order of the page."""
