"""One renderer: a prompt's ids begin the training ids, and only the assistant's words carry loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.errors import DataError, ModelError
from tunewright.models.chat import ChatRenderer
from tunewright.models.load import load_renderer, load_tokenizer, save_tokenizer
from tunewright.models.templates import named_template
from tunewright.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, TinyShape, write_newborn

SHARED_MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"
ENDLESS_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}" + (
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Ends no turn: the renderer itself has to."""
TEMPLATES = {"tiny": CHAT_TEMPLATE, "plain": named_template("plain"), "endless": ENDLESS_TEMPLATE}

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() and not any(token in text for token in SPECIAL_TOKENS)
)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newborn")
    shape = TinyShape(
        vocab_limit=400, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, context=64
    )
    write_newborn(folder, ["Hello, where is my order TW-48K1? Thanks, the user."] * 3, shape, seed=0)
    return folder


@pytest.fixture(scope="module")
def renderers(folder: Path) -> dict[str, ChatRenderer]:
    return {name: load_renderer(folder, template) for name, template in TEMPLATES.items()}


def chat(pairs: list[tuple[str, str]], system: str | None = None) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60)
@given(pairs=turns, system=st.none() | words)
def test_every_prompt_begins_the_ids_it_was_trained_on(
    renderers: dict[str, ChatRenderer], name: str, pairs: list[tuple[str, str]], system: str | None
) -> None:
    renderer, messages = renderers[name], chat(pairs, system)
    whole, checked = renderer.conversation(messages), 0
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = renderer.prompt(messages[:index])
            assert whole.ids[: len(prompt)] == prompt
            checked += 1
    assert checked == len(pairs)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60)
@given(pairs=turns, system=st.none() | words)
def test_loss_is_on_the_answers_and_their_ends_and_on_nothing_else(
    renderers: dict[str, ChatRenderer], name: str, pairs: list[tuple[str, str]], system: str | None
) -> None:
    renderer = renderers[name]
    whole = renderer.conversation(chat(pairs, system))
    assert len(whole.ids) == len(whole.loss_mask)
    learned = [i for i, m in zip(whole.ids, whole.loss_mask, strict=True) if m]
    end = "<|end|>" if name == "tiny" else "<|eos|>"
    wanted = "".join(answer + end for _, answer in pairs)
    assert renderer.tokenizer.decode(learned, clean_up_tokenization_spaces=False) == wanted
    assert sum(i in renderer.stop_ids for i in learned) == len(pairs)
    assert learned[-1] in renderer.stop_ids


@pytest.mark.parametrize("name", TEMPLATES)
@given(answer=words)
def test_the_text_of_an_answer_is_the_answer_whatever_follows_its_end(
    renderers: dict[str, ChatRenderer], name: str, answer: str
) -> None:
    renderer, messages = renderers[name], chat([("a question", answer)])
    generated = renderer.conversation(messages).ids[len(renderer.prompt(messages[:1])) :]
    assert renderer.text([*generated, 260, 261]) == answer


def test_a_conversation_of_many_shapes_keeps_its_prefix(renderers: dict[str, ChatRenderer]) -> None:
    roles = ["system", "user", "user", "assistant", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": f"word {n}"} for n, role in enumerate(roles)]
    for renderer in renderers.values():
        whole = renderer.conversation(messages)
        assert (
            whole.ids[: len(renderer.conversation(messages[:4]).ids)]
            == renderer.conversation(messages[:4]).ids
        )
        assert sum(i in renderer.stop_ids for i, m in zip(whole.ids, whole.loss_mask, strict=True) if m) == 3


def test_the_ids_are_those_of_the_whole_text_cut_at_the_turns(renderers: dict[str, ChatRenderer]) -> None:
    renderer = renderers["tiny"]
    text = "<|user|>\nHello<|end|>\n<|assistant|>\nThanks<|end|>\n"
    ids = renderer.conversation(chat([("Hello", "Thanks")])).ids
    assert renderer.tokenizer.decode(ids) == text


@pytest.mark.parametrize("token", ["<|end|>", "<|eos|>", "<|assistant|>", "<|pad|>"])
@pytest.mark.parametrize("index", [0, 1, 2], ids=["system", "user", "assistant"])
def test_a_special_token_in_a_message_is_refused(
    renderers: dict[str, ChatRenderer], token: str, index: int
) -> None:
    messages = chat([("a", "b")], system="c")
    messages[index]["content"] = f"words {token} words"
    for renderer in renderers.values():
        with pytest.raises(DataError, match=rf"message {index} .* contains the special token"):
            renderer.conversation(messages)


def test_a_special_token_that_only_the_added_tokens_name_is_refused_too(folder: Path) -> None:
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(folder)
    tokenizer._tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True)])
    assert "<|turn|>" not in tokenizer.all_special_tokens
    with pytest.raises(DataError, match=r"contains the special token <\|turn\|>"):
        ChatRenderer(tokenizer).prompt([{"role": "user", "content": "a<|turn|>b"}])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "does not end with an assistant message"),
        ([{"role": "user", "content": "a"}], "does not end with an assistant message"),
        ([{"role": "function", "content": "a"}, *chat([("a", "b")])], "message 0 has role 'function'"),
        (
            [{"role": "tool", "content": "a"}, *chat([("a", "b")])],
            "message 0 is a tool's answer, but no call",
        ),
        ([{"role": "assistant", "content": "a"}], "begins with the assistant: nothing was asked"),
        ([{"content": "a"}, *chat([("a", "b")])], "message 0 has role None"),
        ([{"role": "user"}, *chat([("a", "b")])], r"message 0 \(user\) has no text"),
        ([{"role": "user", "content": [{"type": "text"}]}, *chat([("a", "b")])], r"message 0 \(user\)"),
        (chat([("a", " \n")]), r"message 1 \(assistant\) has no text"),
        ([*chat([("a", "b")]), *chat([("a", "b")], system="s")], "message 2 is a system message"),
    ],
)
def test_what_is_not_a_conversation_is_refused(
    renderers: dict[str, ChatRenderer], messages: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        renderers["tiny"].conversation(messages)


def test_there_is_nothing_to_answer_after_the_assistant(renderers: dict[str, ChatRenderer]) -> None:
    with pytest.raises(DataError, match="there is nothing to answer"):
        renderers["tiny"].prompt(chat([("a", "b")]))
    with pytest.raises(DataError, match="there is nothing to answer"):
        renderers["tiny"].prompt([])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages if m.role == 'user' or m == messages[-1] %}{{ m.content }}{% endfor %}",
            "rewrites earlier turns when later ones follow",
        ),
        (
            "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}",
            "does not go on, when it writes an answer, from the words with which it asks for one",
        ),
    ],
    ids=["forgets earlier answers", "counts the messages"],
)
def test_a_template_that_rewrites_earlier_turns_is_refused(folder: Path, template: str, reason: str) -> None:
    renderer = load_renderer(folder, template)
    with pytest.raises(DataError, match=reason):
        renderer.conversation(chat([("a", "b"), ("c", "d")]))


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{{ messages[9].content }}", "{{ 1 + 'a' }}", "{{ range(10 ** 9) }}"],
    ids=["raises", "undefined", "type", "too much"],
)
def test_a_template_that_fails_refuses_the_row_with_its_reason(folder: Path, template: str) -> None:
    with pytest.raises(DataError, match="the chat template refuses the conversation: "):
        load_renderer(folder, template).conversation(chat([("a", "b")]))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages | random }}", "No filter named 'random'"),
        ("{{ messages[0]..content }}", "expected"),
    ],
)
def test_what_is_no_template_is_refused_before_any_row(folder: Path, template: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"the chat template cannot be compiled: .*{reason}"):
        load_renderer(folder, template)


def test_a_tokenizer_without_an_end_could_never_be_taught_to_stop(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        ChatRenderer(tokenizer)


def test_a_tokenizer_without_a_template_gets_the_plain_one(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = None
    renderer = ChatRenderer(tokenizer)
    text = tokenizer.decode(renderer.conversation(chat([("a", "b")], system="s")).ids)
    assert text == "<|bos|>s\n\nUser: a\nAssistant: b<|eos|>\n"
    assert renderer.template_hash != load_renderer(folder).template_hash


def test_the_tokenizers_own_template_is_used_unless_another_is_given(folder: Path) -> None:
    assert load_renderer(folder).template == CHAT_TEMPLATE
    assert load_renderer(folder, ENDLESS_TEMPLATE).template == ENDLESS_TEMPLATE


def test_stop_tokens_of_the_generation_config_are_heeded(folder: Path) -> None:
    renderer = load_renderer(folder)
    names = renderer.tokenizer.convert_ids_to_tokens(sorted(renderer.stop_ids))
    assert names == ["<|eos|>", "<|end|>"]
    assert renderer.pad_id == renderer.tokenizer.pad_token_id


def test_a_saved_tokenizer_renders_as_before(folder: Path, tmp_path: Path) -> None:
    messages = chat([("Hello", "Thanks"), ("c", "d")], system="s")
    for template in TEMPLATES.values():
        before = load_renderer(folder, template)
        save_tokenizer(before, tmp_path)
        after = load_renderer(tmp_path)
        assert after.conversation(messages) == before.conversation(messages)
        assert (after.stop_ids, after.pad_id) == (before.stop_ids, before.pad_id)
        assert after.template_hash == before.template_hash


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"added_tokens": []}', '{"added_tokens": [], "model": {"type": "Nope"}}'],
    ids=["empty", "cut", "list", "no model", "unknown model"],
)
def test_a_damaged_tokenizer_is_a_model_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match="the tokenizer in .* cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_generation_config_is_a_model_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json is not a JSON object"):
        load_renderer(tmp_path)


@pytest.mark.parametrize("name", ["stories260k-hf", "babyllama105-hf", "gpt2-tokenizer-hf"])
def test_real_tokenizers_keep_the_same_promises(name: str) -> None:
    if not (SHARED_MODELS / name).is_dir():
        pytest.skip("needs the real models in ../shared")
    renderer = load_renderer(SHARED_MODELS / name)
    messages = chat([("Where is my order?", "On its way."), ("When?", "Today, at 10:30.")], system="Be kind.")
    whole = renderer.conversation(messages)
    for index in (2, 4):
        prompt = renderer.prompt(messages[:index])
        assert whole.ids[: len(prompt)] == prompt
    generated = whole.ids[len(renderer.prompt(messages[:-1])) :]
    assert renderer.text(generated).strip() == "Today, at 10:30."
    learned = [i for i, m in zip(whole.ids, whole.loss_mask, strict=True) if m]
    assert sum(i in renderer.stop_ids for i in learned) == 2
    assert 0 < len(learned) < len(whole.ids)
