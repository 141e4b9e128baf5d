"""`/v1/chat/completions` of `sightline serve`, as the official `openai` client of two users sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from index.records import parse_rfc3339
from pipeline.access.authentication import Authentication
from pipeline.access.caller import Grant
from pipeline.access.roles import Action, Role
from tests.support.desk import RunningDesk, rendered_store, running_desk
from tests.support.desk_access import PASSWORD

pytestmark = pytest.mark.system

QUESTION = "Where was the red dog?"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]


class Served:
    """A desk with users, and the API tokens of two of them."""

    def __init__(self, desk: RunningDesk, tokens: dict[str, str]) -> None:
        self.desk, self.tokens = desk, tokens

    def client(self, user: str) -> openai.OpenAI:
        """The client of a user."""
        return openai.OpenAI(base_url=f"{self.desk.url}/v1", api_key=self.tokens[user], max_retries=0, timeout=400)

    def records(self, **params: str) -> list[dict[str, Any]]:
        """The audit trail."""
        headers = {"Authorization": f"Bearer {self.tokens['ann']}"}
        found: list[dict[str, Any]] = self.desk.http.get("/audit", params=params, headers=headers).json()["items"]
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("desk")
    store = rendered_store(place / "rendered")
    authentication = Authentication(place / "state")
    authentication.users.add("ann", PASSWORD, [Grant("*", Role.ADMIN)])
    authentication.users.add("bob", PASSWORD, [Grant("camera-2", Role.INVESTIGATOR)])
    authentication.users.add("eve", PASSWORD, [Grant("*", Role.VIEWER)])
    tokens = {user: authentication.tokens.make(user, "test", tuple(Action), 1)[1] for user in ("ann", "bob", "eve")}
    authentication.close()
    with running_desk(store, place / "state") as desk:
        yield Served(desk, tokens)


def extension(done: Any) -> dict[str, Any]:
    """The field `sightline` of a completion."""
    found: dict[str, Any] = (done.model_extra or {})["sightline"]
    return found


def test_an_answer_and_its_chunks_are_those_of_the_page(served: Served) -> None:
    where = {"streams": ["camera-1"], "options": ["door", "gate"], "k": 4}
    with served.client("ann") as client:
        done = client.chat.completions.create(model="micro", messages=ASKED, extra_body={"sightline": where})
        text, reasons, usage, beside = "", [], None, None
        with client.chat.completions.create(
            model="micro",
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"sightline": where},
        ) as stream:
            for chunk in stream:
                usage, beside = chunk.usage or usage, (chunk.model_extra or {}).get("sightline") or beside
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reasons += [choice.finish_reason] if choice.finish_reason else []
    headers = {"Authorization": f"Bearer {served.tokens['ann']}"}
    body = {"question": QUESTION, "streams": ["camera-1"], "options": ["door", "gate"], "k": 4}
    events = served.desk.events("POST", "/ask", json=body, headers=headers)
    selected, answer = events[0][1], events[-1][1]
    assert done.choices[0].message.content == text == answer["answer"]
    assert reasons == [done.choices[0].finish_reason] == ["stop"]
    assert done.usage is not None
    assert usage is not None
    assert usage == done.usage
    assert usage.completion_tokens == 1  # `door` and `gate` are words of micro
    assert usage.prompt_tokens > extension(done)["usage"]["visual_tokens"] == answer["visual_tokens"]
    assert extension(done)["usage"]["frames"] == answer["frames"]
    assert [(key["stream_id"], parse_rfc3339(key["captured_at"])) for key in extension(done)["keyframes"]] == [
        (key["stream_id"], parse_rfc3339(key["captured_at"])) for key in selected["keyframes"]
    ]
    assert sum(extension(done)["probabilities"]) == pytest.approx(1)
    assert extension(done)["probabilities"] == list(answer["probabilities"].values())
    assert beside is not None
    assert beside["keyframes"] == extension(done)["keyframes"]
    assert any("micro" in notice or "rendered" in notice for notice in extension(done)["notices"])


def test_a_short_answer_says_so_and_a_seed_repeats_it(served: Served) -> None:
    where = {"sightline": {"streams": ["camera-1"], "k": 2}}
    with served.client("ann") as client:
        short = client.chat.completions.create(model="micro", messages=ASKED, max_tokens=1, extra_body=where)
        drawn = [
            client.chat.completions.create(
                model="micro", messages=ASKED, temperature=1.5, seed=3, top_p=0.5, extra_body=where
            )
            for _ in range(2)
        ]
    assert (short.choices[0].finish_reason, short.usage and short.usage.completion_tokens) == ("length", 1)
    assert drawn[0].choices[0].message.content == drawn[1].choices[0].message.content
    assert "top_p had no effect: the limit of the checkpoint applies." in extension(drawn[0])["notices"]


def test_a_user_asks_about_the_own_streams_only(served: Served) -> None:
    with served.client("bob") as client:
        done = client.chat.completions.create(model="micro", messages=ASKED)
        assert {key["stream_id"] for key in extension(done)["keyframes"]} == {"camera-2"}
        told = []
        for name in ("camera-1", "camera-9"):
            with pytest.raises(openai.NotFoundError) as refused:
                client.chat.completions.create(
                    model="micro", messages=ASKED, extra_body={"sightline": {"streams": [name]}}
                )
            error = refused.value
            assert (error.code, error.param) == ("unknown_stream", "sightline.streams")
            told.append(str(error).replace(name, "NAME"))
        assert told[0] == told[1]
        assert "camera-2" in told[0]
    with served.client("ann") as client:
        done = client.chat.completions.create(model="micro", messages=ASKED)
        assert extension(done)["usage"]["frames"] > 60  # both cameras


def test_what_was_asked_is_in_the_history_and_in_the_audit_trail(served: Served) -> None:
    question = "What was at the gate?"
    with served.client("bob") as client:
        client.chat.completions.create(model="micro", messages=[{"role": "user", "content": question}])
    headers = {"Authorization": f"Bearer {served.tokens['bob']}"}
    newest = served.desk.http.get("/questions", headers=headers).json()["items"][0]
    assert (newest["question"], newest["state"], newest["streams"]) == (question, "done", ["camera-2"])
    record = served.records(user="bob")[0]
    assert (record["action"], record["via"], record["streams"]) == ("ask", "token", ["camera-2"])
    assert record["detail"]["question"] == question
    assert served.tokens["bob"] not in str(record)


def test_refusals_are_the_clients_own_errors(served: Served) -> None:
    with (
        openai.OpenAI(base_url=f"{served.desk.url}/v1", api_key="sl_wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    with served.client("eve") as viewer:
        with pytest.raises(openai.PermissionDeniedError, match="may not ask"):
            viewer.chat.completions.create(model="micro", messages=ASKED)
        with pytest.raises(openai.PermissionDeniedError, match="may not ask"):
            viewer.models.list()
    with served.client("ann") as client:
        (listed,) = client.models.list()
        assert (listed.id, client.models.retrieve("micro")) == ("micro", listed)
        with pytest.raises(openai.NotFoundError) as unknown:
            client.models.retrieve("gpt-4")
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=ASKED)
        with pytest.raises(openai.BadRequestError) as invalid:
            client.chat.completions.create(model="micro", messages=ASKED, n=2)
        assert (invalid.value.code, invalid.value.param) == ("invalid_value", "n")
        where = {"sightline": {"start": "2030-01-01T00:00:00Z"}}
        with pytest.raises(openai.NotFoundError) as empty:
            client.chat.completions.create(model="micro", messages=ASKED, extra_body=where)
        assert (empty.value.code, empty.value.param) == ("empty_window", "sightline")


def test_a_client_that_leaves_ends_the_work(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.tokens['ann']}"}
    body = {"model": "micro", "messages": [{"role": "user", "content": "Who left?"}], "stream": True}
    with (
        httpx.Client(base_url=served.desk.url, headers=headers, timeout=400, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        assert reply.status_code == 200
        next(reply.iter_bytes())
    newest = served.desk.http.get("/questions", headers=headers).json()["items"][0]
    for _ in range(600):
        newest = served.desk.http.get(f"/questions/{newest['id']}", headers=headers).json()
        if newest["state"] != "running":
            break
    assert newest["question"] == "Who left?"
    assert newest["state"] in ("done", "cancelled")  # an answer of one word may be complete by then
