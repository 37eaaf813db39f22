"""The data stage on Ray Data: every row is accounted for, and the shards depend on the content alone."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_desk import (
    DIRTY,
    ROWS,
    SEED,
    SHARED,
    Desk,
    data_config,
    documents,
    quarantined,
    shard_hashes,
    write_lines,
)
from tiny_runs import SHAPE, small_run, write_run
from tunewright.artifacts import Artifact
from tunewright.config import load_run
from tunewright.data import conversations, sources
from tunewright.data import prepare as stage
from tunewright.data.prepare import prepare, prepare_plan
from tunewright.data.shards import PackedRows
from tunewright.data.sources import chunks
from tunewright.data.support_desk import TEST_CARD_NUMBERS, dirty_counts, training_lines
from tunewright.errors import DataError
from tunewright.line import Line
from tunewright.models.load import load_renderer

pytestmark = pytest.mark.cluster


def test_every_row_read_is_kept_rejected_or_a_duplicate_as_the_generator_says(desk: Desk) -> None:
    dirty = dirty_counts(ROWS, SEED, DIRTY)
    facts = desk.data.facts
    (funnel,) = facts["funnel"]
    assert funnel["read"] == funnel["kept"] + funnel["rejected"] + funnel["duplicates"] == ROWS
    assert funnel["rejected"] == dirty["broken_json"] + dirty["empty_answer"] > 0
    assert funnel["duplicates"] == dirty["duplicate"] > 0
    assert facts["personal_data"] == {"email": dirty["email"], "card": dirty["card"]}
    assert sum(funnel["reasons"].values()) == funnel["rejected"]
    assert funnel["reasons"]["message N (assistant) is empty"] == dirty["empty_answer"]
    assert facts["train_documents"] + facts["eval_documents"] == funnel["kept"]


def test_a_rejected_row_lies_in_the_quarantine_with_its_place_and_reason(desk: Desk) -> None:
    lines = list(training_lines(ROWS, SEED, DIRTY))
    rejected = quarantined(desk.data.path, "rejected")
    assert len(rejected) == desk.data.facts["funnel"][0]["rejected"]
    for row in rejected:
        assert set(row) == {"source", "file", "line", "reason", "row"}
        assert (row["source"], row["row"]) == (0, lines[row["line"] - 1])
        assert row["reason"].startswith(("not JSON: ", "message 1 (assistant) is empty"))
    duplicates = quarantined(desk.data.path, "duplicates")
    assert len(duplicates) == desk.data.facts["funnel"][0]["duplicates"]
    for row in duplicates:
        first = int(row["reason"].rsplit(":", 1)[1])
        assert first < row["line"]
        assert lines[first - 1] == lines[row["line"] - 1]


def test_figures_are_those_of_the_shards(desk: Desk) -> None:
    facts = desk.data.facts
    for split in ("train", "eval"):
        found = list(documents(desk.data, split))
        assert len(found) == facts[f"{split}_documents"] > 0
        assert sum(len(ids) for ids, _ in found) == facts[f"{split}_tokens"]
        assert sum(sum(mask) for _, mask in found) == facts[f"{split}_supervised_tokens"]
        assert len(PackedRows(desk.data.path / split)) == facts[f"{split}_rows"]
    slots = facts["train_rows"] * 192
    assert facts["packing_efficiency"] == pytest.approx(facts["train_tokens"] / slots, abs=1e-4)


def test_training_and_evaluation_rows_share_no_content(desk: Desk) -> None:
    train, evaluation = ([ids for ids, _ in documents(desk.data, split)] for split in ("train", "eval"))
    assert len(set(train)) == len(train)
    assert set(train).isdisjoint(evaluation)
    assert 0.05 < len(evaluation) / (len(train) + len(evaluation)) < 0.15


def test_the_examples_are_the_evaluation_rows_and_render_to_the_same_ids(desk: Desk) -> None:
    renderer = load_renderer(desk.data.path / "tokenizer")
    examples = conversations.read_examples(desk.data)
    rendered = [renderer.conversation(messages) for messages in examples]
    expected = Counter((tuple(r.ids), tuple(r.loss_mask)) for r in rendered)
    assert Counter(documents(desk.data, "eval")) == expected
    assert conversations.read_examples(desk.data, limit=3) == examples[:3]


def test_no_personal_data_reaches_a_shard_or_an_example(desk: Desk) -> None:
    tokenizer = load_renderer(desk.data.path / "tokenizer").tokenizer
    texts = [tokenizer.decode(ids) for split in ("train", "eval") for ids, _ in documents(desk.data, split)]
    texts += [message["content"] for chat in conversations.read_examples(desk.data) for message in chat]
    assert any("[card]" in text for text in texts)
    assert any("[email]" in text for text in texts)
    assert not any("@example.com" in text or card in text for text in texts for card in TEST_CARD_NUMBERS)


def test_loss_is_on_the_records_alone(desk: Desk) -> None:
    renderer = load_renderer(desk.data.path / "tokenizer")
    learned = [[i for i, m in zip(*pair, strict=True) if m] for pair in documents(desk.data, "train")]
    records = [json.loads(renderer.text(ids)) for ids in learned]
    assert {tuple(record) for record in records} == {("intent", "product", "priority", "order")}
    assert all(ids[-1] in renderer.stop_ids for ids in learned)


@pytest.mark.parametrize("way", ["one file", "two sources", "a folder", "small chunks"])
def test_the_same_rows_give_the_same_bytes_however_they_come(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lines = list(training_lines(ROWS, SEED, DIRTY))
    if way in ("one file", "small chunks"):
        given = [write_lines(tmp_path / f"{way}.jsonl", lines)]
        if way == "small chunks":
            monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
            assert len(sources.source_chunks(0, data_config(sources=given).sources[0])) > 5  # type: ignore[arg-type]
    else:
        halves = [
            write_lines(tmp_path / f"{n}.jsonl", lines[n * 250 : n * 250 + 250 + n * ROWS]) for n in (0, 1)
        ]
        given = halves if way == "two sources" else [{**halves[0], "path": str(tmp_path)}]
    made = desk.make(sources=given)
    assert shard_hashes(made) == shard_hashes(desk.data)
    counted = Counter[str]()
    for entry in made.facts["funnel"]:
        counted.update({name: entry[name] for name in ("read", "kept", "rejected", "duplicates")})
    (whole,) = desk.data.facts["funnel"]
    assert counted == {name: whole[name] for name in ("read", "kept", "rejected", "duplicates")}


def test_rows_in_several_buckets_are_the_same_rows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "ROWS_PER_BUCKET", 100)
    made = desk.make(split={"eval": 0.1000001})  # another plan, the same split
    assert len(list((made.path / "train").iterdir())) > 2
    for split in ("train", "eval"):
        assert Counter(documents(made, split)) == Counter(documents(desk.data, split))


def test_a_stage_that_was_done_is_found_and_not_repeated(desk: Desk, tmp_path: Path) -> None:
    given = write_lines(tmp_path / "rows.jsonl", list(training_lines(80, 1, 0.0)))
    run = load_run(write_run(tmp_path / "run.yaml", small_run(Path("unused"), tmp_path)))
    out, builds = io.StringIO(), 0
    line = Line(run, desk.store, out)

    def make(path: str) -> Artifact:
        config = data_config(sources=[{**given, "path": path}])
        plan = prepare_plan(config, desk.base)

        def build() -> Artifact:
            nonlocal builds
            builds += 1
            return prepare(desk.store, config, desk.base, plan)

        return line.make("data", plan, build, lambda a: f"{a.facts['train_rows']} rows")

    first = make(given["path"])
    (tmp_path / "elsewhere").mkdir()
    again = make(str(Path(given["path"]).rename(tmp_path / "elsewhere" / "rows.jsonl")))
    assert builds == 1
    assert again.ref == first.ref
    assert [record.state for record in line.records] == ["made", "found"]
    assert "data       found" in out.getvalue()


def test_too_many_bad_rows_stop_the_run_and_stay_for_a_look(desk: Desk) -> None:
    dirty = dirty_counts(ROWS, SEED, DIRTY)
    bad = dirty["broken_json"] + dirty["empty_answer"]
    config = data_config(rules={"max_bad_fraction": 0.02})
    plan = prepare_plan(config, desk.base)
    with pytest.raises(DataError) as caught:
        prepare(desk.store, config, desk.base, plan)
    told = str(caught.value)
    assert told.startswith(f"support_desk: {bad} of {ROWS} rows ({bad / ROWS:.1%}) were rejected, above ")
    assert "data.rules.max_bad_fraction=0.02" in told
    assert f"{dirty['empty_answer']} x message N (assistant) is empty" in told
    kept = desk.store.work_dir(plan) / "quarantine"
    assert f"The rows are in {kept}; see: tunewright data report " in told
    assert len(quarantined(kept.parent, "rejected")) == bad
    assert desk.store.find(plan) is None


@pytest.mark.parametrize("overflow", ["error", "drop"])
def test_rows_that_are_too_long_are_dropped_whole_or_stop_the_run(desk: Desk, overflow: str) -> None:
    longest = max(len(ids) for ids, _ in documents(desk.data, "train"))
    limit = longest - 5
    changes: dict[str, Any] = {
        "pack": {"seq_len": limit, "overflow": overflow},
        "rules": {"max_bad_fraction": 0.9},
    }
    if overflow == "error":
        with pytest.raises(DataError, match=rf"rows are longer than seq_len={limit} .* raise seq_len or say"):
            desk.make(**changes)
        return
    made = desk.make(**changes)
    whole = {ids for split in ("train", "eval") for ids, _ in documents(desk.data, split)}
    kept = {ids for split in ("train", "eval") for ids, _ in documents(made, split)}
    assert kept == {ids for ids in whole if len(ids) <= limit}
    rejected = quarantined(made.path, "rejected")
    long = [row for row in rejected if row["reason"].endswith(f"tokens do not fit a row of seq_len={limit}")]
    assert len({row["row"] for row in long}) == len(whole) - len(kept) > 0
    assert made.facts["funnel"][0]["reasons"]["N tokens do not fit a row of seq_len=N"] == len(long)


def test_rows_longer_than_the_models_context_are_refused_before_any_work(desk: Desk) -> None:
    config = data_config(pack={"seq_len": SHAPE.context + 1})
    plan = prepare_plan(config, desk.base)
    with pytest.raises(
        DataError, match=f"seq_len={SHAPE.context + 1} is above the context of {SHAPE.context} tok"
    ):
        prepare(desk.store, config, desk.base, plan)
    assert not (desk.store.root / "work" / f"data-{plan.id}").exists()


def test_rows_with_personal_data_are_rejected_where_that_is_asked_for(desk: Desk) -> None:
    dirty = dirty_counts(ROWS, SEED, DIRTY)
    reasons = desk.make(privacy={"action": "reject"}).facts["funnel"][0]["reasons"]
    assert reasons["holds personal data: email"] == dirty["email"]
    assert reasons["holds personal data: card"] == dirty["card"]


def test_duplicates_are_kept_where_that_is_asked_for(desk: Desk) -> None:
    made = desk.make(rules={"drop_duplicates": False, "max_bad_fraction": 0.3})
    (before,), (after,) = desk.data.facts["funnel"], made.facts["funnel"]
    assert (after["duplicates"], after["kept"]) == (0, before["kept"] + before["duplicates"])


def test_when_nothing_is_left_to_train_on_that_is_said(desk: Desk, tmp_path: Path) -> None:
    given = write_lines(tmp_path / "rows.jsonl", ['{"messages": []}'] * 3)
    with pytest.raises(DataError, match="no row is left to train on"):
        desk.make(sources=[given], rules={"max_bad_fraction": 1.0})


def test_a_format_that_is_not_known_names_the_file_and_its_columns(desk: Desk, tmp_path: Path) -> None:
    given = write_lines(tmp_path / "rows.jsonl", ['{"a": "x", "b": "y"}'] * 60)
    with pytest.raises(
        DataError, match=r"rows\.jsonl: the rows' format is not known: columns are a \(text\), b"
    ):
        desk.make(sources=[{**given, "format": "auto"}])


def test_real_conversations_of_four_kinds_become_one_data_set(desk: Desk) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared")
    given = [
        ("banking77/train.csv", "csv", {"prompt": "text", "completion": "category"}, "prompt_completion"),
        ("gsm8k/train.jsonl", "jsonl", {"prompt": "question", "completion": "answer"}, "prompt_completion"),
        ("dolly-open-qa/chat.jsonl", "jsonl", {}, "messages"),
        ("self-instruct-seed/alpaca.jsonl", "jsonl", {}, "alpaca"),
    ]
    made = desk.make(
        sources=[
            {"type": kind, "path": str(SHARED / path), "columns": columns, "max_rows": 150}
            for path, kind, columns, _ in given
        ],
        rules={"max_bad_fraction": 0.9},
        pack={"seq_len": SHAPE.context},
    )
    for entry, (path, _, _, form) in zip(made.facts["funnel"], given, strict=True):
        assert entry["source"].endswith(path)
        assert entry["format"] == form
        assert entry["read"] == entry["kept"] + entry["rejected"] + entry["duplicates"] == 150
        assert entry["kept"] > 10
    renderer = load_renderer(made.path / "tokenizer")
    assert all(renderer.text(ids) for ids, _ in documents(made, "train"))


def test_a_real_text_is_packed_whole_and_all_of_it_is_learned(desk: Desk) -> None:
    path = SHARED / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip("needs the real data in ../shared")
    given = {"type": "text", "path": str(path), "format": "text", "max_rows": 300}
    made = desk.make(sources=[given], privacy={"action": "keep"}, split={"eval": 0.0}, pack={"seq_len": 32})
    (entry,) = made.facts["funnel"]
    assert entry["read"] == 300
    assert made.facts["train_supervised_tokens"] == made.facts["train_tokens"]
    tokenizer = load_renderer(made.path / "tokenizer").tokenizer
    pieces = [ids for ids, _ in documents(made, "train")]
    assert max(map(len, pieces)) == 32  # longer documents come in pieces, none is cut off
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")[:300]
    wanted = sum(len(tokenizer(p, add_special_tokens=False)["input_ids"]) + 2 for p in set(paragraphs))
    assert sum(map(len, pieces)) == wanted
    assert np.concatenate(pieces).max() < len(tokenizer)
