"""Documents carry loss and labels where they should, keep their lengths, and fit a row or say why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.config import DataConfig
from tunewright.data.encode import Encoder
from tunewright.data.encode_texts import first_tokens, split_words
from tunewright.data.records import to_example
from tunewright.data.rows import NO_LABEL, Document, Encoded, Example, Task
from tunewright.errors import DataError
from tunewright.models.chat import ChatRenderer
from tunewright.models.load import load_renderer
from tunewright.models.tiny import SPECIAL_TOKENS, TinyShape, write_newborn

SHARED = Path(__file__).resolve().parents[4] / "shared"
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and not any(token in text for token in SPECIAL_TOKENS)
)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


FORGETFUL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Shows the last answer alone, as templates do that drop what a model thought earlier."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newborn")
    shape = TinyShape(
        vocab_limit=400, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, context=64
    )
    write_newborn(folder, ["Hello, where is my order TW-48K1? Thanks, the user."] * 3, shape, seed=0)
    return folder


@pytest.fixture(scope="module")
def renderer(folder: Path) -> ChatRenderer:
    return load_renderer(folder)


@pytest.fixture(scope="module")
def forgetful(folder: Path) -> ChatRenderer:
    return load_renderer(folder, FORGETFUL_TEMPLATE)


def encoder(
    renderer: ChatRenderer,
    task: Task,
    seq_len: int = 4096,
    overflow: str = "drop",
    loss: dict[str, str] | None = None,
) -> Encoder:
    settings = {
        "sources": [{"type": "jsonl", "path": "x"}],
        "pack": {"seq_len": seq_len, "overflow": overflow},
        "loss": loss or {},
    }
    return Encoder(renderer, DataConfig.model_validate(settings), task)


def one(renderer: ChatRenderer, task: Task, content: dict[str, Any], **settings: Any) -> Encoded:
    (found,) = encoder(renderer, task, **settings).encode([Example(task, content)])
    if isinstance(found, DataError):
        raise found
    return found


def chat(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    messages = []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def learned(renderer: ChatRenderer, document: Document) -> str:
    kept = document.ids[document.loss_mask == 1]
    return str(renderer.tokenizer.decode(kept, clean_up_tokenization_spaces=False))


@settings(max_examples=50)
@given(pairs=turns)
def test_a_conversation_is_what_the_renderer_says(
    renderer: ChatRenderer, pairs: list[tuple[str, str]]
) -> None:
    messages = chat(*pairs)
    encoded = one(renderer, "conversation", {"messages": messages})
    (document,) = encoded.documents
    rendered = renderer.conversation(messages)
    assert (document.ids.tolist(), document.loss_mask.tolist()) == (rendered.ids, rendered.loss_mask)
    assert (document.ids.dtype, document.loss_mask.dtype) == (np.int32, np.int8)
    assert (document.labels, document.segments, encoded.notes) == (None, (), ())


def test_a_bad_example_costs_itself_alone(renderer: ChatRenderer) -> None:
    contents = [{"messages": chat(("q", text))} for text in ("one", "a <|end|> b", "three")]
    found = encoder(renderer, "conversation").encode([Example("conversation", c) for c in contents])
    assert isinstance(found[1], DataError)
    assert "special token" in str(found[1])
    good = [learned(renderer, f.documents[0]) for f in found if isinstance(f, Encoded)]
    assert good == ["one<|end|>", "three<|end|>"]


@pytest.mark.parametrize("task", ["conversation", "text", "preference", "kto", "classification", "tags"])
def test_no_examples_are_no_documents(renderer: ChatRenderer, task: Task) -> None:
    assert encoder(renderer, task).encode([]) == []


def test_weights_and_turns_say_what_is_learned(renderer: ChatRenderer) -> None:
    messages = chat(("q", "first"), ("r", "second"))
    marked = [messages[0], {**messages[1], "weight": 0}, *messages[2:]]
    last = {"turns": "last"}
    for content, loss in ((marked, {}), (messages, last)):
        encoded = one(renderer, "conversation", {"messages": content}, loss=loss)
        assert learned(renderer, encoded.documents[0]) == "second<|end|>"
    unmarked = [*messages[:3], {**messages[3], "weight": 0}]
    with pytest.raises(DataError, match="carries loss"):
        one(renderer, "conversation", {"messages": unmarked}, loss=last)


def test_turns_that_a_template_rewrites_become_documents_of_their_own(forgetful: ChatRenderer) -> None:
    messages = chat(("q", "first"), ("r", "second"))
    encoded = one(forgetful, "conversation", {"messages": messages})
    assert [learned(forgetful, d) for d in encoded.documents] == ["first<|end|>", "second<|end|>"]
    assert encoded.notes == ("expanded",)
    with pytest.raises(DataError, match="rewrites"):
        one(forgetful, "conversation", {"messages": messages}, loss={"history": "refuse"})


def test_an_answer_after_rewritten_turns_is_one_document(forgetful: ChatRenderer) -> None:
    messages = chat(("q", "first"), ("r", "second"))
    (document,) = one(forgetful, "preference", pair(messages[:3], "yes", "no")).documents
    assert learned(forgetful, document) == "yes<|end|>no<|end|>"
    (document,) = one(forgetful, "kto", {"messages": messages, "label": False}).documents
    assert learned(forgetful, document) == "second<|end|>"
    both = {**pair(messages[:1], "a", "b"), "chosen": messages[1:]}
    with pytest.raises(DataError, match="chosen: the chat template rewrites earlier turns"):
        one(forgetful, "preference", both)


@pytest.mark.parametrize("task", ["conversation", "kto", "preference"])
def test_tools_are_part_of_the_prompt(renderer: ChatRenderer, forgetful: ChatRenderer, task: Task) -> None:
    tools = [{"type": "function", "function": {"name": "find_order", "parameters": {}}}]
    messages = chat(("q", "a"))
    content = {"messages": messages, "tools": tools, "label": True}
    if task == "preference":
        content = {**pair(messages[:1], "yes", "no"), "tools": tools}
    (document,) = one(forgetful, task, content).documents
    shown = str(forgetful.tokenizer.decode(document.ids))
    assert shown.count("find_order") == (2 if task == "preference" else 1)
    assert "find_order" not in learned(forgetful, document)
    with pytest.raises(DataError, match="shows no tools"):
        one(renderer, task, content)


LONG = chat(("old question " * 5, "old answer"), ("new question", "new answer"))


@pytest.mark.parametrize("overflow", ["drop", "error"])
def test_a_conversation_that_is_too_long_is_refused_with_its_length(
    renderer: ChatRenderer, overflow: str
) -> None:
    tokens = len(renderer.conversation(LONG).ids)
    with pytest.raises(DataError, match=f"{tokens} tokens do not fit a row of seq_len={tokens - 1}"):
        one(renderer, "conversation", {"messages": LONG}, seq_len=tokens - 1, overflow=overflow)
    assert one(renderer, "conversation", {"messages": LONG}, seq_len=tokens, overflow=overflow).notes == ()


def test_a_long_conversation_loses_its_oldest_turns_where_that_is_allowed(renderer: ChatRenderer) -> None:
    room = len(renderer.conversation(LONG[2:]).ids) + 4
    encoded = one(renderer, "conversation", {"messages": LONG}, seq_len=room, overflow="truncate_prompt")
    assert encoded.notes == ("truncated",)
    assert learned(renderer, encoded.documents[0]) == "new answer<|end|>"
    assert len(encoded.documents[0].ids) <= room


def pair(messages: list[dict[str, Any]], chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "messages": messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


@settings(max_examples=50)
@given(pairs=turns, question=words, answers=st.lists(words, min_size=2, max_size=2, unique=True))
def test_a_pair_is_one_document_with_loss_on_its_two_answers(
    renderer: ChatRenderer, pairs: list[tuple[str, str]], question: str, answers: list[str]
) -> None:
    content = pair([*chat(*pairs), {"role": "user", "content": question}], *answers)
    (document,) = one(renderer, "preference", content).documents
    chosen = renderer.conversation([*content["messages"], *content["chosen"]])
    rejected = renderer.conversation([*content["messages"], *content["rejected"]])
    assert document.segments == (len(chosen.ids), len(rejected.ids))
    assert document.ids.tolist() == [*chosen.ids, *rejected.ids]
    assert len(document.loss_mask) == len(document.ids) and document.labels is None
    assert learned(renderer, document) == "".join(f"{answer}<|end|>" for answer in answers)


def test_both_answers_of_a_pair_must_fit_together(renderer: ChatRenderer) -> None:
    content = pair(LONG[:3], "yes", "no")
    tokens = len(one(renderer, "preference", content).documents[0].ids)
    short = pair(LONG[2:3], "yes", "no")
    room = len(one(renderer, "preference", short).documents[0].ids)
    assert one(renderer, "preference", content, seq_len=tokens).notes == ()
    with pytest.raises(DataError, match=f"{tokens} tokens do not fit a row of seq_len={tokens - 1}"):
        one(renderer, "preference", content, seq_len=tokens - 1)
    with pytest.raises(DataError, match="do not fit a row .* a pair of answers is not split"):
        one(renderer, "preference", content, seq_len=room, overflow="split")
    cut = one(renderer, "preference", content, seq_len=room, overflow="truncate_prompt")
    assert cut.notes == ("truncated",)
    assert cut.documents[0].ids.tolist() == one(renderer, "preference", short).documents[0].ids.tolist()
    with pytest.raises(DataError, match="do not fit a row .*, nor does the last question with its answers"):
        one(renderer, "preference", content, seq_len=room - 1, overflow="truncate_prompt")


def test_instructions_stay_when_a_pair_loses_its_oldest_turns(renderer: ChatRenderer) -> None:
    system = {"role": "system", "content": "be kind"}
    short = one(renderer, "preference", pair([system, LONG[2]], "yes", "no")).documents[0]
    content = pair([system, *LONG[:3]], "yes", "no")
    cut = one(renderer, "preference", content, seq_len=len(short.ids), overflow="truncate_prompt")
    assert cut.documents[0].ids.tolist() == short.ids.tolist()


def test_a_pair_that_became_the_same_is_refused(renderer: ChatRenderer) -> None:
    with pytest.raises(DataError, match="the same after normalising and redacting"):
        one(renderer, "preference", pair(LONG[:1], "[email]", "[email]"))


@settings(max_examples=50)
@given(pairs=turns, good=st.booleans())
def test_the_label_of_a_rated_answer_stands_at_its_last_token(
    renderer: ChatRenderer, pairs: list[tuple[str, str]], good: bool
) -> None:
    (document,) = one(renderer, "kto", {"messages": chat(*pairs), "label": good}).documents
    assert document.labels is not None and len(document.labels) == len(document.ids)
    (at,) = np.flatnonzero(document.labels != NO_LABEL)
    assert (document.labels[at], at) == (int(good), np.flatnonzero(document.loss_mask)[-1])
    assert learned(renderer, document) == f"{pairs[-1][1]}<|end|>"


def test_a_long_rated_answer_is_cut_in_its_question_only(renderer: ChatRenderer) -> None:
    content = {"messages": LONG, "label": True}
    room = len(renderer.conversation(LONG[2:]).ids) + 4
    encoded = one(renderer, "kto", content, seq_len=room, overflow="truncate_prompt")
    assert encoded.notes == ("truncated",)
    (document,) = encoded.documents
    assert learned(renderer, document) == "new answer<|end|>"
    assert document.labels is not None and (document.labels == 1).sum() == 1
    with pytest.raises(DataError, match="do not fit a row .* a conversation with one label is not split"):
        one(renderer, "kto", content, seq_len=room, overflow="split")


@settings(max_examples=50)
@given(text=words, seq_len=st.integers(8, 12))
def test_the_pieces_of_a_text_are_the_text_between_begin_and_end(
    renderer: ChatRenderer, text: str, seq_len: int
) -> None:
    tokenizer = renderer.tokenizer
    encoded = one(renderer, "text", {"text": text}, seq_len=seq_len)
    ids = [i for document in encoded.documents for i in document.ids.tolist()]
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.bos_token_id, *inner, tokenizer.eos_token_id]
    assert all(len(d.ids) == seq_len for d in encoded.documents[:-1])
    assert all(d.loss_mask.all() and len(d.loss_mask) == len(d.ids) for d in encoded.documents)
    assert encoded.notes == (("split",) if len(encoded.documents) > 1 else ())


@pytest.mark.parametrize("task", ["text", "classification", "tags"])
@pytest.mark.parametrize(
    ("text", "words"), [("", "nothing is left"), (" ", "nothing is left"), ("a\ud800", "half of a surrogate")]
)
def test_a_text_that_is_none_costs_itself_alone(
    renderer: ChatRenderer, task: Task, text: str, words: str
) -> None:
    texts = ["Hello", text, "Thanks"]
    contents = [{"text": t, "label": "a", "tokens": [t], "tags": ["O"]} for t in texts]
    found = encoder(renderer, task).encode([Example(task, content) for content in contents])
    assert [isinstance(one, Encoded) for one in found] == [True, False, True]
    assert words in str(found[1])


def test_a_class_stands_at_the_last_token_and_classes_are_numbered_as_they_come(
    renderer: ChatRenderer,
) -> None:
    ways = encoder(renderer, "classification")
    labels = ["refund", "order", "refund"]
    found = ways.encode([Example("classification", {"text": "Hello", "label": name}) for name in labels])
    documents = [one.documents[0] for one in found if isinstance(one, Encoded)]
    assert [d.labels[-1] for d in documents if d.labels is not None] == [0, 1, 0]
    assert ways.label_names == ["refund", "order"]
    for document in documents:
        assert document.labels is not None and (document.labels[:-1] == NO_LABEL).all()
        assert document.loss_mask.tolist() == [0] * (len(document.ids) - 1) + [1]
        assert document.ids[-1] == renderer.tokenizer.eos_token_id
    assert ways.encode([Example("classification", {"text": "x", "label": "order"})])
    assert ways.label_names == ["refund", "order"]


def test_a_long_text_with_a_class_keeps_its_beginning_or_is_refused(renderer: ChatRenderer) -> None:
    content = {"text": "Hello, where is my order TW-12345?", "label": "order"}
    whole = one(renderer, "classification", content).documents[0]
    n = len(whole.ids)
    cut = one(renderer, "classification", content, seq_len=n - 2, overflow="truncate_prompt")
    assert cut.notes == ("truncated",)
    assert cut.documents[0].ids.tolist() == [*whole.ids[: n - 3], whole.ids[-1]]
    for overflow, words in (
        ("drop", f"^{n} tokens do not fit a row of seq_len={n - 2}$"),
        ("split", "split"),
    ):
        ways = encoder(renderer, "classification", seq_len=n - 2, overflow=overflow)
        (refused,) = ways.encode([Example("classification", content)])
        assert isinstance(refused, DataError)
        with pytest.raises(DataError, match=words):
            raise refused
        assert ways.label_names == []


tagged = st.lists(st.tuples(words, st.sampled_from(["O", "B-x", "B-y"])), min_size=1, max_size=8)


@settings(max_examples=100)
@given(pairs=tagged)
def test_each_word_has_its_tag_at_its_first_token(
    renderer: ChatRenderer, pairs: list[tuple[str, str]]
) -> None:
    ways = encoder(renderer, "tags")
    tokens, tags = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    (encoded,) = ways.encode([Example("tags", {"tokens": tokens, "tags": tags})])
    assert isinstance(encoded, Encoded)
    (document,) = encoded.documents
    assert document.labels is not None
    assert len(document.ids) == len(document.labels) == len(document.loss_mask)
    at = np.flatnonzero(document.labels != NO_LABEL)
    assert [ways.label_names[i] for i in document.labels[at]] == tags
    assert document.loss_mask.tolist() == (document.labels != NO_LABEL).tolist()
    assert renderer.tokenizer.decode(document.ids[1:-1]) == " ".join(tokens)
    for index, first in enumerate(at):
        before = str(renderer.tokenizer.decode(document.ids[1:first]))
        assert before.strip() == " ".join(tokens[:index]).strip()


SENTENCE = {
    "tokens": ["I", "saw", "San", "Jose", "and", "New", "York", "City"],
    "tags": ["O", "O", "B-loc", "I-loc", "O", "B-loc", "I-loc", "I-loc"],
}


@pytest.mark.parametrize("seq_len", range(14, 30))
def test_long_tagged_text_is_split_between_entities(renderer: ChatRenderer, seq_len: int) -> None:
    ways = encoder(renderer, "tags", seq_len=seq_len, overflow="split")
    (encoded,) = ways.encode([Example("tags", SENTENCE)])
    assert isinstance(encoded, Encoded)
    tags = []
    for document in encoded.documents:
        assert document.labels is not None and len(document.ids) <= seq_len
        own = [ways.label_names[i] for i in document.labels[document.labels != NO_LABEL]]
        assert not own[0].startswith("I-")
        tags += own
    assert tags == SENTENCE["tags"]
    assert encoded.notes == (("split",) if len(encoded.documents) > 1 else ())
    inner = [i for d in encoded.documents for i in d.ids[1:-1].tolist()]
    assert renderer.tokenizer.decode(inner) == " ".join(SENTENCE["tokens"])


@pytest.mark.parametrize(
    ("overflow", "words"),
    [
        ("drop", r"^\d+ tokens do not fit a row of seq_len=8$"),
        ("truncate_prompt", "do not fit a row of seq_len=8; words with tags are not cut off"),
        ("split", "do not fit a row of seq_len=8; an entity alone is longer than that"),
    ],
)
def test_tagged_text_that_cannot_fit_is_refused(renderer: ChatRenderer, overflow: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        one(renderer, "tags", SENTENCE, seq_len=8, overflow=overflow)


@pytest.mark.parametrize(
    ("offsets", "tokens", "starts"),
    [
        ([(0, 2), (2, 5), (5, 7)], ["my", "cats"], [0, 1]),
        ([(0, 2), (2, 3), (3, 5)], ["my", "so"], [0, 2]),
        ([(0, 1), (0, 1), (1, 3)], ["é", "a"], [0, 2]),
        ([(0, 1), (1, 3), (3, 5)], [" a", "b"], [1, 2]),
    ],
    ids=["space with the word", "space alone", "bytes of a character", "blank before a word"],
)
def test_the_first_token_of_a_word_holds_its_first_character(
    offsets: list[tuple[int, int]], tokens: list[str], starts: list[int]
) -> None:
    assert first_tokens(offsets, tokens) == starts


@pytest.mark.parametrize(
    ("offsets", "tokens", "words"),
    [
        ([(0, 1), (4, 5)], ["a", "\u200b", "b"], "word 1 has no token of its own"),
        ([(0, 1)], ["a", "b"], "word 1 has no token of its own"),
        ([(0, 3)], ["a", "b"], "word 1 has no token of its own"),
        ([(0, 1)], ["a", " "], "word 1 is blank"),
        ([(0, 1)], ["a", ""], "word 1 is blank"),
    ],
    ids=["dropped", "cut", "joined", "blank", "empty"],
)
def test_a_word_without_a_token_is_refused(
    offsets: list[tuple[int, int]], tokens: list[str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        first_tokens(offsets, tokens)


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    inside=st.lists(st.booleans(), min_size=12, max_size=12),
    room=st.integers(4, 12),
)
def test_ranges_of_words_fit_and_are_all_words_in_order(
    sizes: list[int], inside: list[bool], room: int
) -> None:
    tags = ["I-x" if i and inside[i] else "B-x" for i in range(len(sizes))]
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1].tolist()
    ranges = split_words(starts, sum(sizes), tags, room)
    if not ranges:
        entities = "".join("|" if tag == "B-x" else "-" for tag in tags).split("|")[1:]
        lengths = iter(sizes)
        assert max(sum(next(lengths) for _ in range(len(rest) + 1)) for rest in entities) > room
        return
    assert [i for first, last in ranges for i in range(first, last)] == list(range(len(sizes)))
    assert all(sum(sizes[first:last]) <= room and tags[first] == "B-x" for first, last in ranges)


REAL = [
    ("preference-demo/dpo_en_demo.json", "preference", "preference"),
    ("wnut17/dev.jsonl", "tags", "tags"),
    ("clinc150/val.jsonl", "classification", "classification"),
    ("sgd-dialogues/dev.jsonl", "messages", "conversation"),
]


@pytest.mark.parametrize(("name", "form", "task"), REAL, ids=[row[0] for row in REAL])
def test_real_rows_are_encoded_and_each_is_accounted_for(name: str, form: str, task: Task) -> None:
    path, folder = SHARED / "data" / name, SHARED / "models" / "gpt2-tokenizer-hf"
    if not (path.is_file() and folder.is_dir()):
        pytest.skip(f"needs ../shared/data/{name} and ../shared/models/gpt2-tokenizer-hf")
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    examples = [to_example(row, form, {}, None) for row in rows[:200]]
    ways = encoder(load_renderer(folder), task, seq_len=1024)
    found = ways.encode(examples)
    assert len(found) == len(examples) == 200
    refused = [str(one) for one in found if isinstance(one, DataError)]
    assert all("do not fit a row of seq_len=1024" in reason for reason in refused)
    assert len(refused) <= (150 if task == "preference" else 0)
    for example, one in zip(examples, found, strict=True):
        if isinstance(one, DataError):
            continue
        (document,) = one.documents
        assert 0 < document.loss_mask.sum() < len(document.ids) <= 1024
        if task == "tags" and document.labels is not None:
            assert [ways.label_names[i] for i in document.labels[document.labels >= 0]] == example.content[
                "tags"
            ]
