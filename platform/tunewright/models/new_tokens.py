"""New special tokens: a base whose tokenizer knows them and whose embeddings have a row for each.

The weights files are rewritten one at a time, and only where a row is added or set; every other number
stays as it is. New rows begin as the mean of those of the known tokens, so that the model's answers
hardly change before it is trained, and no answer depends on chance.
Source: Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models.

V rows, H hidden size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash
from tunewright.errors import ModelError
from tunewright.models.base import KEPT, describe, model_folder
from tunewright.models.load import load_tokenizer
from tunewright.models.skeleton import whole_skeleton
from tunewright.models.vocabulary import check_tokenizer, highest_id, rows_of

if TYPE_CHECKING:
    import torch

PIECE = 8192
"""Rows that are summed up at once."""


@dataclass(frozen=True)
class Added:
    """What became of the tokens that were asked for.

    Attributes:
        ids: of all of them, by token; their rows are to be trained.
        known: those that the tokenizer had as special ones already; their rows stay as they are.
        rows: of the embeddings now; `before`, what they were.
    """

    ids: dict[str, int]
    known: tuple[str, ...]
    before: int
    rows: int

    def told(self) -> str:
        """One line for the person who asked."""
        new = [token for token in self.ids if token not in self.known]
        told = [f"{len(new)} new tokens: {', '.join(new)}"] if new else []
        if new and self.rows == self.before:
            told.append(f"in unused rows of the {self.rows:,} that the embeddings have")
        elif new:
            told.append(f"embeddings from {self.before:,} to {self.rows:,} rows")
        told += [f"there already: {', '.join(self.known)}"] if self.known else []
        return "; ".join(told)


def new_tokens_plan(source: Artifact, tokens: Sequence[str]) -> Plan:
    """The identity of `source` with the tokens added."""
    code = code_hash("models/new_tokens", "models/vocabulary")
    return Plan("base", {"source": source.ref}, {"new_tokens": list(tokens)}, code)


def make_new_tokens(store: Store, source: Artifact, plan: Plan) -> Artifact:
    """The base of `plan`; it holds a copy of the source's folder.

    Raises:
        ModelError: a token that cannot be added.
    """
    work = clear_dir(store.work_dir(plan))
    tokens: list[str] = list(plan.config["new_tokens"])
    added = add_tokens(model_folder(source), tokens, work / "model")
    facts = {"model": source.facts["model"], "new_tokens": added.ids, "new_tokens_told": added.told()}
    return store.publish(plan, work, facts | describe(work / "model"))


def add_tokens(folder: Path, tokens: Sequence[str], out: Path) -> Added:
    """Write the model of `folder` with `tokens` added to its tokenizer and embeddings to `out`.

    Raises:
        ModelError: a token is an ordinary one of the vocabulary, or is not read as one token.
    """
    model = whole_skeleton(folder)
    tokenizer = load_tokenizer(folder)
    before, last = rows_of(model), highest_id(tokenizer)
    known = _add_to_tokenizer(tokenizer, tokens, folder)
    ids = {token: tokenizer.get_vocab()[token] for token in tokens}
    added = Added(ids, known, before, max(before, *(number + 1 for number in ids.values())))
    out.mkdir(parents=True)
    for pattern in KEPT:
        for path in sorted(folder.glob(pattern)):
            shutil.copy(path, out / path.name)
    tokenizer.save_pretrained(out)
    _write_config(out, added)
    fresh = sorted(number for token, number in ids.items() if token not in known)
    _write_rows(out, model, last + 1, fresh, added.rows)
    check_tokenizer(out, whole_skeleton(out))
    return added


def _add_to_tokenizer(tokenizer: Any, tokens: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Add the tokens as special ones; returns those that are special already."""
    from tokenizers import AddedToken

    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    ordinary = [token for token in tokens if token in tokenizer.get_vocab() and token not in special]
    if ordinary:
        raise ModelError(
            f"base.new_tokens: {ordinary[0]!r} is an ordinary token in the vocabulary of {folder}, and could "
            f"not be told from the text that it stands for; give the new one marks of its own, such as "
            f"<|{ordinary[0].strip() or 'tool'}|>"
        )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )
    for token in tokens:
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            raise ModelError(
                f"base.new_tokens: the tokenizer in {folder} does not read {token!r} as one token"
            )
    return tuple(token for token in tokens if token in special)


def _write_config(out: Path, added: Added) -> None:
    path = out / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    inner = config.get("text_config") if "vocab_size" not in config else None
    (inner if isinstance(inner, dict) else config)["vocab_size"] = added.rows
    before = config.get("new_token_ids", [])
    config["new_token_ids"] = sorted({*before, *added.ids.values()})
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_rows(out: Path, model: Any, used: int, fresh: Sequence[int], rows: int) -> None:
    """Give each table of the vocabulary `rows` rows, those of `fresh` being the mean of the first `used`."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tables = _tables(model)
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata()
        mine = [name for name in names if _is_table(name, tables)]
        if not mine or not fresh:
            continue
        tensors = load_file(path)
        for name in mine:
            tensors[name] = _with_rows(tensors[name], used, fresh, rows)
        temporary = path.with_suffix(".writing")
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)


def _tables(model: Any) -> list[str]:
    """Names of the weights that have a row for each token."""
    output = model.get_output_embeddings()
    mine = {id(model.get_input_embeddings().weight), *(id(w) for w in output.parameters())}
    return [name for name, weight in model.named_parameters(remove_duplicate=False) if id(weight) in mine]


def _is_table(name: str, tables: Sequence[str]) -> bool:
    """Whether a weight in a file is one of them; files may leave out the name of the whole model."""
    return any(table == name or table.endswith(f".{name}") for table in tables)


def _with_rows(table_VH: torch.Tensor, used: int, fresh: Sequence[int], rows: int) -> torch.Tensor:
    import torch

    total_H = torch.zeros(table_VH.shape[1:], dtype=torch.float64)
    for first in range(0, used, PIECE):
        total_H += table_VH[first : min(first + PIECE, used)].double().sum(0)
    out_VH = table_VH.new_zeros((rows, *table_VH.shape[1:]))
    out_VH[: len(table_VH)] = table_VH
    out_VH[list(fresh)] = (total_H / used).to(table_VH.dtype)
    return out_VH
