"""Parsers of text from others take time linear in its length: eight times the text takes about eight times as long."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from index.errors import SightlineError, UsageError, mask_url, shown_text
from index.records import parse_time
from index.schemas import check_stream_id
from ingest.kafka.dead_letters import ATTEMPT, attempt_of
from ingest.live.source import foreign_entry
from ingest.messages import parse_alert, parse_dead_letter, parse_segment
from ingest.segments.names import parse_name
from ingest.sources.naming import NamePattern, read_name, recognize_layout, stream_id_of, time_in_name
from ingest.sources.url_policy import UrlPolicy, check_url, split_url
from pipeline.audit.record import AuditRecord
from pipeline.evaluation.benchmarks.subtitles import read_subtitles
from pipeline.times import parse_day_time, understand_time

_SHORT, _TIMES = 6_000, 8
"""Length of the shorter text; the longer one is this many times as long."""
_MOST = 24
"""Largest ratio of the times: 8 if linear, 64 if quadratic."""
_FREE_SECONDS = 0.05
"""CPU time that is always allowed; what takes less is not measured well."""

_NAMES = NamePattern.parse("{stream}/{date}/{hour}-{minute}-{second}.mp4")
_POLICY = UrlPolicy(schemes=frozenset({"http", "https", "rtsp"}), private=True)
_UTC = datetime(2024, 3, 1, tzinfo=UTC)

UNITS = {
    "letters": "a",
    "digits": "1",
    "blanks": " ",
    "slashes": "/",
    "folders": "a/",
    "dots": "a.",
    "dashes": "-a",
    "schemes": "a://",
    "users": "http://a:b@",
    "at": "@",
    "values": "password=",
    "assignments": "key =",
    "percents": "%25",
    "colons": "1:",
    "times": "2024-03-01T08-00-00Z_",
    "epochs": "1709280000.",
    "brackets": "[",
    "quotes": '"',
    "backslashes": "\\\\",
    "nests": "[{",
    "ago": "1 day ago ",
    "bearer": "Bearer a",
    "tokens": "sl_aaaaaaaa_",
    "marks": "e\u0301",
    "nul": "\0",
}


def _json(parse: Callable[[bytes], Any]) -> Callable[[str], Any]:
    return lambda text: [parse(text.encode()), parse(b'{"version": 1, "stream": "' + text.encode() + b'"}')]


def _subtitles(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.srt", "a.json"):
            path = Path(folder, name)
            path.write_text(f"00:00:01,000 --> 00:00:02,000\n{text}\n\n{text} --> {text}\n", "utf-8", "replace")
            read_subtitles(path)
        path.write_text(text, "utf-8", "replace")
        read_subtitles(path)


PARSERS: dict[str, Callable[[str], Any]] = {
    "mask_url": mask_url,
    "mask_url of a URL": lambda text: mask_url(f"rtsp://camera/{text}"),
    "shown_text": shown_text,
    "check_stream_id": check_stream_id,
    "stream_id_of": stream_id_of,
    "parse_time": lambda text: parse_time(text, "start"),
    "parse_name": lambda text: parse_name(f"{text}/2024-03-01/2024-03-01T08-00-00.000000Z_10.000000.mp4"),
    "parse_name of text": parse_name,
    "read_name": lambda text: read_name(f"/archive/{text}.mp4"),
    "read_name by a pattern": lambda text: read_name(f"/archive/{text}/20240301/08-00-00.mp4", pattern=_NAMES),
    "time_in_name": time_in_name,
    "recognize_layout": lambda text: recognize_layout([f"/archive/{text}.mp4"]),
    "a pattern of names": NamePattern.parse,
    "check_url": lambda text: check_url(f"http://camera/{text}", _POLICY, resolve=lambda *_: ["192.0.2.7"]),
    "check_url of a host": lambda text: check_url(f"rtsp://{text}/x", _POLICY, resolve=lambda *_: ["192.0.2.7"]),
    "split_url": lambda text: split_url(text, "http://camera/list.m3u8"),
    "foreign_entry": lambda text: [foreign_entry(text.encode()), foreign_entry("\n".join(text).encode())],
    "read_subtitles": _subtitles,
    "parse_segment": _json(parse_segment),
    "parse_dead_letter": _json(parse_dead_letter),
    "parse_alert": _json(parse_alert),
    "attempt_of": lambda text: attempt_of([(ATTEMPT, text.encode())]),
    "understand_time": lambda text: understand_time(text, "--from", now=_UTC),
    "parse_day_time": lambda text: parse_day_time(text, None),
    "an audit record": lambda text: AuditRecord("anna", "search", detail={"text": text}),
}


def _seconds(parse: Callable[[str], Any], text: str) -> float:
    """CPU time of a call. Errors of the text are its result; any other error fails the test."""
    began = time.thread_time()
    with suppress(SightlineError, ValueError):
        parse(text)
    return time.thread_time() - began


@pytest.mark.parametrize("name", PARSERS)
def test_the_time_of_a_parser_is_linear_in_the_text(name: str) -> None:
    parse = PARSERS[name]
    for kind, unit in UNITS.items():
        short = unit * (_SHORT // len(unit))
        after = _seconds(parse, short * _TIMES)
        if after < _FREE_SECONDS:
            continue
        before, after = min(_seconds(parse, short) for _ in range(3)), min(after, _seconds(parse, short * _TIMES))
        assert after < _MOST * before + _FREE_SECONDS, f"{kind}: {before:.4f} s, eight times as long {after:.4f} s"


@pytest.mark.parametrize("digits", [5_000, 1_000_000])
def test_integers_of_any_length_are_a_typed_error(digits: int) -> None:
    number = "9" * digits
    with pytest.raises(UsageError):
        parse_time(number, "start")
    with pytest.raises(SightlineError):
        parse_segment(f'{{"version": 1, "size": {number}}}'.encode())
    with pytest.raises(SightlineError):
        parse_segment(f'{{"version": {number}}}'.encode())
    assert attempt_of([(ATTEMPT, number.encode())]) == 0
    assert parse_name(f"gate/2024-03-01/2024-03-01T08-00-00.000000Z_{number}.000000.mp4") is None
    with suppress(SightlineError):  # a port that is none
        check_url(f"http://camera:{number}/x", _POLICY, resolve=lambda *_: ["192.0.2.7"])
