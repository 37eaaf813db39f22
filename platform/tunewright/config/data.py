"""`data:` where rows come from, what makes one acceptable, how it is split and packed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config

RowFormat = Literal["auto", "messages", "prompt_completion", "alpaca", "text"]


class FileSource(Config):
    """Rows read from one file, a folder or a glob."""

    type: Literal["jsonl", "json", "csv", "tsv", "parquet", "text"]
    path: str
    """A file, a folder, or a glob; relative paths are relative to the YAML file."""
    format: RowFormat = "auto"
    """The rows' shape; `auto` looks at the first rows and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames columns to what the format expects: `{prompt: question, completion: answer}`."""
    system: str | None = None
    """A system message put before every conversation that has none."""
    max_rows: int | None = Field(None, ge=1)
    """Read at most this many rows."""


class BuiltinSource(Config):
    """Rows that Tunewright generates itself, from a seed."""

    type: Literal["builtin"]
    name: Literal["support_desk"] = "support_desk"
    part: Literal["train", "heldout", "pretrain"] = "train"
    rows: int = Field(5000, ge=1)
    seed: int = 17
    dirty_fraction: float = Field(0.04, ge=0, le=0.5)
    """Share of deliberately dirty rows in `train`: broken, empty, duplicate, with personal data."""


Source = Annotated[FileSource | BuiltinSource, Field(discriminator="type")]


class Rules(Config):
    """When a set of rows is refused."""

    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """A source with a larger share of rejected rows stops the run."""
    drop_duplicates: bool = True
    """Keep the first of rows with the same normalised content."""


class Privacy(Config):
    """What happens to personal data found in a row."""

    action: Literal["keep", "redact", "reject"] = "redact"
    kinds: tuple[Literal["email", "card"], ...] = ("email", "card")
    """`email`: addresses; `card`: payment card numbers that pass the Luhn check."""


class Split(Config):
    """Evaluation rows are chosen by a hash of their content: stable under reordering and growth."""

    eval: float = Field(0.05, ge=0, lt=1)
    """Share of rows kept out of training."""


class Pack(Config):
    """Rows of `seq_len` tokens, each holding whole documents."""

    seq_len: int = Field(1024, ge=8)
    overflow: Literal["drop", "error"] = "drop"
    """A conversation longer than `seq_len`: quarantine it, or stop. Never cut."""


class DataConfig(Config):
    """`data:`"""

    sources: tuple[Source, ...] = Field(min_length=1)
    rules: Rules = Rules()
    privacy: Privacy = Privacy()
    split: Split = Split()
    pack: Pack = Pack()
    chat_template: str | None = None
    """Path of a Jinja file used instead of the tokenizer's own chat template."""

    @model_validator(mode="after")
    def _texts_do_not_mix(self) -> DataConfig:
        texts = [s for s in self.sources if isinstance(s, FileSource) and s.format == "text"]
        if texts and len(texts) != len(self.sources):
            raise ValueError("sources of format `text` cannot be mixed with conversations in one run")
        return self
