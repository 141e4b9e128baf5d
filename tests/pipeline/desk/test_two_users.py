"""What a user may not see does not exist: every function of the desk, for any grants, against what is not there at all.

Two properties. A name that the caller may not see gives the same error, in the same words, as a name that nobody has.
And a call without names gives what an administrator gets who names exactly the streams that the caller may see, so no
list, count, ranking or percentile depends on another stream.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client
from pydantic import BaseModel

from index.errors import SightlineError
from index.records import rfc3339
from pipeline.access.caller import Caller, Grant
from pipeline.access.database import StateDatabase
from pipeline.access.roles import Action, Role
from pipeline.access.schema import MIGRATIONS
from pipeline.desk import asking, moments, search, standing, streams, verifying
from pipeline.desk.asking import AskQuery
from pipeline.desk.desk import Desk, DeskSettings
from pipeline.desk.heatmap import heat_map
from pipeline.desk.playing import play
from pipeline.desk.search import Likeness, SearchQuery
from pipeline.evidence import exports, holding
from pipeline.evidence.exports import ExportQuery
from pipeline.mcp.server import make_server
from tests.support.desk_app import make_store
from tests.support.records import BEGAN, SECOND

NAMES = ("gate", "gate-2", "Gate", "yard", "gаte", "gate-20")
"""Names that nest, and that differ in case or in a letter of another alphabet."""
NOBODY = "nobody-has-it"
ERROR = re.compile(r"[A-Z]\w+: ")
PATTERNS = ["gate", "gate-2", "gate-*", "gate*", "Gate", "yard", "[gy]ate", "*", "gate-?", "y*", "gаte"]
AT = BEGAN + 5 * SECOND
WHOLE = Caller("eve", (Grant("*", Role.ADMIN),))
"""The user before an administrator took roles away; everything here is hers, so that only streams decide."""


class Opened:
    """A desk, and what the user did at it."""

    def __init__(self, place: Path) -> None:
        make_store(place / "store", NAMES, micro=True, seconds=12)
        self.database = StateDatabase(place / "desk.sqlite", MIGRATIONS)
        self.desk = Desk(
            DeskSettings(store=str(place / "store"), state=place / "state", device="cpu"), database=self.database
        )
        self.questions = {name: self._ask(WHOLE, name) for name in NAMES}
        self.standing = {name: standing.add(self.desk, WHOLE, f"a dog at {name}", streams=[name]).id for name in NAMES}
        self.holds = {
            name: holding.place_hold(self.desk, WHOLE, name, AT, AT + SECOND, reason="a case")[0].id for name in NAMES
        }

    def _ask(self, caller: Caller, name: str) -> str:
        run = asking.ask(self.desk, caller, AskQuery(question="Where was the red dog?", streams=[name], k=1))
        assert run.wait(600)
        assert run.state == "done", run.error
        return run.id

    def close(self) -> None:
        """Release everything."""
        self.desk.close()
        self.database.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    made = Opened(tmp_path_factory.mktemp("desk"))
    yield made
    made.close()


def export(desk: Desk, caller: Caller, name: str, kind: Any) -> Any:
    return exports.begin_export(desk, caller, ExportQuery(kind=kind, stream_id=name, start=AT, end=AT + SECOND)).kind


def mcp(desk: Desk, caller: Caller, tool: str, **arguments: Any) -> Any:
    """The reply of a tool of the MCP server."""

    async def call() -> Any:
        async with Client(make_server(desk, lambda: caller)) as client:
            found = await client.call_tool(tool, arguments)
            return [str(found.is_error), *(getattr(each, "text", "picture") for each in found.content)]

    return asyncio.run(call())


NAMED: dict[str, Callable[[Opened, Caller, str], Any]] = {
    "scope": lambda o, c, name: sorted(o.desk.scope(c, [name])),
    "ask scope": lambda o, c, name: sorted(o.desk.scope(c, [name], Action.ASK)),
    "coverage": lambda o, c, name: streams.coverage(o.desk, c, name, start=None, end=None),
    "search": lambda o, c, name: search.search(o.desk, c, SearchQuery(text="a red dog", streams=[name])),
    "search for a pattern": lambda o, c, name: search.search(
        o.desk, c, SearchQuery(text="a red dog", streams=[f"{name[:3]}*{name[3:]}"])
    ),
    "more like this": lambda o, c, name: search.search(o.desk, c, SearchQuery(like=Likeness(name, AT))),
    "part of a picture": lambda o, c, name: search.search(
        o.desk, c, SearchQuery(like=Likeness(name, AT, (0.1, 0.1, 0.4, 0.4)), streams=[name])
    ),
    "thumbnail": lambda o, c, name: len(moments.thumbnail(o.desk, c, name, AT, 32)),
    "picture": lambda o, c, name: len(moments.picture(o.desk, c, name, AT)),
    "no such frame": lambda o, c, name: moments.picture(o.desk, c, name, AT + 1),
    "frames": lambda o, c, name: moments.frames(o.desk, c, name, text="a red dog"),
    "moment": lambda o, c, name: moments.moment(o.desk, c, name, AT),
    "play": lambda o, c, name: play(o.desk, c, name, AT),
    "ask": lambda o, c, name: asking.ask(o.desk, c, AskQuery(question="Who?", streams=[name], k=1)),
    "verify": lambda o, c, name: verifying.verify(o.desk, c, "a red dog", [verifying.Span(name, AT, AT)]).streams,
    "heatmap": lambda o, c, name: heat_map(o.desk, c, name, AT, o.questions.get(name, NOBODY)),
    "question": lambda o, c, name: asking.read_question(o.desk, c, o.questions.get(name, NOBODY)),
    "forget question": lambda o, c, name: (
        None if name in c.visible(NAMES) else asking.forget_question(o.desk, c, o.questions.get(name, NOBODY))
    ),
    "clip": lambda o, c, name: export(o.desk, c, name, "clip"),
    "sheet": lambda o, c, name: export(o.desk, c, name, "sheet"),
    "evidence": lambda o, c, name: export(o.desk, c, name, "evidence"),
    "hold": lambda o, c, name: holding.place_hold(o.desk, c, name, AT, AT, reason="none"),
    "release": lambda o, c, name: holding.release_hold(o.desk, c, o.holds.get(name, NOBODY), reason=""),
    "standing preview": lambda o, c, name: standing.preview(o.desk, c, "a dog", streams=[name]),
    "standing add": lambda o, c, name: standing.add(o.desk, c, "a dog", streams=[name], webhook="http://10.0.0.1/"),
    "standing history": lambda o, c, name: standing.history(o.desk, c, o.standing.get(name, NOBODY)),
    "standing mute": lambda o, c, name: standing.change(o.desk, c, o.standing.get(name, NOBODY), muted=False),
    "mcp search": lambda o, c, name: mcp(o.desk, c, "search", text="a red dog", streams=[name]),
    "mcp moment": lambda o, c, name: mcp(o.desk, c, "moment", stream=name, at=rfc3339(AT)),
    "mcp ask": lambda o, c, name: mcp(o.desk, c, "ask", question="Who?", streams=[name]),
    "mcp keyframes": lambda o, c, name: mcp(o.desk, c, "keyframes", question_id=o.questions.get(name, NOBODY)),
}
"""Functions that take the name of a stream, or of something of one. None changes what a later call sees."""

WORK = {"ask", "verify", "clip", "sheet", "evidence", "part of a picture", "standing add", "mcp ask", "mcp keyframes"}
"""Functions that begin work; they are not called for streams that the user may see."""

LISTS: dict[str, Callable[[Opened, Caller, list[str] | None], Any]] = {
    "streams": lambda o, c, _: streams.list_streams(o.desk, c),
    "search": lambda o, c, names: search.search(o.desk, c, SearchQuery(text="a red dog", streams=names)),
    "more like this": lambda o, c, names: search.search(
        o.desk, c, SearchQuery(text="a red dog", min_percentile=50, streams=names), limit=3
    ),
    "preview": lambda o, c, names: standing.preview(o.desk, c, "a dog", streams=names),
    "standing": lambda o, c, _: standing.list_standing(o.desk, c),
    "holds": lambda o, c, _: holding.list_holds(o.desk, c),
    "questions": lambda o, c, _: asking.list_questions(o.desk, c),
    "mcp streams": lambda o, c, _: mcp(o.desk, c, "list_streams"),
    "mcp search": lambda o, c, names: mcp(o.desk, c, "search", text="a red dog", streams=names),
}
"""Functions that list; those that take names get them from an administrator."""


def outcome(call: Callable[[], Any]) -> str:
    """A reply as text, or the class and the words of an error; without the times that calls took."""
    try:
        found = call()
    except SightlineError as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(found, BaseModel):
        found = found.model_dump(mode="json")
    text = found if isinstance(found, str) else json.dumps(found, default=str, ensure_ascii=False, sort_keys=True)
    return re.sub(r'\\?"seconds\\?": [\d.e-]+', "", text)


def mentioned(text: str) -> set[str]:
    """The streams that a text names."""
    return {name for name in NAMES if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)}


grants = st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from(list(Role))), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(grants, st.sampled_from(NAMES), st.sampled_from(sorted(NAMED)))
def test_a_name_without_a_grant_is_a_name_that_nobody_has(
    opened: Opened, given_to: list[tuple[str, Role]], name: str, function: str
) -> None:
    eve = Caller("eve", tuple(Grant(pattern, role) for pattern, role in given_to))
    call = NAMED[function]
    visible = {*eve.visible(NAMES)}
    if name in visible and function in WORK:
        return
    found = outcome(partial(call, opened, eve, name))
    if name in visible:
        assert mentioned(found) <= visible
        return
    nobody = outcome(partial(call, opened, eve, NOBODY))
    if function == "search for a pattern":
        found = found.replace(f"{name[:3]}*{name[3:]}", "PATTERN")
        nobody = nobody.replace(f"{NOBODY[:3]}*{NOBODY[3:]}", "PATTERN")
        if "UnknownStream" not in found:  # it matched visible streams too
            assert mentioned(found) <= visible
            return
    named = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    hint = re.compile(r"did you mean ([^?]+)\? It has")  # a visible name that is like the typed one
    assert mentioned(named.sub("", found)) <= visible
    assert hint.sub("it has", named.sub("NAME", found)) == nobody.replace(NOBODY, "NAME")


@settings(max_examples=30, deadline=None)
@given(grants, st.sampled_from(sorted(LISTS)))
def test_a_list_is_that_of_the_own_streams_alone(
    opened: Opened, given_to: list[tuple[str, Role]], function: str
) -> None:
    eve = Caller("eve", tuple(Grant(pattern, role) for pattern, role in given_to))
    action = Action.STANDING if function == "preview" else Action.VIEW
    visible = eve.visible(NAMES, action)
    call = LISTS[function]
    found = outcome(partial(call, opened, eve, None))
    assert mentioned(found) <= {*eve.visible(NAMES)}
    if visible and function in ("search", "more like this", "preview", "mcp search"):
        assert found == outcome(partial(call, opened, WHOLE, visible))


def test_the_user_saw_what_the_properties_compare(opened: Opened) -> None:
    """The functions work for somebody who may use them, so that equal errors are no accident."""
    called = {name: call for name, call in NAMED.items() if name not in WORK}
    works = {name for name, call in called.items() if not ERROR.match(outcome(partial(call, opened, WHOLE, "yard")))}
    assert works >= {"scope", "coverage", "search", "more like this", "thumbnail", "picture", "frames", "moment"}
    assert works >= {"question", "standing preview", "standing history", "standing mute", "mcp search"}
    for name, call in LISTS.items():
        if name == "preview":  # counts of scores, which name no stream
            continue
        assert mentioned(outcome(partial(call, opened, WHOLE, None))) == set(NAMES), name
