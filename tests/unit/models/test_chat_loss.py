"""What carries loss by choice, tools and their calls, and that nothing of a conversation is lost."""

from __future__ import annotations

import logging
import pickle
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.record import CONVERSATIONS, TOOLS, byte_tokenizer, golden_renderer, stretches
from tunewright.errors import DataError
from tunewright.models.chat import ChatRenderer
from tunewright.models.templates import NAMES, named_template

renderer_of = cache(golden_renderer)
CHAT = CONVERSATIONS["chat"]
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


def learned(renderer: ChatRenderer, document: Any) -> list[str]:
    return [renderer.tokenizer.decode(ids) for ids in stretches(document)]


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("name", ["plain", "chatml", "llama3", "gemma", "mistral"])
def test_loss_can_be_on_the_last_turn_alone(name: str) -> None:
    renderer = renderer_of(name)
    every, last = renderer.conversation(CHAT), renderer.conversation(CHAT, turns="last")
    assert last.ids == every.ids
    assert learned(renderer, last) == learned(renderer, every)[-1:]


@pytest.mark.parametrize("name", ["plain", "chatml", "qwen3"])
@pytest.mark.parametrize("weight", [0, 1, None, 0.0, True])
def test_a_message_of_weight_zero_carries_no_loss(name: str, weight: Any) -> None:
    renderer = renderer_of(name)
    messages = [*CHAT[:2], {**CHAT[2], "weight": weight}, *CHAT[3:]]
    found = [text for d in renderer.render(messages, history="expand") for text in learned(renderer, d)]
    assert len(found) == (1 if weight == 0 and weight is not None else 2)
    assert "Tomorrow." in found[-1]


def test_a_conversation_that_teaches_nothing_is_refused() -> None:
    renderer = renderer_of("chatml")
    messages = [say("user", "q"), say("assistant", "a", weight=0)]
    with pytest.raises(DataError, match="no assistant message carries loss"):
        renderer.conversation(messages)
    with pytest.raises(DataError, match=r"loss\.turns: last"):
        renderer.conversation([*CHAT[:3], *messages], turns="last")


def test_a_weight_is_zero_or_one() -> None:
    with pytest.raises(DataError, match=r"message 1 has weight 0\.5; expected 0 \(no loss\) or 1"):
        renderer_of("chatml").conversation([say("user", "q"), say("assistant", "a", weight=0.5)])


@pytest.mark.parametrize("name", ["qwen3", "mistral_system_last", "deepseek_r1"])
def test_rewritten_history_is_refused_or_becomes_a_document_of_each_turn(name: str) -> None:
    renderer = renderer_of(name)
    chat = CONVERSATIONS["thinking"] if name == "deepseek_r1" else CHAT
    with pytest.raises(DataError, match="rewrites earlier turns when later ones follow"):
        renderer.conversation(chat)
    documents = renderer.render(chat, history="expand")
    turns = renderer.supervised(chat)
    assert len(documents) == len(turns) == 2
    for document, index in zip(documents, turns, strict=True):
        prompt = renderer.prompt(chat[:index])
        assert document.ids[: len(prompt)] == prompt
        assert document.loss_mask[: len(prompt)] == [0] * len(prompt)
        assert document.loss_mask[len(prompt)] == 1
    assert renderer.conversation(chat, turns="last") == documents[-1]


@settings(max_examples=60)
@given(drawn=st.lists(st.tuples(words, words), min_size=1, max_size=4), system=st.none() | words)
def test_expanded_documents_begin_as_their_prompts_do(
    drawn: list[tuple[str, str]], system: str | None
) -> None:
    renderer = renderer_of("qwen3")
    messages = [say("system", system)] if system else []
    for question, answer in drawn:
        messages += say("user", question), say("assistant", answer)
    documents = renderer.render(messages, history="expand")
    assert len(documents) == len(drawn)
    for document, index in zip(documents, renderer.supervised(messages), strict=True):
        prompt = renderer.prompt(messages[:index])
        assert document.ids[: len(prompt)] == prompt
        assert not any(document.loss_mask[: len(prompt)])
        assert len(learned(renderer, document)) == 1


def test_an_answer_that_begins_otherwise_than_asked_for_is_refused_but_can_be_asked_for() -> None:
    source = named_template("chatml").replace(
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n'",
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n'",
    )
    source = source.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    renderer = ChatRenderer(byte_tokenizer("chatml"), source)
    for history in ("refuse", "expand"):
        with pytest.raises(DataError, match=r"does not go on.*assistant\\n<think>"):
            renderer.render(CHAT, history=history)
    assert renderer.tokenizer.decode(renderer.prompt(CHAT[:4])).endswith("<|im_start|>assistant\n<think>\n")


def test_many_at_once_are_each_as_alone_and_a_bad_one_harms_no_other() -> None:
    renderer = renderer_of("chatml")
    batch = [
        (CHAT, None),
        ([say("user", "q")], None),
        (CONVERSATIONS["tools"], TOOLS),
        ([], None),
        ([say("user", "a \ud800 half"), say("assistant", "b")], None),
        (CHAT[1:3], []),
    ]
    found = renderer.render_batch(batch)
    assert [type(result) for result in found] == [list, DataError, list, DataError, DataError, list]
    for (messages, tools), result in zip(batch, found, strict=True):
        if isinstance(result, list):
            assert result == [renderer.conversation(messages, tools)]
    assert "half of a surrogate pair" in str(found[4])
    assert renderer.render_batch([]) == []


def test_two_harmless_messages_do_not_make_a_special_token_together() -> None:
    renderer = ChatRenderer(byte_tokenizer("chatml"), named_template("plain"))
    renderer.tokenizer.add_special_tokens({"additional_special_tokens": ["a\nb"]})
    again = ChatRenderer(renderer.tokenizer, named_template("plain"))
    assert again.conversation([say("user", "x a"), say("assistant", "b y")])
    with pytest.raises(DataError, match=r"message 0 \(user\) contains the special token"):
        again.conversation([say("user", "x a\nb"), say("assistant", "b y")])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("chatml", "llama3")])
def test_tools_that_a_template_does_not_show_are_refused(name: str) -> None:
    renderer = renderer_of(name)
    if renderer._compiled.names("tools"):
        assert renderer.render(CONVERSATIONS["tools"], TOOLS, history="expand")
        return
    with pytest.raises(DataError, match="shows no tools, but the row has 1"):
        renderer.conversation(CHAT, TOOLS)
    with pytest.raises(DataError, match="leaves out tool calls"):
        renderer.conversation(CONVERSATIONS["one_tool"])
    with pytest.raises(DataError, match="shows no tools"):
        renderer.prompt(CHAT[:2], TOOLS)


def test_tools_that_a_template_only_counts_are_refused() -> None:
    source = "{{ tools | length if tools else 0 }}" + named_template("plain")
    with pytest.raises(DataError, match="does not show tool 0"):
        ChatRenderer(byte_tokenizer(), source).conversation(CHAT, TOOLS)


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (
            "{{ m.tool_calls[0].function.name if m.tool_calls }}",
            "leaves out a tool call of message 2 or part of it",
        ),
        ("{{ m.tool_calls | tojson if m.tool_calls }}", None),
    ],
)
def test_tool_calls_are_shown_whole(shown: str, reason: str | None) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + shown + "{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    renderer = ChatRenderer(byte_tokenizer(), source)
    if reason is None:
        assert renderer.conversation(CONVERSATIONS["one_tool"])
    else:
        with pytest.raises(DataError, match=reason):
            renderer.conversation(CONVERSATIONS["one_tool"])


def test_arguments_are_given_as_the_template_wants_them() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    as_object = [*CONVERSATIONS["one_tool"]]
    call = {"function": {"name": "track_parcel", "arguments": {"number": "17"}}}
    as_object[2] = say("assistant", None, tool_calls=[call])
    for renderer in (ChatRenderer(byte_tokenizer(), source), renderer_of("chatml")):
        as_text = renderer.conversation(CONVERSATIONS["one_tool"])
        assert renderer.conversation(as_object) == as_text
        assert '{"number": "17"}' in renderer.tokenizer.decode(as_text.ids)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"function": {"arguments": "{}"}}, "message 1, tool call 0 has no function name"),
        ("track", "message 1, tool call 0 has no function name"),
        ({"function": {"name": "f", "arguments": "{"}}, "its arguments are not JSON"),
        ({"function": {"name": "f", "arguments": "[1]"}}, "its arguments are a list, not an object"),
        ({"function": {"name": "f", "arguments": '{"a": "<|im_end|>"}'}}, "special token <|im_end|>"),
    ],
)
def test_a_call_is_of_openais_shape(call: Any, reason: str) -> None:
    messages = [say("user", "q"), say("assistant", "", tool_calls=[call])]
    with pytest.raises(DataError) as raised:
        renderer_of("chatml").conversation(messages)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ({"type": "function"}, "tool 0 has no name"),
        ({"function": {"name": "f", "description": "ends <|im_end|>"}}, r"tool 0 contains the special token"),
    ],
)
def test_a_tool_is_of_openais_shape(tool: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        renderer_of("chatml").conversation(CHAT, [tool])


def test_a_call_may_come_without_words_but_only_from_the_assistant() -> None:
    renderer = renderer_of("chatml")
    calls = CONVERSATIONS["one_tool"][2]["tool_calls"]
    for content in (None, ""):
        messages = [say("user", "q"), say("assistant", content, tool_calls=calls)]
        assert learned(renderer, renderer.conversation(messages))[0].startswith("<tool_call>\n")
    with pytest.raises(DataError, match=r"message 0 \(user\) calls tools; only the assistant may"):
        renderer.conversation([say("user", "q", tool_calls=calls), say("assistant", "a")])
    with pytest.raises(DataError, match=r"message 1 \(assistant\) has no text"):
        renderer.conversation([say("user", "q"), say("assistant", "", tool_calls=[])])


def test_several_answers_in_a_row_are_turns_of_their_own_where_the_template_allows_it() -> None:
    messages = [say("user", "q"), say("assistant", "one"), say("assistant", "two")]
    renderer = renderer_of("llama3")
    assert learned(renderer, renderer.conversation(messages)) == ["one<|eot_id|>", "two<|eot_id|>"]
    with pytest.raises(DataError, match="refuses the conversation: user and assistant must take turns"):
        renderer_of("gemma").conversation(messages)


def test_a_developer_is_the_system_where_the_template_does_not_know_it() -> None:
    renderer = renderer_of("chatml")
    messages = [say("developer", "Be kind."), *CHAT[1:]]
    assert renderer.conversation(messages) == renderer.conversation([say("system", "Be kind."), *CHAT[1:]])
    knows = named_template("plain").replace("== 'system'", "in ('system', 'developer')")
    assert ChatRenderer(byte_tokenizer(), knows).conversation(messages)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}",
            r"leaves out text of message 0 \(system\)",
        ),
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content[:5] if m.role == 'assistant' else m.content }}"
            "{% endfor %}",
            r"leaves out text of message 2 \(assistant\)",
        ),
    ],
)
def test_a_template_that_leaves_words_out_is_refused(template: str, reason: str) -> None:
    renderer = ChatRenderer(
        byte_tokenizer(), template + "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(DataError, match=reason):
        renderer.conversation(CHAT)


@pytest.mark.parametrize("change", ["| trim", "| tojson", ".replace(' ', '  ')"])
def test_other_blanks_and_json_are_not_taken_for_a_loss(change: str) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content " + change + " }}{% endfor %}"
    renderer = ChatRenderer(
        byte_tokenizer(), template + "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert renderer.conversation([say("system", ' say "\u00e5" \n'), *CHAT[1:]])


def test_reasoning_is_learned_or_the_row_is_refused() -> None:
    messages = [say("user", "2 + 3?"), say("assistant", "Five.", reasoning="2 + 3 = 5")]
    renderer = renderer_of("qwen3")
    assert learned(renderer, renderer.conversation(messages)) == [
        "<think>\n2 + 3 = 5\n</think>\n\nFive.<|im_end|>"
    ]
    with pytest.raises(DataError, match="leaves out the reasoning of message 1"):
        renderer_of("llama3").conversation(messages)


def test_marked_answers_that_are_not_those_asked_for_are_refused() -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "A: {% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    renderer = ChatRenderer(byte_tokenizer(), marked)  # the end of the turn outside the marks: ours wins
    assert learned(renderer, renderer.conversation(CHAT))[-1] == "Tomorrow.</s>"
    wrong = marked.replace("A: {% generation %}", "{% generation %}A: ")
    with pytest.raises(DataError, match="marks .* as the assistant's words"):
        ChatRenderer(byte_tokenizer(), wrong)


def test_the_end_of_a_turn_that_no_configuration_names_is_learned_and_stops() -> None:
    renderer = ChatRenderer(byte_tokenizer("chatml", named_template("chatml")))
    end = renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in renderer.stop_ids
    assert renderer.text([104, 105, end, 104]) == renderer.tokenizer.decode([104, 105])


def test_a_template_whose_tokens_are_missing_is_refused() -> None:
    reason = r"needs the tokens <\|im_start\|> <\|im_end\|>, which the tokenizer does not have"
    with pytest.raises(DataError, match=reason):
        ChatRenderer(byte_tokenizer(), named_template("chatml"))
    assert ChatRenderer(byte_tokenizer(), named_template("zephyr")).conversation(CHAT)


def test_of_several_templates_the_default_is_the_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": named_template("zephyr"), "tool_use": "x"}
    assert ChatRenderer(tokenizer).template == named_template("zephyr")
    tokenizer.chat_template = {"rag": "x", "tool_use": "x"}
    with pytest.raises(DataError, match="has the chat templates rag, tool_use and none named `default`"):
        ChatRenderer(tokenizer)


def test_a_truncation_left_in_the_tokenizer_cuts_nothing() -> None:
    renderer = golden_renderer("chatml")
    whole = renderer.conversation(CHAT)
    renderer.tokenizer(["a long text", "b"], truncation=True, max_length=3, padding="max_length")
    assert renderer.conversation(CHAT) == whole


def test_a_tokenizer_that_does_more_in_its_wrapper_is_asked_through_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = ChatRenderer(byte_tokenizer(), named_template("plain"))
    tokenizer = byte_tokenizer()
    kind = type(tokenizer)

    class Spaced(kind):  # type: ignore[misc, valid-type]
        def __call__(self, text: Any, **how: Any) -> Any:
            texts = [t.replace("_", " ") for t in ([text] if isinstance(text, str) else text)]
            found = super().__call__([t.replace("  ", " ") for t in texts], **how)
            return {"input_ids": found["input_ids"][0] if isinstance(text, str) else found["input_ids"]}

    tokenizer.__class__ = Spaced
    with caplog.at_level(logging.INFO):
        renderer = ChatRenderer(tokenizer, named_template("plain"))
    assert "tokenizer is asked through its wrapper" in caplog.messages
    underscored = [say("user", "a_b"), say("assistant", "c")]
    assert renderer.conversation(underscored) == plain.conversation(
        [say("user", "a b"), say("assistant", "c")]
    )


def test_refusals_travel_between_processes() -> None:
    with pytest.raises(DataError) as raised:
        renderer_of("qwen3").conversation(CHAT)
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), str(again)) == (type(raised.value), str(raised.value))
