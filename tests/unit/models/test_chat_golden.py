"""The renderings of real template styles are those that were recorded, and Hugging Face's own."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from golden.record import (
    CONVERSATIONS,
    STYLES,
    TOOLS,
    cases,
    golden_file,
    golden_renderer,
    rendering,
    template_text,
)
from tunewright.models.sandbox import PINNED_DATE
from tunewright.models.templates import NAMES, needed_tokens

renderer_of = cache(golden_renderer)
FAMILIES = ("llama3", "qwen2.5", "qwen3", "mistral", "gemma", "phi3", "phi4", "chatml", "zephyr", "deepseek")


@pytest.mark.parametrize(("name", "chat"), cases())
def test_a_rendering_is_the_recorded_one(name: str, chat: str) -> None:
    recorded = json.loads(golden_file(name, chat).read_text(encoding="utf-8"))
    assert rendering(name, chat) == recorded, "if this is meant, run tests/golden/record.py"


def test_every_family_and_every_named_template_is_recorded() -> None:
    assert set(NAMES) <= set(STYLES)
    assert set(FAMILIES) <= set(STYLES)
    assert {path.name for path in golden_file("x", "y").parent.iterdir()} == {
        golden_file(*case).name for case in cases()
    }


@pytest.mark.parametrize(("name", "chat"), cases())
def test_the_text_is_what_hugging_face_renders(name: str, chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.chat_template_utils as theirs

    class Then:
        now = staticmethod(lambda: PINNED_DATE)

    monkeypatch.setattr(theirs, "datetime", Then)
    renderer = renderer_of(name)
    # Objects in place of JSON text: what every template that knows tools expects.
    messages = renderer._rules.seen(CONVERSATIONS[chat])
    tools = TOOLS if chat in ("tools", "one_tool") else None
    for part, open_turn in ((messages, False), (messages[:-1], True)):
        wanted = renderer.tokenizer.apply_chat_template(
            part,
            tools=tools,
            chat_template=template_text(name),
            tokenize=False,
            add_generation_prompt=open_turn,
        )
        assert renderer._compiled.text(part, tools, open_turn) == wanted


@pytest.mark.parametrize("name", STYLES)
def test_the_tokens_that_a_template_writes_are_declared(name: str) -> None:
    renderer = renderer_of(name)
    written = set(renderer.conversation(CONVERSATIONS["chat"], turns="last").ids)
    used = {str(renderer.tokenizer.convert_ids_to_tokens(i)) for i in written if i >= 256 + len("123")}
    assert used <= set(needed_tokens(renderer.template))


@pytest.mark.parametrize("name", STYLES)
def test_every_document_of_every_style_keeps_the_promises(name: str) -> None:
    renderer, checked = renderer_of(name), 0
    for chat in STYLES[name][1]:
        messages: list[dict[str, Any]] = CONVERSATIONS[chat]
        tools = TOOLS if chat in ("tools", "one_tool") else None
        documents = renderer.render(messages, tools, history="expand")
        learned = renderer.supervised(messages)
        for number, index in enumerate(learned):
            document = documents[number if len(documents) > 1 else 0]
            prompt = renderer.prompt(messages[:index], tools)
            assert document.ids[: len(prompt)] == prompt
            assert document.loss_mask[len(prompt)] == 1
            checked += 1
        for document in documents:
            ends = [
                token
                for token, mask, after in zip(
                    document.ids, document.loss_mask, [*document.loss_mask[1:], 0], strict=True
                )
                if mask and not after
            ]
            assert ends and set(ends) <= renderer.stop_ids
    assert checked >= 2
