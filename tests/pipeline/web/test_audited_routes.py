"""The audit trail and the table of routes: each route that reads footage or changes something makes a record."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from index.records import rfc3339
from pipeline.web.routes.guarded import is_public
from tests.support.desk_access import PASSWORD
from tests.support.desk_app import API, DeskApp, desk_app
from tests.support.records import BEGAN, SECOND

SILENT = {
    "GET /api": "the reference",
    f"GET {API}": "the reference",
    "GET /openapi.json": "the schema",
    f"GET {API}/openapi.json": "the schema",
    f"GET {API}/streams": "names and times, no footage",
    f"GET {API}/streams/coverage": "times, no footage",
    f"GET {API}/stepper": "times and addresses; each picture is a record",
    f"GET {API}/questions": "the caller's own; asking was the record",
    f"GET {API}/questions/{{question_id}}": "the caller's own; asking was the record",
    f"GET {API}/jobs/{{job_id}}": "the caller's own; its begin was the record",
    f"GET {API}/jobs/{{job_id}}/events": "the caller's own; its begin was the record",
    f"GET {API}/standing": "texts of questions, no footage",
    f"GET {API}/standing/{{question_id}}": "times and addresses; each picture is a record",
    f"GET {API}/holds": "times, no footage",
    f"GET {API}/users": "names and roles",
    f"GET {API}/users/{{name}}/tokens": "names of tokens",
    "GET /v1/models": "the profile",
    "GET /v1/models/{model:path}": "the profile",
}
"""Routes that make no record, and why."""

AT = rfc3339(BEGAN + 5 * SECOND)
PICTURE = io.BytesIO()
Image.new("RGB", (32, 32), "blue").save(PICTURE, "PNG")


@dataclass(frozen=True)
class Call:
    """A request, and the action of the record that it must make."""

    action: str
    path: dict[str, str] = field(default_factory=dict)
    sent: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskApp]:
    made = desk_app(tmp_path_factory.mktemp("desk"), micro=True)
    yield made
    made.close()


def table(opened: DeskApp) -> dict[str, Any]:
    """The routes that need a caller, by method and path."""
    found = {}
    for route in opened.app.app.routes:
        if not is_public(route):
            found.update({f"{method} {route.path}": route for method in route.methods - {"HEAD"}})
    return found


def calls(opened: DeskApp, ann: dict[str, str]) -> dict[str, Call]:
    """One request of each route that makes a record; made in this order."""

    def posted(path: str, body: Any) -> Any:
        reply = opened.ask("POST", f"{API}{path}", headers=ann, json=body)
        assert reply.status_code in (200, 201, 202), reply.text
        return reply

    where = {"params": {"stream": "yard", "at": AT}}
    end = rfc3339(BEGAN + 10 * SECOND)
    posted("/ask", {"question": "Where was the red dog?", "streams": ["yard"], "k": 1})
    question = opened.ask("GET", f"{API}/questions", headers=ann).json()["items"][0]["id"]
    whole = opened.ask("GET", f"{API}/questions/{question}", headers=ann).json()
    key = whole["selected"]["keyframes"][0]["captured_at"]
    other = next(rfc3339(BEGAN + n * SECOND) for n in range(20) if rfc3339(BEGAN + n * SECOND) != key)
    standing = [posted("/standing", {"text": f"a {word} dog", "streams": ["yard"]}).json()["id"] for word in "ab"]
    hold = posted("/holds", {"stream": "yard", "start": AT, "end": end, "reason": "a case"}).json()["id"]
    sheet = {"kind": "sheet", "stream": "yard", "start": AT, "end": end}
    job = opened.desk.jobs.find(*_owner(opened, ann, posted("/exports", sheet).json()["job"]))
    while not job.ended:
        time.sleep(0.05)
    assert job.result is not None, job.error
    opened.authentication.users.add("bob", PASSWORD, [])
    token = opened.authentication.tokens.make("bob", "test", ("view",), 1)[0].prefix
    chat = {"model": "micro", "messages": [{"role": "user", "content": "Who?"}], "sightline": {"streams": ["yard"]}}
    moment = {"stream_id": "yard", "start": AT, "end": end}
    return {
        f"POST {API}/search": Call("search", sent={"json": {"text": "a red dog", "streams": ["yard"]}}),
        f"POST {API}/pictures": Call(
            "upload", sent={"content": PICTURE.getvalue(), "headers": {"content-type": "image/png"}}
        ),
        f"POST {API}/search/verify": Call("verify", sent={"json": {"text": "a red dog", "moments": [moment]}}),
        f"GET {API}/thumbnail": Call("thumbnails", sent=where),
        f"GET {API}/frame": Call("frame", sent=where),
        f"GET {API}/frames": Call("search", sent={"params": {"stream": "yard", "text": "a red dog"}}),
        f"GET {API}/moment": Call("moment", sent=where),
        f"POST {API}/ask": Call("ask", sent={"json": {"question": "Who?", "streams": ["yard"], "k": 1}}),
        "POST /v1/chat/completions": Call("ask", sent={"json": chat}),
        f"GET {API}/heatmap": Call("heatmap", sent={"params": {"stream": "yard", "at": other, "question": question}}),
        f"DELETE {API}/questions/{{question_id}}": Call("question.remove", {"question_id": question}),
        f"POST {API}/exports": Call("export", sent={"json": sheet}),
        f"GET {API}/exports/{{export_id}}": Call("export", {"export_id": str(job.result["id"])}),
        f"DELETE {API}/jobs/{{job_id}}": Call("job.cancel", {"job_id": job.id}),
        f"POST {API}/holds": Call("hold", sent={"json": {**_span(end), "reason": "a case"}}),
        f"DELETE {API}/holds/{{hold_id}}": Call("release", {"hold_id": hold}, {"json": {"reason": "closed"}}),
        f"POST {API}/standing": Call("standing.add", sent={"json": {"text": "a dog", "streams": ["yard"]}}),
        f"POST {API}/standing/preview": Call("standing.preview", sent={"json": {"text": "a dog", "streams": ["yard"]}}),
        f"PATCH {API}/standing/{{question_id}}": Call(
            "standing.mute", {"question_id": standing[0]}, {"json": {"muted": True}}
        ),
        f"DELETE {API}/standing/{{question_id}}": Call("standing.remove", {"question_id": standing[1]}),
        f"POST {API}/users": Call("users", sent={"json": {"name": "cid", "password": PASSWORD, "grants": []}}),
        f"PATCH {API}/users/{{name}}": Call("users", {"name": "bob"}, {"json": {"disabled": True}}),
        f"POST {API}/users/{{name}}/tokens": Call(
            "tokens.make", {"name": "ann"}, {"json": {"name": "x", "scopes": ["view"]}}
        ),
        f"DELETE {API}/users/{{name}}/tokens/{{token}}": Call("tokens", {"name": "bob", "token": token}),
        f"DELETE {API}/users/{{name}}": Call("users", {"name": "bob"}),
        f"GET {API}/audit": Call("audit"),
        f"GET {API}/audit/export": Call("audit"),
        f"POST {API}/session/password": Call(  # ends the session, so it is the last one
            "users.password", sent={"json": {"password": PASSWORD, "new_password": "a longer password"}}
        ),
    }


def _span(end: str) -> dict[str, str]:
    return {"stream": "gate-1", "start": AT, "end": end}


def _owner(opened: DeskApp, headers: dict[str, str], job: str) -> Any:
    caller = opened.authentication.of_session(headers["Cookie"].partition("=")[2], "")
    assert caller is not None
    return caller, job


def test_every_route_makes_a_record_or_says_why_not(opened: DeskApp) -> None:
    ann = opened.session("ann")
    made = calls(opened, ann)
    routes = set(table(opened))
    assert routes - set(SILENT) - set(made) - {f"GET {API}/play"} == set()  # play: tests/pipeline/web/test_media.py
    assert (set(SILENT) | set(made)) - routes == set()
    missing = []
    for name, call in made.items():
        method, _, path = name.partition(" ")
        before = len(opened.recorded())
        headers = {**ann, **call.sent.get("headers", {})}
        sent = {key: value for key, value in call.sent.items() if key != "headers"}
        reply = opened.ask(method, path.format(**call.path), headers=headers, **sent)
        assert reply.status_code < 300, (name, reply.text)
        new = opened.recorded()[before:]
        if not any(each.user == "ann" and each.action.startswith(call.action) for each in new):
            missing.append((name, [each.action for each in new]))
    assert missing == []


def test_routes_that_make_no_record_make_none(opened: DeskApp) -> None:
    ann = opened.session("ann")
    for name in SILENT:
        method, _, path = name.partition(" ")
        before = len(opened.recorded())
        filled = path.replace("{model:path}", "micro").replace("{name}", "ann")
        filled = filled.replace("{question_id}", "x").replace("{job_id}", "x")
        opened.ask(method, filled, headers=ann, params={"stream": "yard", "from": AT, "to": AT})
        assert len(opened.recorded()) == before, name
