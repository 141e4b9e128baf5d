"""Exports and holds over HTTP: jobs, downloads, whose they are, and what the trail has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.errors import FootageHeld
from index.records import rfc3339
from index.store import Store
from pipeline.access.caller import Grant
from pipeline.access.roles import Role
from pipeline.access.sessions import csrf_token
from pipeline.evidence.verification import verify_bundle
from pipeline.web.guard import session_cookie
from tests.support.desk_server import ServedDesk, served_desk
from tests.support.played import decoded, record_segments, render_pattern, store_file
from tests.support.records import BEGAN, PAIR, SECOND


def at(second: float) -> str:
    """A time, `second` seconds after the footage begins."""
    return rfc3339(BEGAN + round(second * SECOND))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_pattern(tmp_path_factory.mktemp("film") / "gate.mp4", seconds=20)


@pytest.fixture(scope="module")
def served(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDesk]:
    folder = tmp_path_factory.mktemp("served")
    store = Store.create(folder / "store", PAIR)
    for name in ("gate", "gate-2", "yard"):
        store_file(store, film, name, 20)
    place = record_segments(folder / "tape", film, "yard", 10)
    with served_desk(store.url, folder / "state", recordings=(place,)) as desk:
        for name, pattern, role in (
            ("root", "*", Role.ADMIN), ("ann", "gate", Role.INVESTIGATOR), ("eve", "gate", Role.INVESTIGATOR),
            ("vic", "gate", Role.VIEWER),
        ):  # fmt: skip
            desk.authentication.users.add(name, "correct horse battery", (Grant(pattern, role),))
        yield desk


def client_of(served: ServedDesk, name: str) -> httpx.Client:
    """A client in a new session of a user."""
    port = httpx.URL(served.url).port
    assert port is not None
    chosen = served.authentication.sessions.begin(name, "session")
    return httpx.Client(
        base_url=f"{served.url}/api/v1", timeout=300, headers={"X-CSRF-Token": csrf_token(chosen)},
        cookies={session_cookie(secure=False, port=port): chosen},
    )  # fmt: skip


def finished(client: httpx.Client, reply: httpx.Response) -> dict[str, Any]:
    """The job of a reply, when it has ended."""
    assert reply.status_code == 202, reply.text
    for _ in range(6000):
        job: dict[str, Any] = client.get(f"/jobs/{reply.json()['job']}").json()
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        time.sleep(0.05)
    raise AssertionError(f"the job does not end: {job}")


def test_a_clip_a_sheet_and_a_bundle(served: ServedDesk, tmp_path: Path) -> None:
    with client_of(served, "ann") as client:
        served.audited.clear()
        files = {}
        for kind in ("clip", "sheet", "evidence"):
            body = {"kind": kind, "streams": ["gate"], "start": at(4), "end": at(9)}
            job = finished(client, client.post("/exports", json=body))
            assert job["state"] == "done", job
            got = client.get(job["result"]["download"].removeprefix("/api/v1"))
            assert got.status_code == 200
            assert len(got.content) == job["result"]["bytes"]
            assert job["result"]["name"] in got.headers["content-disposition"]
            files[kind] = (got.headers["content-type"], got.content)
        assert files["clip"][0] == "video/mp4"
        assert len(decoded(files["clip"][1])[1]) == 50
        assert files["sheet"][0] == "image/jpeg"
        assert files["sheet"][1][:2] == b"\xff\xd8"
        (tmp_path / "case.zip").write_bytes(files["evidence"][1])
        manifest = verify_bundle(tmp_path / "case.zip").manifest
        assert (manifest.created_by, manifest.stream_id, manifest.start) == ("ann", "gate", at(4))
        assert [str(record[1]) for record in served.audited] == ["export"] * 6
    with client_of(served, "eve") as other:
        export = job["result"]["download"].removeprefix("/api/v1")
        assert other.get(export).status_code == 404, "it is another user's"


def test_boxes_are_removed_from_a_clip(served: ServedDesk) -> None:
    blur = [{"start": at(4), "end": at(9), "box": [0.25, 0.25, 0.75, 0.75]}]
    with client_of(served, "ann") as client:
        body = {"kind": "clip", "stream": "gate", "start": at(4), "end": at(9), "blur": blur}
        job = finished(client, client.post("/exports", json=body))
        assert decoded(client.get(job["result"]["download"].removeprefix("/api/v1")).content)[0] == "h264"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"streams": ["gate-2"]}, 404),
        ({"streams": ["nothing"]}, 404),
        ({"streams": ["gate", "gate"], "stream": "yard"}, 422),
        ({"streams": None}, 422),
        ({"start": None}, 422),
        ({"end": at(4)}, 422),
        ({"end": at(90_000)}, 422),
        ({"kind": "everything"}, 422),
        ({"question_id": "nothing"}, 404),
        ({"blur": [{"start": at(4), "end": at(9), "box": [0.5, 0, 0.4, 1]}]}, 422),
        ({"blur": [{"start": at(4), "end": at(9), "box": [0, 0, 2, 1]}]}, 422),
    ],
)  # fmt: skip
def test_what_is_refused(served: ServedDesk, change: dict[str, Any], status: int) -> None:
    body = {"kind": "clip", "streams": ["gate"], "start": at(4), "end": at(9), **change}
    with client_of(served, "ann") as client:
        reply = client.post("/exports", json={name: value for name, value in body.items() if value is not None})
        assert (reply.status_code, reply.json()["status"]) == (status, status), reply.text


def test_viewers_export_and_hold_nothing(served: ServedDesk) -> None:
    with client_of(served, "vic") as client:
        body = {"kind": "clip", "stream": "gate", "start": at(4), "end": at(9)}
        assert client.post("/exports", json=body).status_code == 403
        assert client.get("/exports/abcdefghijklmnop").status_code == 403
        assert client.get("/holds").status_code == 403
        assert client.post("/holds", json={**body, "reason": "x"}).status_code in (403, 422)
    with client_of(served, "ann") as client:
        for wrong in ("abcdefghijklmnop", "..%2f..%2fdesk", "x"):
            assert client.get(f"/exports/{wrong}").status_code == 404


def test_hold_and_release(served: ServedDesk) -> None:
    stretch = {"start": at(4), "end": at(9), "reason": "case 7"}
    with client_of(served, "ann") as ann, client_of(served, "root") as root:
        hidden = ann.post("/holds", json={"stream": "yard", **stretch})
        assert hidden.status_code == 404
        served.audited.clear()
        placed = ann.post("/holds", json={"stream": "gate", **stretch})
        assert placed.status_code == 201, placed.text
        hold = placed.json()
        assert (hold["by"], hold["reason"], hold["notices"]) == ("ann", "case 7", [])
        taped = root.post("/holds", json={"stream": "yard", **stretch}).json()
        assert [each["id"] for each in ann.get("/holds").json()["items"]] == [hold["id"]]
        assert {each["id"] for each in root.get("/holds").json()["items"]} == {hold["id"], taped["id"]}
        assert {s["stream_id"]: s["holds"] for s in root.get("/streams").json()["items"]} == {
            "gate": 1, "gate-2": 0, "yard": 1,
        }  # fmt: skip
        with pytest.raises(FootageHeld, match="held as evidence by ann"):
            Store.open(served.desk.store.url).forget("gate")
        assert ann.request("DELETE", f"/holds/{hold['id']}", json={"reason": "x"}).status_code == 403
        assert root.request("DELETE", f"/holds/{hold['id']}", json={}).status_code == 422
        assert root.request("DELETE", "/holds/nothing", json={"reason": "x"}).status_code == 404
        released = root.request("DELETE", f"/holds/{hold['id']}", json={"reason": "case closed"})
        assert released.status_code == 200, released.text
        assert root.request("DELETE", f"/holds/{taped['id']}", json={"reason": "too"}).status_code == 200
        assert root.get("/holds").json()["items"] == []
        noted = [(r[0].name, str(r[1]), r[3].get("reason")) for r in served.audited if str(r[1]) != "view"]
        assert noted == [
            ("ann", "hold", "case 7"), ("root", "hold", "case 7"), ("root", "release", "case closed"),
            ("root", "release", "too"),
        ]  # fmt: skip
