"""`/v1/chat/completions` as the official `openai` client sees it."""

from __future__ import annotations

from collections.abc import Iterator

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


def test_without_footage_it_is_text_only_and_only_the_last_message_is_read(
    client: openai.OpenAI, footage: Footage
) -> None:
    before = len(footage.asked)
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    done = client.chat.completions.create(model="tiny", messages=messages, temperature=0.3)
    alone = client.chat.completions.create(model="tiny", messages=ASKED)
    assert len(footage.asked) == before
    assert done.choices[0].message.content == alone.choices[0].message.content
    beside = (done.model_extra or {})["sightline"]
    assert beside["usage"]["frames"] == 0
    assert any("last message" in notice for notice in beside["notices"])


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_refusals_are_the_clients_own_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    with pytest.raises(openai.NotFoundError, match="no such stream"):
        client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"sightline": {"streams": ["roof"]}})
    with pytest.raises(openai.UnprocessableEntityError, match=r"body\.n"):
        client.chat.completions.create(model="tiny", messages=ASKED, n=2)
    with pytest.raises(openai.UnprocessableEntityError, match="response_format"):
        client.chat.completions.create(model="tiny", messages=ASKED, response_format={"type": "json_object"})
    picture: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
    ]
    with pytest.raises(openai.UnprocessableEntityError, match="only text"):
        client.chat.completions.create(model="tiny", messages=picture)
    with pytest.raises(openai.UnprocessableEntityError, match="must be the user"):
        client.chat.completions.create(model="tiny", messages=[{"role": "assistant", "content": "red"}])
    with pytest.raises(openai.UnprocessableEntityError, match="room for 400"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "truck " * 1000}])
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="tiny", messages=ASKED)
