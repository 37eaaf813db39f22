"""Small sets are read whole: each row is a conversation, or the error names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from doubles import publish
from tunewright.artifacts import Artifact, Store
from tunewright.config import BuiltinSource, FileSource
from tunewright.data import conversations
from tunewright.data.conversations import format_of, read_conversations, read_examples, read_texts
from tunewright.data.records import payload
from tunewright.data.rows import Example
from tunewright.data.tables import write_table
from tunewright.errors import DataError

TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALL = {"type": "function", "function": {"name": "find", "arguments": {}}}


def source(tmp_path: Path, rows: list[Any], **more: Any) -> FileSource:
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return FileSource(type="jsonl", path=str(path), **more)


def test_a_stated_format_is_not_looked_for(tmp_path: Path) -> None:
    assert format_of(0, source(tmp_path, ["no JSON"], format="kto")) == ("kto", "stated")


def test_the_format_is_that_of_the_first_rows_that_parse(tmp_path: Path) -> None:
    rows = ["broken", *[{"prompt": "q", "completion": "a"}] * 60, *[{"text": "t"}] * 60]
    form, because = format_of(0, source(tmp_path, rows))
    assert (form, because) == ("prompt_completion", "the first 50 rows have prompt and completion")


def test_a_source_without_a_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: the rows' format is not known: columns are a \(text\)"):
        format_of(0, source(tmp_path, [{"a": "b"}]))


def test_a_source_of_which_nothing_parses_is_given_up_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    read = conversations.read_chunk

    def counting(*args: Any) -> Any:
        for raw in read(*args):
            seen.append(raw.line)
            yield raw

    monkeypatch.setattr(conversations, "read_chunk", counting)
    with pytest.raises(DataError, match=r"rows.jsonl: no row can be read as jsonl: rows.jsonl:1: "):
        format_of(0, source(tmp_path, ["broken"] * 3000))
    assert len(seen) == conversations.PEEK_BROKEN


def test_conversations_come_in_order_with_their_system_message(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]
    columns = {"prompt": "question", "completion": "answer"}
    found = read_conversations(source(tmp_path, rows, columns=columns, system="kind"), tmp_path)
    assert [[m["content"] for m in chat] for chat in found] == [["kind", f"q{n}", f"a{n}"] for n in range(3)]


def test_rows_that_tunewright_generates_are_conversations(tmp_path: Path) -> None:
    found = read_conversations(BuiltinSource(type="builtin", part="heldout", rows=7), tmp_path)
    assert len(found) == 7
    assert all(chat[-1]["role"] == "assistant" for chat in found)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": TURN}, "{"], r"rows.jsonl:2: "),
        ([{"messages": TURN}, {"messages": []}], r"rows.jsonl:2: `messages` is an empty list"),
        ([{"text": "t"}], r"rows.jsonl:1: rows of text hold no question .*prompt: text, completion: label"),
        ([{"messages": TURN, "label": True}], r"rows.jsonl:1: rows of kto hold no question"),
        ([{"messages": TURN, "tools": [CALL]}], r"rows.jsonl:1: the conversation has tools"),
        (
            [{"messages": [TURN[0], {"role": "assistant", "tool_calls": [CALL]}]}],
            r"rows.jsonl:1: the conversation has tools",
        ),
    ],
    ids=["no JSON", "no messages", "text", "kto", "tools", "call"],
)
def test_a_row_that_no_task_can_ask_is_named(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_conversations(source(tmp_path, rows), tmp_path)


def test_the_texts_of_an_evaluation_set_leave_out_what_instructs_the_model(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "kind"}, *TURN]
    assert list(read_texts(source(tmp_path, [{"messages": chat}] * 2))) == ["q", "a", "q", "a"]
    assert list(read_texts(source(tmp_path, [{"text": "t", "label": "c"}]))) == ["t"]


def data_set(store: Store, *parts: list[Example]) -> Artifact:
    def fill(folder: Path) -> None:
        (folder / "examples").mkdir()
        for number, part in enumerate(parts):
            table = pa.table({"example": [payload(example) for example in part]})
            write_table(folder / "examples" / f"examples-{number:05d}.parquet", table)

    return publish(store, "data", fill=fill)


def said(word: str) -> list[dict[str, str]]:
    return [TURN[0], {"role": "assistant", "content": word}]


def test_the_examples_of_a_data_set_are_read_in_order_up_to_a_limit(tmp_store: Store) -> None:
    chats = [[Example("conversation", {"messages": said(f"{p}{n}")}) for n in range(2)] for p in "ab"]
    data = data_set(tmp_store, *chats)
    assert read_examples(data) == [said(word) for word in ("a0", "a1", "b0", "b1")]
    assert read_examples(data, limit=3) == read_examples(data)[:3]


def test_the_wanted_answer_of_a_pair_is_the_chosen_one(tmp_store: Store) -> None:
    content = {"messages": TURN[:1], "chosen": said("yes")[1:], "rejected": said("no")[1:]}
    assert read_examples(data_set(tmp_store, [Example("preference", content)])) == [said("yes")]


def test_examples_that_cannot_be_asked_are_refused(tmp_store: Store) -> None:
    with pytest.raises(DataError, match="rows of text hold no question"):
        read_examples(data_set(tmp_store, [Example("text", {"text": "t"})]))
