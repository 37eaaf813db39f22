"""The preview shows what training will see of the first rows, and why other rows are rejected."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunewright.artifacts import Plan, Store
from tunewright.config import load_run
from tunewright.data_cli import data_app
from tunewright.errors import ConfigError, ModelError
from tunewright.preview import preview_renderer
from tunewright.report.token_view import legend, source_view


def entry(**changes: Any) -> dict[str, Any]:
    """A source with one row, as `preview` describes it."""
    tokens = [
        ("user", False),
        ("\n", False),
        ("hi", False),
        ("Yes", True),
        ("!\x1b[2J", True),
        ("<|end|>", True),
    ]
    shown = {
        "parts": [{"name": "", "tokens": [{"text": text, "loss": loss} for text, loss in tokens]}],
        "tokens": 6,
        "supervised": 3,
        "answers": 1,
        "ended": 1,
        "end_token": "<|end|>",
    }
    row = {"file": "a.jsonl", "line": 12, "problem": None, "text": None, "notes": [], "documents": [shown]}
    source = {"number": 1, "source": "a.jsonl", "type": "jsonl", "format": "messages", "because": "stated"}
    return {**source, "problem": None, "rows": [row], **changes}


def printed(source: dict[str, Any], plain: bool = True) -> str:
    return "\n".join(block.plain for block in source_view(source, plain))


def test_plain_view_marks_loss_and_where_tokens_end() -> None:
    view = printed(entry())
    assert "user·⏎\n·hi⟦Yes·!⟨U+001B⟩[2J·<|end|>⟧" in view
    assert "6 tokens, 3 carry loss (50.0 %), ends with <|end|>: yes" in view
    assert "a.jsonl:12" in view and "jsonl, format messages: stated" in view


def test_coloured_view_shows_loss_in_green_and_shades_tokens_in_turn() -> None:
    blocks = list(source_view(entry(), plain=False))
    tokens = next(block for block in blocks if "Yes" in block.plain)
    assert tokens.plain == "user⏎\nhiYes!⟨U+001B⟩[2J<|end|>"
    styles = [str(span.style) for span in tokens.spans]
    assert ["white on" in style for style in styles] == [False] * 3 + [True] * 3
    assert all(one != two for one, two in pairwise(styles))


def test_a_turn_that_never_ends_is_called_out() -> None:
    source = entry()
    source["rows"][0]["documents"][0] |= {"ended": 0, "end_token": None}
    assert "ends with an end token: NO" in printed(source)
    source["rows"][0]["documents"][0] |= {"answers": 3, "ended": 2, "end_token": "<|end|>"}
    assert "answers that end with <|end|>: 2 of 3" in printed(source)


def test_rejected_rows_show_their_reason_and_the_row() -> None:
    row = {"file": "a.jsonl", "line": 3, "problem": "not \x1bJSON", "text": "{oops\u202e", "documents": []}
    view = printed(entry(rows=[{**row, "notes": []}]))
    assert "a.jsonl:3  rejected: not ⟨U+001B⟩JSON\n{oops⟨U+202E⟩" in view


def test_a_source_that_cannot_be_read_shows_why() -> None:
    view = printed(entry(problem="a.jsonl: no such file", rows=[], format=None, because=None))
    assert view == "source 1  a.jsonl\n  a.jsonl: no such file"


def test_several_documents_and_what_was_done_to_them_are_named() -> None:
    source = entry()
    row = source["rows"][0]
    row |= {"documents": row["documents"] * 2, "notes": ["split"]}
    assert "a.jsonl:12, document 2 of 2 (split)" in printed(source)


def test_the_legend_says_what_the_marks_mean() -> None:
    assert legend(plain=True).plain == "⟦carries loss⟧  does not  · end of a token  ⏎ end of a line"
    assert "carries loss" in legend(plain=False).plain


ROWS = [
    {
        "messages": [
            {"role": "user", "content": "write to anna@example.org"},
            {"role": "assistant", "content": "Done."},
        ]
    },
    {"messages": [{"role": "user", "content": "no answer"}]},
    {"messages": [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "Ja, \x1b[31m!"}]},
    {"messages": [{"role": "user", "content": "never read"}, {"role": "assistant", "content": "x"}]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of hardly any size."""
    from tunewright.models.tiny import TinyShape, write_newborn

    folder = tmp_path_factory.mktemp("model")
    shape = TinyShape(
        vocab_limit=300, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, context=64
    )
    write_newborn(folder, ["Hello, where is my order?"], shape, seed=0)
    return folder


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    """A run of a JSONL file, whose second and third rows are bad, and of a table that was never fetched."""
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "tickets.jsonl").write_text("\n".join([lines[0], lines[1], "{not json", *lines[2:]]) + "\n")
    sql = "{type: sql, url: 'sqlite:///nowhere.db', table: chats}"
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: desk\nstore: {tmp_path / 'store'}\nbase: {{model: {model}}}\ntrain: {{max_steps: 2}}\n"
        f"data:\n  sources:\n  - {{type: jsonl, path: tickets.jsonl}}\n  - {sql}\n"
    )
    return path


def call(*args: str | Path) -> Any:
    return CliRunner().invoke(data_app, ["preview", *map(str, args)])


def test_preview_shows_the_first_rows_and_why_others_are_rejected(config: Path) -> None:
    done = call(config, "--rows", "4", "--source", "1")
    assert done.exit_code == 0, (done.output, done.exception)
    output = done.output
    assert "source 1  " in output and "jsonl, format messages: " in output
    assert "tickets.jsonl:2  rejected: " in output and "assistant" in output
    assert "tickets.jsonl:3  rejected: " in output and "{not json" in output
    assert "<|assistant|>" in output and "ends with <|end|>: yes" in output
    learned = [part.split("⟧")[0].replace("·", "") for part in output.split("⟦")[2:]]
    assert learned == ["Done.<|end|>", "Ja, ⟨U+001B⟩[31m!<|end|>"]
    assert "never read" not in output


def test_preview_redacts_as_the_data_stage_does(config: Path) -> None:
    shown = json.loads(call(config, "--json", "--source", "1").output)[0]["rows"][0]
    text = "".join(token["text"] for token in shown["documents"][0]["parts"][0]["tokens"])
    assert "anna" not in text and "[email]" in text
    kept = call(config, "--json", "--source", "1", "--set", "data.privacy.action=keep")
    tokens = json.loads(kept.output)[0]["rows"][0]["documents"][0]["parts"][0]["tokens"]
    assert "anna@example.org" in "".join(token["text"] for token in tokens)


def test_preview_counts_what_carries_loss(config: Path) -> None:
    row = json.loads(call(config, "--json", "--source", "1", "--rows", "1").output)[0]["rows"][0]
    document = row["documents"][0]
    learned = [token["text"] for token in document["parts"][0]["tokens"] if token["loss"]]
    assert "".join(learned) == "Done.<|end|>"
    assert (document["supervised"], document["answers"], document["ended"]) == (len(learned), 1, 1)


def test_rows_of_a_table_are_shown_once_they_were_fetched(config: Path) -> None:
    done = call(config, "--rows", "1")
    assert done.exit_code == 1
    assert "source 2  sql chats" in done.output and "tunewright prepare CONFIG" in done.output
    assert "<|assistant|>" in done.output, "the other source is shown all the same"


def test_preview_of_a_snapshot_reads_what_was_fetched(config: Path) -> None:
    from tunewright.data.sources.fetch import public_settings
    from tunewright.data.sources.snapshot import write_snapshot

    run = load_run(config)
    store = Store(run.store_root)
    settings = {"source": public_settings(run.data.sources[1]), "encryption": None}
    plan = Plan("rows", {}, settings, "code")
    written = write_snapshot(store.work_dir(plan), [json.dumps(row) for row in ROWS[2:]])
    store.publish(plan, store.work_dir(plan), asdict(written))
    done = call(config, "--source", "2", "--rows", "1")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "⟦J" in done.output and "never read" not in done.output


def test_a_text_that_was_split_ends_once(config: Path) -> None:
    rows = [{"text": "word " * 40}, {"text": "short"}]
    config.with_name("tickets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = ["--set", "data.sources=[{type: jsonl, path: tickets.jsonl}]", "--set", "data.pack.seq_len=64",
            "--set", "data.pack.overflow=split"]  # fmt: skip
    long, short = json.loads(call(config, "--json", *sets).output)[0]["rows"]
    assert long["notes"] == ["split"] and len(long["documents"]) > 1
    assert [d["answers"] for d in long["documents"]] == [0] * (len(long["documents"]) - 1) + [1]
    assert long["documents"][-1]["ended"] == short["documents"][0]["ended"] == 1


def test_nothing_but_the_rows_is_printed(config: Path) -> None:
    """In a process of its own: libraries print when they are first imported."""
    code = "from tunewright.data_cli import data_app; data_app()"
    args = ["preview", str(config), "--source", "1", "--rows", "1", "--json", "--set", "base.model=tiny"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)[0]["rows"][0]["documents"][0]["ended"] == 1
    assert done.stderr == ""


def test_an_unknown_source_is_refused_with_those_there_are(config: Path) -> None:
    failed = call(config, "--source", "3").exception
    assert isinstance(failed, ConfigError)
    assert "there is no source 3; sources are 1 " in str(failed) and "2 sql chats" in str(failed)


def test_a_file_that_is_not_there_is_told_and_makes_the_exit_code_1(config: Path) -> None:
    config.with_name("tickets.jsonl").unlink()
    done = call(config, "--source", "1")
    assert done.exit_code == 1 and "tickets.jsonl" in done.output


def test_a_base_of_the_hub_must_have_been_fetched(config: Path) -> None:
    failed = call(config, "--set", "base.model=acme/model", "--set", "base.revision=abc").exception
    assert isinstance(failed, ModelError)
    assert "acme/model@abc has not been fetched yet" in str(failed) and "tunewright prepare" in str(failed)


def test_looking_makes_no_store(config: Path) -> None:
    assert call(config, "--rows", "1").exit_code == 1
    assert not config.with_name("store").exists()


def test_the_tiny_base_is_previewed_before_it_was_made(config: Path) -> None:
    renderer = preview_renderer(load_run(config, ["base.model=tiny"]), config.parent)
    assert {renderer.tokenizer.decode([i]) for i in renderer.stop_ids} == {"<|end|>", "<|eos|>"}
    assert len(renderer.prompt([{"role": "user", "content": "Where is my order?"}])) < 20, "words, not bytes"
