"""One render finds the turns of a conversation, or it is seen that it cannot."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.record import STYLES, TURN_TOKENS, template_text
from tunewright.errors import DataError, ModelError
from tunewright.models.sandbox import Template, Walk
from tunewright.models.turns import NotCut, TurnCutter

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ASK = "{% if add_generation_prompt %}[assistant]{% endif %}"

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
exchanges = st.lists(
    st.tuples(st.lists(words, min_size=1, max_size=2), st.lists(words, min_size=1, max_size=2)),
    min_size=1,
    max_size=4,
)


@cache
def cutter_of(name: str) -> TurnCutter:
    return TurnCutter(Template(template_text(name), VARIABLES))


def conversation(drawn: list[tuple[list[str], list[str]]], system: str | None) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": system}] if system else []
    for questions, answers in drawn:
        messages += [{"role": "user", "content": text} for text in questions]
        messages += [{"role": "assistant", "content": text} for text in answers]
    return messages


def outcome(cut: Any, *args: Any) -> Any:
    """What a way of cutting gives: pieces, or which refusal."""
    try:
        return cut(*args)
    except DataError as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=50)
@given(drawn=exchanges, system=st.none() | words, open_turn=st.booleans())
def test_one_render_cuts_as_a_render_of_every_prefix_does(
    name: str, drawn: list[tuple[list[str], list[str]]], system: str | None, open_turn: bool
) -> None:
    cutter, messages = cutter_of(name), conversation(drawn, system)
    cutter._unchecked = 0  # compared here instead
    if open_turn:
        messages = messages[: -len(drawn[-1][1])]
    closing = "</s>" if name == "phi3" else ""
    assert outcome(cutter.cut, messages, None, open_turn) == outcome(
        cutter.cut_by_prefixes, messages, None, open_turn, closing
    )


@pytest.mark.parametrize("name", STYLES)
def test_a_usual_conversation_is_rendered_once(name: str) -> None:
    template = cutter_of(name).template
    messages = [
        message
        for number in range(3)
        for message in (
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        )
    ]
    once = not template.not_online and template.walk(messages, None, False) is not None
    assert once == (name not in ("qwen3", "zephyr_lookahead", "mistral_system_last", "deepseek_r1"))


def test_the_number_of_renders_does_not_grow_with_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    cutter = TurnCutter(Template(LOOP + ASK, VARIABLES))
    messages = conversation([(["q"], ["a"])] * 20, None)
    cutter._unchecked = 0
    cutter.cut(messages, None)
    renders: list[int] = []
    pieces = Template._pieces
    monkeypatch.setattr(Template, "_pieces", lambda *args: renders.append(1) or pieces(*args))
    assert len(cutter.cut(messages, None)) == 40
    assert len(renders) == 1
    cutter.cut_by_prefixes(messages, None)
    assert len(renders) == 41


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages | tojson }}", "other than in its loop"),
        ("{{ messages | map(attribute='content') | join }}", "other than in its loop"),
        ("{% set m = messages[1:] %}{{ m | last }}" + LOOP, "other than in its loop"),
        ("{% set n = namespace(m=messages) %}" + LOOP, "other than in its loop"),
        ("{{ (messages if x else []) | length }}" + LOOP, "other than in its loop"),
        ("{% macro f(x) %}{{ x | length }}{% endmacro %}{{ f(messages) }}" + LOOP, "other than in its loop"),
        ("{% set all = messages or [] %}" + LOOP, "other than in its loop"),
        (LOOP + LOOP, "no single loop"),
        ("{% for x in [1] %}" + LOOP + "{% endfor %}", "no single loop"),
        ("{% generation %}" + LOOP + "{% endgeneration %}", "no single loop"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "filtered"),
        ("{% for m in messages %}{{ loop | length }}{% endfor %}", "uses `loop`"),
        ("{% for m in messages %}{{ loop['last'] }}{% endfor %}", "uses `loop`"),
        ("{% set n = namespace(x=0) %}" + LOOP + "{{ n.x }}", "depends on n"),
        ("{% set n = namespace(x=0) %}{% set k = n %}" + LOOP + "{{ k.x }}", "depends on k"),
        ("{% macro f() %}x{% endmacro %}" + LOOP + "{{ f() }}", "depends on f"),
        (LOOP + "{{ messages[0].content }}", "depends on messages"),
        (LOOP + "{% if tools %}x{% endif %}", "depends on tools"),
        (ASK + LOOP, "before its loop has ended"),
        ("{% set add_generation_prompt = true %}" + LOOP + ASK, "before its loop has ended"),
        ("{% block b %}" + LOOP + "{% endblock %}", "blocks"),
    ],
)
def test_a_template_that_cannot_be_proved_is_known_by_its_syntax(template: str, reason: str) -> None:
    assert reason in Template(template, VARIABLES).not_online


@pytest.mark.parametrize(
    "template",
    [
        LOOP + ASK,
        "{% if messages and messages[0].role == 'system' %}S{% endif %}" + LOOP + ASK,
        "{% if tools %}{{ tools }}{% else %}" + LOOP + "{% endif %}" + ASK,
        "{% if a %}x{% elif not b %}" + LOOP + "!{% endif %}" + ASK,
        "{% set rest = messages[1:] if x else messages %}" + LOOP.replace("messages", "rest") + ASK,
        "{% if add_generation_prompt is undefined %}{% set add_generation_prompt = false %}{% endif %}"
        + LOOP
        + ASK,
    ],
)
def test_usual_ways_of_writing_a_template_are_proved(template: str) -> None:
    assert Template(template, VARIABLES).not_online == ""


@pytest.mark.parametrize(
    "body",
    [
        "{% if loop.last %}!{% endif %}",
        "{% if loop.nextitem is defined %}!{% endif %}",
        "{{ loop.length }}",
        "{{ loop.revindex }}",
        "{{ messages | length }}",
        "{{ messages[-1].role }}",
        "{{ messages[loop.index0 + 1] is defined }}",
        "{{ messages[loop.index] is defined }}",
        "{{ messages[:2][0].role }}",
        "{{ messages[-2:][0].role }}",
        "{{ messages[1:][1].role }}",
        "{{ messages['messages'] }}",
        "{% break %}",
    ],
)
def test_a_look_ahead_is_seen_when_it_happens(body: str) -> None:
    source = "{% for m in messages %}{{ m.content }}" + body + "{% endfor %}" + ASK
    template = Template(source, VARIABLES)
    messages = conversation([(["q"], ["a"]), (["r"], ["b"])], None)
    assert template.not_online == ""
    assert template.walk(messages, None, False) is None
    assert template.text(messages, None, False) == template.text(list(messages), None, False)


@pytest.mark.parametrize(
    "body",
    [
        "{{ loop.first }}{{ loop.index }}",
        "{{ loop.previtem }}",
        "{{ messages[0].role }}",
        "{{ messages[loop.index0].role }}",
        "{% if loop.index0 > 0 %}{{ messages[loop.index0 - 1].role }}{% endif %}",
        "{% for c in 'abc' %}{{ c }}{% if not loop.last %}, {% endif %}{% endfor %}",
        "{% if loop.first and messages[1:] is defined %}{% endif %}",
    ],
)
def test_looking_back_is_not_looking_ahead(body: str) -> None:
    template = Template("{% for m in messages %}{{ m.content }}" + body + "{% endfor %}" + ASK, VARIABLES)
    messages = conversation([(["q"], ["a"]), (["r"], ["b"])], None)
    walked = template.walk(messages, None, False)
    assert walked is not None
    assert "".join(walked.parts) == template.text(messages, None, False)
    assert walked.said(1).startswith("a")


def test_a_slice_of_the_messages_counts_from_where_it_begins() -> None:
    source = "{% set rest = messages[1:][1:] %}" + LOOP.replace("messages", "rest")
    walked = Template(source, VARIABLES).walk(conversation([(["q"], ["a"])] * 2, None), None, False)
    assert walked is not None
    assert (walked.start, walked.said(2), walked.said(3)) == (2, "[user]q", "[assistant]a")


def test_a_walk_is_as_true_as_the_list_it_stands_for() -> None:
    messages = [{"role": "user", "content": "q"}]
    assert bool(Walk(messages, []))
    assert not Walk(messages, [])[1:]


def test_a_misjudged_template_stops_the_run() -> None:
    loop = "{% for m in messages %}{{ m.content }}{% set n.x = m.content %}{% endfor %}"
    template = Template(
        "{% set n = namespace(x='') %}" + loop + "{% if add_generation_prompt %}{{ n.x }}{% endif %}",
        VARIABLES,
    )
    assert "depends on n" in template.not_online
    template.not_online = ""
    messages = conversation([(["q"], ["x"]), (["r"], ["x"])], None)
    with pytest.raises(ModelError, match="cut in two ways that disagree"):
        TurnCutter(template).cut(messages, None)


def test_what_a_finished_text_ends_with_is_not_part_of_earlier_turns() -> None:
    closed = LOOP + "{% if add_generation_prompt %}[assistant]{% else %}<end>{% endif %}"
    messages = conversation([(["q"], ["a"]), (["r"], ["b"])], None)
    cutter = TurnCutter(Template(closed, VARIABLES))
    assert cutter.cut(messages, None) == ["[user]q[assistant]", "a", "[user]r[assistant]", "b<end>"]
    assert cutter.cut(messages[:3], None, True) == ["[user]q[assistant]", "a", "[user]r[assistant]"]
    with pytest.raises(NotCut):
        cutter.cut_by_prefixes(messages, None)


def test_every_style_that_needs_tokens_has_them() -> None:
    assert {style for style, _ in STYLES.values() if style} == set(TURN_TOKENS)
