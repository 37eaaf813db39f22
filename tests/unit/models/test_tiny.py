"""The embedded base is born the same every time, and its tokenizer copies codes in few tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunewright.data.support_desk import pretraining_documents
from tunewright.models.base import check_folder, describe
from tunewright.models.load import load_model, load_tokenizer
from tunewright.models.tiny import SPECIAL_TOKENS, TinyShape, write_newborn

SHAPE = TinyShape(
    vocab_limit=500, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, context=64
)


def born(folder: Path, seed: int) -> dict[str, bytes]:
    write_newborn(folder, pretraining_documents(100, 1), SHAPE, seed)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def newborn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newborn")
    born(folder, seed=4)
    return folder


def test_the_same_seed_gives_the_same_bytes_in_every_process(newborn: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from tunewright.models.tiny import *;"
        "from tunewright.data.support_desk import pretraining_documents as texts;"
        "write_newborn(pathlib.Path(sys.argv[1]), texts(100, 1),"
        " TinyShape.model_validate_json(sys.argv[2]), 4)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), SHAPE.model_dump_json()],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
    )
    names = {path.name for path in newborn.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    for name in sorted(names):
        assert (tmp_path / name).read_bytes() == (newborn / name).read_bytes(), name


def test_another_seed_gives_other_weights_and_the_same_tokenizer(newborn: Path, tmp_path: Path) -> None:
    other = born(tmp_path, seed=5)
    assert other["model.safetensors"] != (newborn / "model.safetensors").read_bytes()
    assert other["tokenizer.json"] == (newborn / "tokenizer.json").read_bytes()


def test_making_one_leaves_the_random_numbers_of_the_process_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    born(tmp_path, seed=4)
    assert torch.rand(1) == expected


def test_a_newborn_is_a_base_like_any_other(newborn: Path) -> None:
    check_folder(newborn)
    model = load_model(newborn, None, torch.float32)
    facts = describe(newborn)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["context"] == SHAPE.context


def test_its_tokenizer_reads_any_text_and_gives_it_back(newborn: Path) -> None:
    tokenizer = load_tokenizer(newborn)
    for text in (
        "My order is TW-48K1.",
        "  two  spaces\n\n\ttab",
        "caf\u00e9 \u65e5\u672c \U0001f600",
        "\x00\x7f",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_its_tokenizer_has_tokens_of_two_digits_and_of_no_more(tmp_path: Path) -> None:
    write_newborn(tmp_path, ["TW-482917 and 482917"] * 50, SHAPE, seed=1)
    tokenizer = load_tokenizer(tmp_path)
    pieces = [tokenizer.decode([i]) for i in tokenizer("TW-482917")["input_ids"]]
    assert [piece for piece in pieces if piece.isdigit()] == ["48", "29", "17"]
    assert max(sum(c.isdigit() for c in tokenizer.decode([i])) for i in range(len(tokenizer))) == 2


def test_special_tokens_are_one_token_each(newborn: Path) -> None:
    tokenizer = load_tokenizer(newborn)
    assert [tokenizer(token)["input_ids"] for token in SPECIAL_TOKENS] == [[n] for n in range(7)]
