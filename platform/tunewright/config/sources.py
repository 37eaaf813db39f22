"""`data.sources`: where rows come from, and what shape they have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config

RowFormat = Literal[
    "auto",
    "messages",
    "sharegpt",
    "prompt_completion",
    "alpaca",
    "text",
    "preference",
    "kto",
    "classification",
    "tags",
]


class Sample(Config):
    """A part of a source, chosen by a hash of each row's content: the same rows whatever their order."""

    rows: int | None = Field(None, ge=1)
    """About this many rows; all when left out."""
    stratify: str | None = None
    """A column: each of its values keeps its share of the rows."""
    balanced: bool = False
    """Each value of `stratify` gets the same number of rows instead: that of the rarest."""

    @model_validator(mode="after")
    def _balance_needs_a_column(self) -> Sample:
        if self.balanced and self.stratify is None:
            raise ValueError("balanced needs the column to balance: stratify: COLUMN")
        return self


class _Source(Config):
    """What every source has."""

    format: RowFormat = "auto"
    """The rows' shape; `auto` looks at the first rows and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames columns to what the format expects: `{prompt: question, completion: answer}`."""
    system: str | None = None
    """A system message put before every conversation that has none."""
    max_rows: int | None = Field(None, ge=1)
    """Read at most this many rows, the first ones."""
    weight: float = Field(1.0, gt=0)
    """Share in a mixture of sources, relative to the others'; see `mix`."""
    repeat: int = Field(1, ge=1, le=100)
    """Train on every row of this source so many times an epoch."""
    sample: Sample = Sample()


class FileSource(_Source):
    """Rows read from one file, a folder or a glob; gzip and zstd are undone."""

    type: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"]
    """`arrow`: Arrow files, and what `datasets.save_to_disk` writes."""
    path: str
    """A file, folder or glob; relative to the YAML file. Also `s3://`, `gs://` and `file://`."""


class HuggingFaceSource(_Source):
    """Rows of a data set of the Hugging Face hub, or of a local folder that `datasets` can load."""

    type: Literal["huggingface"]
    dataset: str
    """A hub id, such as `openai/gsm8k`, or a folder."""
    name: str | None = None
    """The configuration of the data set, where it has several."""
    split: str = "train"
    revision: str | None = None
    """A commit or tag; required for the hub, whose branches move."""


class SqlSource(_Source):
    """Rows of a table or view, read in a read-only transaction.

    What was read is kept as an artifact, so that the run can be repeated when the table has moved on.
    """

    type: Literal["sql"]
    url: str
    """SQLAlchemy's URL of a PostgreSQL or SQLite database. Secrets come from the environment:
    `postgresql+psycopg://app:${PASSWORD}@db/chats`, or `${DATABASE_URL}` as a whole."""
    table: str | None = None
    """A table or view, `schema.table` where it needs one."""
    select: tuple[str, ...] = ()
    """The columns to read; all when left out."""
    where: dict[str, str | int | float | bool | tuple[str | int | float, ...]] = Field(default_factory=dict)
    """Column -> value, or list of values: only such rows. Values are bound, never put into SQL."""
    shard_by: str | None = None
    """A column, best an indexed one, whose hash splits the reading into `shards`."""
    shards: int = Field(1, ge=1, le=256)
    """Readers at once."""
    allow_query: bool = False
    """Allow `query`: free SQL, which can call whatever functions the database offers."""
    query: str | None = None
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Values for `:name` in `query`."""

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> SqlSource:
        if (self.table is None) == (self.query is None):
            raise ValueError("give table, or query with allow_query: true")
        if self.query is not None and not self.allow_query:
            raise ValueError("query is free SQL; say allow_query: true, or give table, select and where")
        if self.query is not None and (self.select or self.where):
            raise ValueError("select and where belong to table; put them into query")
        if self.shards > 1 and self.shard_by is None:
            raise ValueError("shards needs shard_by, the column to divide by")
        return self


class Pages(Config):
    """How to ask an API for the next page."""

    by: Literal["none", "number", "cursor", "link"] = "none"
    """`number`: a page number is sent; `cursor`: what the answer holds at `cursor` is sent back;
    `link`: the answer holds the next URL at `cursor`."""
    param: str = "page"
    """The query parameter that carries the page number or cursor."""
    start: int = 1
    """The first page number."""
    cursor: str | None = None
    """Where the next cursor or link stands in the answer: `meta.next`."""
    size: int | None = Field(None, ge=1)
    """Rows a page, sent as `size_param`."""
    size_param: str = "limit"
    max_pages: int = Field(10_000, ge=1)

    @model_validator(mode="after")
    def _cursor_has_a_place(self) -> Pages:
        if self.by in ("cursor", "link") and not self.cursor:
            raise ValueError(f"pages.by: {self.by} needs cursor, where it stands in the answer")
        return self


class HttpSource(_Source):
    """Rows of a paged JSON API. What was read is kept as an artifact."""

    type: Literal["http"]
    url: str
    """`https://`; the host must be listed in `hosts`."""
    hosts: tuple[str, ...] = Field(min_length=1)
    """Hosts that may be asked; no other is, whatever an answer says."""
    allow_http: bool = False
    """Allow `http://`, which anybody on the way can read and change."""
    allow_private: bool = False
    """Allow hosts of private and loopback networks."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Sent with each request; secrets from the environment: `Authorization: Bearer ${TOKEN}`."""
    params: dict[str, str] = Field(default_factory=dict)
    """Query parameters of each request."""
    rows: str = ""
    """Where the list of rows stands in the answer: `data.items`; the answer itself when left out."""
    pages: Pages = Pages()
    timeout_s: float = Field(30, gt=0, le=600)
    retries: int = Field(5, ge=0, le=20)
    """Tries after the first, with back-off, for 429, 5xx and broken connections."""
    max_mib: int = Field(1024, ge=1)
    """Stop when the answers are larger than this."""


class BuiltinSource(Config):
    """Rows that Tunewright generates itself, from a seed."""

    type: Literal["builtin"]
    name: Literal["support_desk"] = "support_desk"
    part: Literal["train", "heldout", "pretrain"] = "train"
    rows: int = Field(5000, ge=1)
    seed: int = 17
    dirty_fraction: float = Field(0.04, ge=0, le=0.5)
    """Share of deliberately dirty rows in `train`: broken, empty, duplicate, with personal data."""


Source = Annotated[
    FileSource | HuggingFaceSource | SqlSource | HttpSource | BuiltinSource, Field(discriminator="type")
]

LocalSource = Annotated[FileSource | BuiltinSource, Field(discriminator="type")]
"""What small sets, such as held-out tasks, are read from."""


def source_label(source: Any) -> str:
    """How messages and reports name a source; never shows a secret."""
    if isinstance(source, FileSource):
        return source.path
    if isinstance(source, SqlSource):
        return f"sql {source.table or 'query'}"
    if isinstance(source, HttpSource):
        return source.url.split("?")[0].rsplit("@", 1)[-1]
    return str(source.dataset if isinstance(source, HuggingFaceSource) else source.name)
