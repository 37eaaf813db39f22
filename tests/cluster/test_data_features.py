"""What a configuration can ask of the data stage, seen in the shards that come out."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_desk import SHARED, Desk, data_config, documents, quarantined, shard_hashes, write_lines
from tiny_runs import SHAPE
from tunewright.artifacts import read_json
from tunewright.config import BaseModelConfig
from tunewright.data.conversations import read_examples
from tunewright.data.dataset import open_rows
from tunewright.data.prepare import gather, prepare_plan
from tunewright.data.rows import NO_LABEL
from tunewright.data.support_desk import pretraining_documents, training_lines
from tunewright.errors import DataError
from tunewright.models.base import register_folder
from tunewright.models.load import load_renderer
from tunewright.models.tiny import write_newborn

pytestmark = pytest.mark.cluster
KEY = "0123456789abcdef" * 4
CLEAN: dict[str, Any] = {"rules": {"max_bad_fraction": 0.0}, "split": {"eval": 0.1}}


def source(path: Path, rows: list[Any], **more: Any) -> dict[str, Any]:
    given = write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])
    return {**given, "format": "auto", **more}


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, **more}


def report(data: Any) -> dict[str, Any]:
    return dict(read_json(data.path / "report.json"))


def test_sources_are_mixed_by_weight_and_the_report_says_asked_and_got(desk: Desk, tmp_path: Path) -> None:
    sources = [
        source(tmp_path / f"{name}.jsonl", [chat(f"{name} {n}?", f"{n}") for n in range(400)], weight=weight)
        for name, weight in (("maths", 3), ("small", 1))
    ]
    made = desk.make(**CLEAN, sources=sources, mix={"strategy": "weights"})
    shares = {Path(name).stem: entry for name, entry in report(made)["sources"].items()}
    assert shares["maths"]["asked"] == 0.75
    assert shares["maths"]["share"] == pytest.approx(0.75, abs=0.06)
    renderer = load_renderer(made.path / "tokenizer")
    seen = Counter(renderer.tokenizer.decode(ids).split()[1] for ids, _ in documents(made, "train"))
    assert seen["maths"] > 1.8 * seen["small"] > 0
    (_, small) = report(made)["funnel"]
    assert small["losses"]["kept"]["not drawn into the mixture"] == 400 - small["kept"] > 100


def test_a_balanced_sample_has_as_many_rows_of_each_label(desk: Desk, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "rare" if n % 10 == 0 else "common"} for n in range(600)]
    given = source(tmp_path / "rows.jsonl", rows, sample={"stratify": "label", "balanced": True})
    made = desk.make(**{**CLEAN, "split": {"eval": 0.0}}, sources=[given])
    labels = report(made)["labels"]
    assert labels["rare"] == 60
    assert 35 <= labels["common"] <= 90


def test_a_small_label_is_on_both_sides_of_a_stratified_split(desk: Desk, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": f"class {n % 40}"} for n in range(160)]
    given = source(tmp_path / "rows.jsonl", rows)
    split = {"eval": 0.02, "stratify": "label"}
    made = desk.make(**{**CLEAN, "split": split}, sources=[given])
    packed = {part: open_rows(made.path, part) for part in ("train", "eval")}
    seen = {
        part: set(np.unique(rows.take(range(len(rows)))["labels"])) - {NO_LABEL}
        for part, rows in packed.items()
    }
    assert seen["train"] == seen["eval"] == set(range(40))


def test_rows_of_one_group_stay_on_one_side(desk: Desk, tmp_path: Path) -> None:
    rows = [chat(f"question {n}", "yes", customer=f"customer {n % 30}") for n in range(300)]
    given = source(tmp_path / "rows.jsonl", rows)
    made = desk.make(**{**CLEAN, "split": {"eval": 0.3, "by": "customer"}}, sources=[given])
    renderer = load_renderer(made.path / "tokenizer")
    groups = {
        part: {
            int(re.search(r"question (\d+)", renderer.tokenizer.decode(ids))[1]) % 30  # type: ignore[index]
            for ids, _ in documents(made, part)
        }
        for part in ("train", "eval")
    }
    assert groups["train"] | groups["eval"] == set(range(30))
    assert groups["train"].isdisjoint(groups["eval"])
    assert len(groups["eval"]) > 2


def test_a_row_without_the_column_of_its_group_is_rejected(desk: Desk, tmp_path: Path) -> None:
    rows = [chat("a", "b", customer="x"), chat("c", "d")]
    given = source(tmp_path / "rows.jsonl", rows, format="prompt_completion")
    split = {"eval": 0.0, "by": "customer"}
    made = desk.make(sources=[given], split=split, rules={"max_bad_fraction": 0.5})
    (row,) = quarantined(made.path, "rejected")
    assert row["line"] == 2
    assert row["reason"] == "column `customer`, named by split.by, is missing"


def test_near_duplicates_and_evaluation_text_are_left_out(desk: Desk, tmp_path: Path) -> None:
    tale = "once upon a time there was a miller who had three sons and a mill and a donkey and a cat"
    far = [f"row {n}: " + " ".join(f"word{n * 31 + k}" for k in range(25)) for n in range(20)]
    texts = [*far, tale, f"{tale} too", "She said: " + far[0]]
    held_out = source(tmp_path / "held.jsonl", [{"text": far[3]}])
    made = desk.make(
        **{**CLEAN, "split": {"eval": 0.0}},
        sources=[source(tmp_path / "rows.jsonl", [{"text": text} for text in texts])],
        near_duplicates={"threshold": 0.6, "ngram": 3},
        contamination={"against": [held_out], "ngram": 8},
    )
    (entry,) = report(made)["funnel"]
    assert entry["losses"]["unique"] == {"near duplicate": 2}
    assert entry["losses"]["clean"] == {"holds N words in a row of the evaluation set held.jsonl": 1}
    assert entry["kept"] == len(texts) - 3
    assert report(made)["contamination"] == {"held.jsonl": 1}
    assert {cluster["kind"] for cluster in report(made)["duplicates"]["clusters"]} == {"near"}


TASKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "preference": ({"prompt": "q {n}", "chosen": "good {n}", "rejected": "bad {n}"}, ()),
    "kto": ({"prompt": "q {n}", "completion": "a {n}", "label": True}, ("undesirable", "desirable")),
    "classification": ({"text": "some text {n}", "label": "b"}, ("a", "b")),
    "tags": ({"tokens": ["Rome", "is", "old{n}"], "tags": ["B-place", "O", "O"]}, ("B-place", "O")),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_becomes_packed_rows_that_say_what_is_to_be_learned(
    desk: Desk, tmp_path: Path, task: str
) -> None:
    row, labels = TASKS[task]
    rows = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(40)]
    if task == "classification":
        rows[0]["label"] = "a"
    form = {"kto": "kto"}.get(task, "auto")
    given = source(tmp_path / "rows.jsonl", rows, format=form)
    made = desk.make(**{**CLEAN, "split": {"eval": 0.0}}, sources=[given])
    assert made.facts["task"] == task
    packed = open_rows(made.path, "train")
    taken = packed.take(range(len(packed)))
    if not labels:
        assert "labels" not in taken
        assert taken["segment_ids"].max() >= 2
        assert all(int(row.max()) % 2 == 0 for row in taken["segment_ids"]), "pairs stand together"
    else:
        assert read_json(made.path / "labels.json") == list(labels)
        known = taken["labels"][taken["labels"] != NO_LABEL]
        assert len(known) == (120 if task == "tags" else 40)
        counts = Counter(labels[int(number)] for number in known)
        assert (
            counts
            == {
                "kto": {"desirable": 40},
                "classification": {"a": 1, "b": 39},
                "tags": {"B-place": 40, "O": 80},
            }[task]
        )
        assert ((taken["labels"] == NO_LABEL) | (taken["loss_mask"] == 1)).all()


def test_an_encrypted_data_set_shows_nothing_without_its_key(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TW_TEST_KEY", KEY)
    key_file = tmp_path / "key"
    key_file.write_text(KEY, encoding="utf-8")
    key_file.chmod(0o600)
    rows = [chat(f"the canary sings {n}", "tweet") for n in range(40)]
    given = source(tmp_path / "rows.jsonl", [*rows, rows[0], {"prompt": "the canary is broken"}])
    lenient: dict[str, Any] = {"rules": {"max_bad_fraction": 0.1}, "split": {"eval": 0.2}}
    open_set = desk.make(**lenient, sources=[{**given, "format": "prompt_completion"}])
    made = desk.make(
        **lenient,
        sources=[{**given, "format": "prompt_completion"}],
        encryption={"key": f"file:{key_file}"},
    )
    for path in made.path.rglob("*"):
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path
    assert Counter(documents(made, "train")) == Counter(documents(open_set, "train"))
    assert read_examples(made) == read_examples(open_set)
    assert all(example["text"] == "" for entry in report(made)["funnel"] for example in entry["examples"])
    key_file.write_text(KEY[::-1], encoding="utf-8")
    with pytest.raises(DataError, match="key"):
        open_rows(made.path, "train")


def test_rows_of_a_database_are_kept_as_an_artifact_and_found_again(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with sqlite3.connect(path) as database:
        database.execute("create table chats (id integer primary key, prompt text, completion text)")
        rows = [(n, f"question {n}", f"answer {n}") for n in range(200)]
        database.executemany("insert into chats values (?, ?, ?)", rows)
    given = {"type": "sql", "url": f"sqlite:///{path}", "table": "chats", "select": ["prompt", "completion"]}
    made, again = (desk.make(**CLEAN, sources=[given]) for _ in range(2))
    assert made.facts["funnel"][0]["kept"] == 200
    assert again.ref == made.ref
    parent = desk.store.load(made.manifest.parents["rows_0"])
    assert parent.facts["rows"] == 200
    with sqlite3.connect(path) as database:
        database.execute("insert into chats values (200, 'question 200', 'answer 200')")
    config = data_config(**CLEAN, sources=[given])
    assert prepare_plan(config, desk.base, gather(desk.store, config)).id != made.manifest.id


def test_a_dialogue_too_long_for_a_row_is_divided_or_loses_its_oldest_turns(
    desk: Desk, tmp_path: Path
) -> None:
    turns = [
        message
        for n in range(12)
        for message in (
            {"role": "user", "content": f"please tell me about number {n}"},
            {"role": "assistant", "content": f"number {n} is a fine number"},
        )
    ]
    given = source(tmp_path / "rows.jsonl", [{"messages": turns}])
    for overflow, note in (("split", "split"), ("truncate_prompt", "truncated")):
        made = desk.make(
            **{**CLEAN, "split": {"eval": 0.0}}, sources=[given], pack={"seq_len": 128, "overflow": overflow}
        )
        assert report(made)["notes"][note] == 1
        renderer = load_renderer(made.path / "tokenizer")
        learned = "".join(
            renderer.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
            for ids, mask in documents(made, "train")
        )
        answers = [f"number {n} is a fine number" for n in range(12) if f"number {n} is" in learned]
        assert len(answers) == (12 if overflow == "split" else len(answers))
        assert "number 11 is a fine number" in answers
        assert all(learned.count(answer) == 1 for answer in answers)


@pytest.mark.parametrize("given", ["reordered", "grown"])
def test_a_split_does_not_move_when_rows_are_reordered_or_added(
    desk: Desk, tmp_path: Path, given: str
) -> None:
    lines = list(training_lines(300, 9, 0.0))
    first = desk.make(sources=[write_lines(tmp_path / "a.jsonl", lines)])
    other = lines[::-1] if given == "reordered" else [*lines, *training_lines(200, 10, 0.0)]
    second = desk.make(sources=[write_lines(tmp_path / "b.jsonl", other)])
    if given == "reordered":
        assert shard_hashes(first) == shard_hashes(second)
    for part in ("train", "eval"):
        before, after = (set(documents(made, part)) for made in (first, second))
        assert before <= after


def test_mixed_kinds_of_rows_are_refused_with_their_names(desk: Desk, tmp_path: Path) -> None:
    sources = [
        source(tmp_path / "a.jsonl", [chat("a", "b")]),
        source(tmp_path / "b.jsonl", [{"text": "a", "label": "x"}]),
    ]
    with pytest.raises(DataError, match=r"hold different things: classification, prompt_completion"):
        desk.make(sources=sources)


@pytest.fixture(scope="module")
def long_desk(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The same store with a base of a context that real rows fit."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shape = SHAPE.model_copy(update={"context": 16_384})
    write_newborn(folder, pretraining_documents(200, 1), shape, seed=3)
    base, _ = register_folder(desk.store, BaseModelConfig(model=str(folder)))
    return Desk(desk.store, base, desk.data)


REAL = [
    ("banking77/train.csv", "csv", {"label": "category"}, "classification", "classification"),
    ("wnut17/dev.jsonl", "jsonl", {"tags": "ner_tags"}, "tags", "tags"),
    ("preference-demo/dpo_en_demo.json", "json", {}, "preference", "preference"),
    ("sharegpt-identity/dummy_conversation.json", "json", {}, "sharegpt", "conversation"),
    ("sgd-dialogues/dev.jsonl", "jsonl", {}, "messages", "conversation"),
    ("mlx-lora-wikisql/wikisql_train.jsonl", "jsonl", {}, "text", "text"),
]


@pytest.mark.parametrize(("path", "kind", "columns", "form", "task"), REAL, ids=[row[0] for row in REAL])
def test_real_rows_of_every_format_become_shards(
    long_desk: Desk, path: str, kind: str, columns: dict[str, str], form: str, task: str
) -> None:
    if not (SHARED / path).is_file():
        pytest.skip("needs the real data in ../shared")
    given = {"type": kind, "path": str(SHARED / path), "columns": columns, "max_rows": 60}
    made = long_desk.make(
        sources=[given], pack={"seq_len": 16_384}, rules={"max_bad_fraction": 0.0}, privacy={"action": "keep"}
    )
    (entry,) = report(made)["funnel"]
    assert (entry["format"], made.facts["task"]) == (form, task)
    assert entry["read"] == 60
    assert made.facts["train_documents"] > 0


def test_what_is_prepared_has_no_spill_left(desk: Desk) -> None:
    assert not (desk.data.path / "spill").exists()
    assert not (desk.data.path / "generated").exists()
