"""Templates by name and by file, and the sandbox that they run in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.errors import DataError
from tunewright.models.sandbox import MARKS, Template
from tunewright.models.templates import NAMES, named_template, needed_tokens, resolve_template

HELLO = [{"role": "user", "content": "<b>Hei, \u00e5"}]


def rendered(source: str) -> str:
    return Template(source, {"eos_token": "</s>"}).text(HELLO, None, open_turn=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_template_is_its_text(name: str) -> None:
    text = resolve_template(name)
    assert text == named_template(name)
    assert "messages" in text and not text.endswith("\n")


def test_a_file_is_its_text_and_nothing_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}\n", encoding="utf-8")
    assert resolve_template(str(tmp_path / "chat.jinja")) == "{{ messages }}\n"
    assert resolve_template(None) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("chatmll", "no such file, and no template of this name; did you mean chatml?"),
        ("a/b.jinja", "expected a Jinja file or one of plain, chatml"),
    ],
)
def test_a_name_that_means_nothing_is_refused(given: str, reason: str) -> None:
    with pytest.raises(DataError) as raised:
        resolve_template(given)
    assert f"data.chat_template {given}: " in str(raised.value)
    assert reason in str(raised.value)


def test_a_file_that_cannot_be_read_as_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        resolve_template(str(tmp_path))
    (tmp_path / "a.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="it is not UTF-8 text"):
        resolve_template(str(tmp_path / "a.jinja"))


def test_a_template_declares_its_tokens_in_its_first_comment() -> None:
    assert needed_tokens("{#- special tokens: <a> <b> -#}\nx") == ["<a>", "<b>"]
    assert needed_tokens("{# special tokens: <a> #}") == ["<a>"]
    assert needed_tokens("x {# special tokens: <a> #}") == needed_tokens("plain text") == []
    assert needed_tokens(named_template("phi4")) == ["<|im_start|>", "<|im_sep|>", "<|im_end|>"]


def test_a_template_writes_the_same_date_every_day() -> None:
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


def test_json_is_written_as_models_read_it() -> None:
    assert rendered("{{ messages[0] | tojson }}") == '{"role": "user", "content": "<b>Hei, \u00e5"}'
    assert rendered("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_a_template_has_the_helpers_that_others_give_it() -> None:
    assert rendered("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(b=3).b }}") == "23"
    assert rendered("{{ dict.fromkeys('ab', 1) }}") == "{'a': 1, 'b': 1}"
    assert rendered("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}") == "1"
    assert rendered("{{ messages[0].items() | list | length }}{{ messages[0].nothing }}") == "2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ strftime_now.__self__ }}.{{ strftime_now.__self__.now() }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ lipsum() }}",
        "{% include 'x' %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    try:
        text = rendered(source)
    except DataError:
        return
    assert text in ("", ".")  # what may not be seen is undefined


def test_marks_are_there_when_asked_for() -> None:
    template = Template("a{% generation %}{{ eos_token }}{% endgeneration %}b", {"eos_token": "e"})
    assert template.marks_answers
    assert template.text(HELLO, None, False) == "aeb"
    assert template.text(HELLO, None, False, marks=True) == f"a{MARKS[0]}e{MARKS[1]}b"
    assert not Template("a", {}).marks_answers
