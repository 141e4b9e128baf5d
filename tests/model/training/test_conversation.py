"""What is supervised: against the mask that transformers makes from a ChatML template with generation marks."""

from __future__ import annotations

from typing import Any

import pytest

from index.errors import UsageError
from model.training.conversation import IGNORED, Turn, bare_question, check_turns, write_script
from model.visual.prompt import SYSTEM, build_prompt
from tests.support import tiny_checkpoints as tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% if not loop.last %}\n{% endif %}{% endfor %}"
)
CONVERSATIONS = {
    "one turn": ("<image>\nwhat colour was the truck ?", "red"),
    "placeholder last": ("where was the truck ?\n<video>", "at the gate"),
    "many turns": ("<video>\nwhat colour ?", "green", "where ?", "the gate , please", "when ?", "08:07"),
    "roles as words": ("<video>\nuser assistant system", "assistant user\nassistant", "user", "system"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = tiny.save_tokenizer(tmp_path_factory.mktemp("tokenizer"), close=False)
    made.chat_template = TEMPLATE
    return made


def _turns(*texts: str) -> list[Turn]:
    return [Turn(i % 2 == 0, text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_only_what_the_assistant_says_is_supervised(tokenizer: Any, texts: tuple[str, ...]) -> None:
    script = write_script(tokenizer, _turns(*texts))
    messages = [{"role": "system", "content": SYSTEM}]
    for turn in _turns(*texts):
        content = turn.text.replace("<image>", "").replace("<video>", "")
        messages.append({"role": "user" if turn.human else "assistant", "content": content})
    naive = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    assert script.head + script.tail == naive["input_ids"]
    expected = [i if on else IGNORED for i, on in zip(naive["input_ids"], naive["assistant_masks"], strict=True)]
    assert [IGNORED] * len(script.head) + script.targets == expected
    assert 0 < sum(i != IGNORED for i in expected) < len(expected) / 2


def test_the_prompt_is_the_one_that_is_answered(tokenizer: Any) -> None:
    script = write_script(tokenizer, _turns("<image>\nwhat colour was the truck ?", " red\n"))
    prefix, suffix = build_prompt(tokenizer, "what colour was the truck ?")
    said = [*tokenizer("red", add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert (script.head, script.tail) == (prefix, suffix + said)


def test_the_bare_question() -> None:
    assert bare_question(_turns("<image>\nwhat colour\nwas it?", "red")) == "what colour was it?"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((), "last turn should be from gpt"),
        (("<image> a",), "last turn should be from gpt"),
        (("<image> a", "b", "c"), "last turn should be from gpt"),
        (("a", "b"), "there is none"),
        (("<image> <video> a", "b"), "there is 2, in turn 1, 1"),
        (("a", "b", "<image>", "c"), "there is 1, in turn 3"),
        (("<image> a", " \n"), "turn 2: the answer is empty"),
    ],
)
def test_what_cannot_be_a_conversation(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_turns(_turns(*texts))


def test_turns_alternate() -> None:
    with pytest.raises(UsageError, match="turn 2 should be from gpt"):
        check_turns([Turn(True, "<image> a"), Turn(True, "b"), Turn(False, "c")])
