"""What does not fit is dropped, shortened or divided as was said; an answer is never cut."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.record import CONVERSATIONS, TOOLS, golden_renderer, stretches
from tunewright.data.overflow import fit
from tunewright.errors import DataError

STYLES = ["plain", "chatml", "gemma", "qwen3", "mistral_system_last"]
renderer_of = cache(golden_renderer)
words = st.text(st.sampled_from("abc de\n\u00e9\u6f22"), min_size=1, max_size=25).filter(str.strip)
chats = st.lists(st.tuples(words, words), min_size=1, max_size=5)


def chat(drawn: list[tuple[str, str]], system: str | None = None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for question, answer in drawn:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def learned(renderer: Any, documents: list[Any]) -> list[str]:
    return [renderer.tokenizer.decode(ids) for document in documents for ids in stretches(document)]


def cramped(style: str, drawn: list[tuple[str, str]], system: str | None, room: float) -> tuple[Any, ...]:
    """A renderer, a conversation, its whole documents, and a limit of `room` times the longest."""
    renderer, messages = renderer_of(style), chat(drawn, system)
    whole = renderer.render(messages, history="expand")
    return renderer, messages, whole, max(8, int(room * max(len(d.ids) for d in whole)))


def text(renderer: Any, document: Any) -> str:
    return str(renderer.tokenizer.decode(document.ids))


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=60)
@given(drawn=chats, system=st.none() | words, room=st.floats(0.1, 1.1))
def test_divided_conversations_teach_every_answer_once(
    style: str, drawn: list[tuple[str, str]], system: str | None, room: float
) -> None:
    renderer, messages, whole, limit = cramped(style, drawn, system, room)
    try:
        documents, note = fit(renderer, messages, None, limit, "split", history="expand")
    except DataError as error:
        assert f"tokens of a single exchange do not fit a row of seq_len={limit}" in str(error)
        start = messages[:1] if system else []
        alone = [renderer.render([*start, *chat([pair])], history="expand")[0] for pair in drawn]
        assert any(len(document.ids) > limit for document in alone)
        return
    assert all(len(document.ids) <= limit for document in documents)
    assert learned(renderer, documents) == learned(renderer, whole)
    assert (documents == whole) == (note != "split")
    if system and style != "mistral_system_last":
        assert all(system.strip() in text(renderer, document) for document in documents)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=60)
@given(drawn=chats, system=st.none() | words, room=st.floats(0.1, 1.1))
def test_a_shortened_conversation_keeps_its_last_answers_whole(
    style: str, drawn: list[tuple[str, str]], system: str | None, room: float
) -> None:
    renderer, messages, whole, limit = cramped(style, drawn, system, room)
    try:
        documents, note = fit(renderer, messages, None, limit, "truncate_prompt", history="expand")
    except DataError as error:
        assert "the last word of its question do not fit" in str(error)
        return
    assert all(len(document.ids) <= limit for document in documents)
    kept, every = learned(renderer, documents), learned(renderer, whole)
    assert kept == every[len(every) - len(kept) :]
    assert kept
    assert (documents == whole) == (note != "truncated")
    if len(whole) > 1:
        assert len(kept) == len(every)
    if system:
        assert system.strip() in text(renderer, documents[-1])


@settings(max_examples=60)
@given(question=words, answer=words, spare=st.integers(0, 60))
def test_a_question_keeps_as_much_of_its_end_as_fits(question: str, answer: str, spare: int) -> None:
    renderer = renderer_of("plain")
    shortest = renderer.conversation(chat([(question[len(question.rstrip()) - 1 :], answer)]))
    limit = len(shortest.ids) + spare
    (document,), _ = fit(renderer, chat([(question, answer)]), None, limit, "truncate_prompt")
    kept = text(renderer, document).partition("User: ")[2].partition("\nAssistant: ")[0]
    assert question.endswith(kept) and kept.strip()
    longer = question[len(question) - len(kept) - 1 :]
    if len(kept) < len(question):
        assert len(renderer.conversation(chat([(longer, answer)])).ids) > limit


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_what_is_to_be_dropped_is_refused_with_its_length(policy: Any) -> None:
    renderer = renderer_of("plain")
    messages = chat([("a question", "an answer")])
    length = len(renderer.conversation(messages).ids)
    with pytest.raises(DataError, match=f"^{length} tokens do not fit a row of seq_len={length - 1}$"):
        fit(renderer, messages, None, length - 1, policy)
    assert fit(renderer, messages, None, length, policy) == ([renderer.conversation(messages)], "")


def test_documents_of_each_turn_are_noted() -> None:
    renderer = renderer_of("qwen3")
    messages = CONVERSATIONS["thinking"]
    documents, note = fit(renderer, messages, None, 10_000, "drop", history="expand")
    assert (len(documents), note) == (2, "expanded")
    with pytest.raises(DataError, match="rewrites earlier turns"):
        fit(renderer, messages, None, 10_000, "drop")


def test_the_oldest_exchanges_go_first_and_whole() -> None:
    renderer = renderer_of("plain")
    messages = chat([("one", "eins"), ("two", "zwei"), ("three", "drei")], "Translate.")
    limit = len(renderer.conversation(messages).ids) - 1
    (document,), note = fit(renderer, messages, None, limit, "truncate_prompt")
    assert note == "truncated"
    assert document == renderer.conversation([messages[0], *messages[3:]])


def test_a_call_of_a_tool_stays_with_its_question_and_its_answer() -> None:
    renderer = renderer_of("chatml")
    messages = CONVERSATIONS["tools"]
    whole = renderer.conversation(messages, TOOLS)
    documents, _ = fit(renderer, messages, TOOLS, len(whole.ids) - 1, "split")
    assert documents == [
        renderer.conversation(messages[:6], TOOLS),
        renderer.conversation([messages[0], *messages[6:]], TOOLS),
    ]


def test_questions_in_a_row_are_one_question_that_loses_its_start() -> None:
    renderer = renderer_of("plain")
    messages = [
        {"role": "user", "content": "a long beginning " * 5},
        {"role": "user", "content": "and the end"},
        {"role": "assistant", "content": "Yes."},
    ]
    wanted = renderer.conversation(messages[1:])
    (document,), _ = fit(renderer, messages, None, len(wanted.ids), "truncate_prompt")
    assert document == wanted
    (document,), _ = fit(renderer, messages, None, len(wanted.ids) - 4, "truncate_prompt")
    assert "User: the end\n" in text(renderer, document)


def test_loss_on_the_last_turn_alone_leaves_one_document_with_all_that_fits_before_it() -> None:
    renderer = renderer_of("plain")
    messages = chat([("one", "eins"), ("two", "zwei"), ("three", "drei")])
    limit = len(renderer.conversation(messages).ids) - 1
    documents, note = fit(renderer, messages, None, limit, "split", turns="last")
    assert (documents, note) == ([renderer.conversation(messages[2:], turns="last")], "split")


def test_exchanges_without_loss_are_context_or_nothing() -> None:
    renderer = renderer_of("plain")
    messages = chat([("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier")])
    for index in (1, 3, 7):
        messages[index]["weight"] = 0
    three = renderer.conversation(messages[4:6])
    documents, _ = fit(renderer, messages, None, len(three.ids), "split")
    assert documents == [three]
    documents, _ = fit(renderer, messages, None, len(three.ids), "truncate_prompt")
    assert documents == [three]
    messages[1]["weight"] = 1
    documents, _ = fit(renderer, messages, None, len(three.ids), "split")
    assert learned(renderer, documents) == ["eins</s>", "drei</s>"]


def test_what_an_assistant_says_unasked_stays_with_the_first_exchange_or_goes() -> None:
    renderer = renderer_of("plain")
    messages = [
        {"role": "system", "content": "Greet."},
        {"role": "assistant", "content": "Hello!"},
        *chat([("one", "eins"), ("two", "zwei")]),
    ]
    limit = len(renderer.conversation(messages).ids) - 1
    documents, _ = fit(renderer, messages, None, limit, "split")
    assert learned(renderer, documents) == ["Hello!</s>", "eins</s>", "zwei</s>"]
    (document,), _ = fit(renderer, messages, None, limit, "truncate_prompt")
    assert document == renderer.conversation([messages[0], *messages[2:]])
    with pytest.raises(DataError, match="none is a question that could be shortened, do not fit"):
        fit(renderer, messages[:2], None, 5, "truncate_prompt")
    with pytest.raises(DataError, match="tokens of a single exchange do not fit"):
        fit(renderer, messages[:2], None, 5, "split")


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt", "split", "error"])
def test_an_answer_that_is_too_long_by_itself_is_refused_whole(policy: Any) -> None:
    messages = chat([("one", "eins"), ("two", "a long answer " * 9)])
    with pytest.raises(DataError, match=r"\d+ tokens.* do not fit a row of seq_len=60"):
        fit(renderer_of("plain"), messages, None, 60, policy)
