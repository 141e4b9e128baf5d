"""`/v1/chat/completions` as the official `openai` client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr

from model.answerer import Answerer
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from tests.support.model_service import LENGTHS, QUESTION, Footage, Scripted, served

TOKEN = "a-token-of-twenty-or-so"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def footage() -> Footage:
    return Footage()


@pytest.fixture(scope="module")
def url(answerer: Answerer, footage: Footage) -> Iterator[str]:
    with served(ModelService(ServiceEngine(Scripted.of(answerer), footage), token=SecretStr(TOKEN))) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0, timeout=120) as opened:
        yield opened


def test_a_completion_about_footage(client: openai.OpenAI, footage: Footage) -> None:
    where = {"streams": ["front", "back"], "start": "2024-03-01T08:00:00Z", "k": 5}
    done = client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"sightline": where})
    assert footage.asked[-1] == {
        "question": QUESTION,
        "streams": ["front", "back"],
        "start": "2024-03-01T08:00:00Z",
        "end": None,
        "k": 5,
        "tau": None,
    }
    assert done.object == "chat.completion"
    assert done.model == "tiny"
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    beside = (done.model_extra or {})["sightline"]
    assert beside["usage"]["frames"] == sum(LENGTHS.values())
    assert beside["keyframes"][0] == {"stream_id": "back", "captured_at": "2024-03-01T08:00:00Z"}
    assert beside["notices"] == ["random weights"]


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    extra = {"sightline": {"streams": ["front"]}}
    whole = client.chat.completions.create(model="tiny", messages=ASKED, extra_body=extra)
    text, reasons, usage, beside = "", [], None, None
    with client.chat.completions.create(
        model="tiny", messages=ASKED, stream=True, stream_options={"include_usage": True}, extra_body=extra
    ) as stream:
        for chunk in stream:
            assert chunk.object == "chat.completion.chunk"
            usage = chunk.usage or usage
            beside = (chunk.model_extra or {}).get("sightline") or beside
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text.strip() == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    assert beside is not None
    assert beside["usage"]["frames"] == LENGTHS["front"]


def test_options_and_the_most_tokens(client: openai.OpenAI) -> None:
    extra = {"sightline": {"streams": ["front"], "options": ["red", "blue"]}}
    chosen = client.chat.completions.create(model="tiny", messages=ASKED, extra_body=extra)
    assert chosen.choices[0].message.content in ("red", "blue")
    assert chosen.choices[0].finish_reason == "stop"
    assert sum((chosen.model_extra or {})["sightline"]["probabilities"]) == pytest.approx(1)
    short = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1)
    assert short.choices[0].finish_reason == "length"


def test_without_the_extension_the_question_is_about_all_streams(client: openai.OpenAI, footage: Footage) -> None:
    parts: list[ChatCompletionMessageParam] = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    absent = client.chat.completions.create(model="tiny", messages=parts)
    null = client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"sightline": None})
    empty = client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"sightline": {}})
    assert (
        footage.asked[-3:]
        == [{"question": QUESTION, "streams": None, "start": None, "end": None, "k": None, "tau": None}] * 3
    )
    for done in (absent, null, empty):
        assert (done.model_extra or {})["sightline"]["usage"]["frames"] == sum(LENGTHS.values())
        assert done.choices[0].message.content == absent.choices[0].message.content


def test_parameters_without_effect_are_said(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0.3, top_p=0.5, seed=7, user="me", n=1, max_tokens=1
    )
    notices = (done.model_extra or {})["sightline"]["notices"]
    assert notices == ["random weights", "top_p had no effect: the limit of the checkpoint applies."]
    plain = client.chat.completions.create(model="tiny", messages=ASKED, temperature=0, max_tokens=1)
    assert (plain.model_extra or {})["sightline"]["notices"] == ["random weights"]


def test_models(client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "sightline")
    assert client.models.retrieve("tiny") == listed
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


PICTURE = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"sightline": {"stream": "front"}}, "sightline.stream", "unknown_parameter"),
        ({"sightline": {"streams": []}}, "sightline.streams", "invalid_value"),
        ({"sightline": {"streams": ["front", 5]}}, "sightline.streams[1]", "invalid_value"),
        ({"sightline": {"start": "yesterday"}}, "sightline.start", "invalid_value"),
        ({"sightline": {"start": "2024-03-01T08:00:00"}}, "sightline.start", "invalid_value"),
        ({"sightline": {"start": "0001-01-01T00:00:00+14:00"}}, "sightline.start", "invalid_value"),
        ({"sightline": {"end": "9999-12-31T23:59:59-14:00"}}, "sightline.end", "invalid_value"),
        ({"sightline": {"end": "9" * 65}}, "sightline.end", "invalid_value"),
        (
            {"sightline": {"start": "2024-03-01T08:00:00Z", "end": "2024-03-01T08:00:00Z"}},
            "sightline.end",
            "invalid_value",
        ),
        ({"sightline": {"options": ["red", "red"]}}, "sightline.options", "invalid_value"),
        ({"sightline": {"k": 0}}, "sightline.k", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 8001}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "a", "name": "me"}]}, "messages[0].name", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content", "unsupported_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE]}]},
            "messages[0].content",
            "unsupported_value",
        ),
        ({"messages": [{"role": "assistant", "content": "red"}]}, "messages", "unsupported_value"),
        (
            {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]},
            "messages",
            "unsupported_value",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ]
            },
            "messages",
            "unsupported_value",
        ),
        ({"messages": [{"role": "user", "content": "truck " * 1000}]}, "messages", "context_length_exceeded"),
        ({"n": 2}, "n", "invalid_value"),
        ({"stop": ["x"]}, "stop", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"presence_penalty": 1}, "presence_penalty", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
        ({"stream_options": {"include_everything": True}}, "stream_options.include_everything", "unknown_parameter"),
    ],
)
def test_what_would_be_ignored_is_refused_with_its_name(
    client: openai.OpenAI, footage: Footage, changed: dict[str, Any], param: str, code: str
) -> None:
    before = len(footage.asked)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=ASKED, extra_body=changed)
    assert (refused.value.param, refused.value.code, refused.value.type) == (param, code, "invalid_request_error")
    assert len(footage.asked) == before or code == "context_length_exceeded"


def test_advice_of_refusals(client: openai.OpenAI) -> None:
    picture: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/hunter2.png"}}]}
    ]
    with pytest.raises(openai.BadRequestError, match="field `sightline`") as refused:
        client.chat.completions.create(model="tiny", messages=picture)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(openai.BadRequestError, match="reads no earlier messages"):
        client.chat.completions.create(model="tiny", messages=[*ASKED, *ASKED])
    with pytest.raises(openai.BadRequestError, match="has room for 400; shorten"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "truck " * 1000}])


def test_other_refusals_are_the_clients_own_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny") as model:
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert model.value.param == "model"
    with pytest.raises(openai.NotFoundError, match="no such stream") as stream:
        client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"sightline": {"streams": ["roof"]}})
    assert (stream.value.param, stream.value.code) == ("sightline.streams", "unknown_stream")
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="tiny", messages=ASKED)
    for body in ("", "{", "[]", '"x"', "5"):
        reply = httpx.post(
            f"{url}/v1/chat/completions",
            content=body,
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
            trust_env=False,
        )
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
