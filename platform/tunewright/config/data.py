"""`data:` what makes a row acceptable, how rows are cleaned, mixed, split and packed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config
from tunewright.config.sources import BuiltinSource, LocalSource, Source

PersonalKind = Literal["email", "phone", "iban", "card", "ip", "national_id", "secret"]
Script = Literal[
    "Latin",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Devanagari",
    "Han",
    "Hiragana",
    "Katakana",
    "Hangul",
    "Thai",
]


class Mix(Config):
    """How several sources share an epoch."""

    strategy: Literal["all", "weights", "temperature"] = "all"
    """`all`: every row of every source. `weights`: shares by each source's `weight`.
    `temperature`: shares by (rows x weight) ^ (1 / temperature)."""
    temperature: float = Field(2.0, ge=1, le=100)
    """1 keeps the sources' sizes, more evens them out."""
    rows: int | None = Field(None, ge=1)
    """Rows an epoch; as many as all sources have together when left out."""
    max_repeat: float = Field(4.0, ge=1)
    """A source is repeated at most so many times to reach its share."""


class Normalize(Config):
    """Changes of the text itself, before anything else looks at it."""

    unicode: Literal["keep", "nfc"] = "keep"
    control: Literal["keep", "strip"] = "keep"
    """`strip`: remove control characters other than tab and line feed; CR LF and CR become LF."""
    whitespace: Literal["keep", "trim"] = "keep"
    """`trim`: no blanks at line ends or around the text; three or more empty lines become one."""


class Rules(Config):
    """When a set of rows is refused; the refusal names the figures."""

    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """A source with a larger share of rows that cannot be read or used stops the run. Rows that
    `privacy`, `quality` and `contamination` reject on purpose are not among them."""
    drop_duplicates: bool = True
    """Keep the first of rows with the same normalised content."""
    max_duplicate_fraction: float | None = Field(None, ge=0, le=1)
    max_loss_fraction: float | None = Field(None, ge=0, le=1)
    """A source may lose at most this share of its rows, for whatever reasons."""
    min_rows: int = Field(1, ge=1)
    """Documents that must be left to train on."""
    min_supervised_fraction: float | None = Field(None, ge=0, le=1)
    """Share of the training tokens that must carry loss."""
    min_packing_efficiency: float | None = Field(None, ge=0, le=1)


class Quality(Config):
    """Rows out of line; each limit is off when left out."""

    min_chars: int | None = Field(None, ge=1)
    max_chars: int | None = Field(None, ge=1)
    min_answer_chars: int | None = Field(None, ge=1)
    max_repetition: float | None = Field(None, gt=0, le=1)
    """Largest share of a text's words that may stand in repeated 5-word phrases; 0.3 is usual."""
    scripts: tuple[Script, ...] = ()
    """Scripts that letters should be of."""
    min_script_share: float = Field(0.5, gt=0, le=1)
    """Share of the letters that must be of `scripts`."""


class NearDuplicates(Config):
    """Rows that are almost the same, found by MinHash LSH; one of each group is kept."""

    threshold: float = Field(0.8, gt=0, lt=1)
    """Jaccard similarity of the sets of word n-grams from which two rows count as the same."""
    ngram: int = Field(5, ge=1, le=20)
    permutations: int = Field(128, ge=16, le=512)


class Contamination(Config):
    """Rows that hold text of an evaluation set."""

    against: tuple[LocalSource, ...] = Field(min_length=1)
    """The evaluation sets."""
    ngram: int = Field(13, ge=3, le=50)
    """Words in a row that must be the same; shorter evaluation texts count as a whole."""
    action: Literal["reject", "report"] = "reject"


class Privacy(Config):
    """What happens to personal data and secrets found in a row."""

    action: Literal["keep", "detect", "redact", "reject"] = "redact"
    """`detect` counts and changes nothing; `keep` does not look."""
    kinds: tuple[PersonalKind, ...] = ("email", "card", "iban", "secret")
    """`card` and `iban` are numbers that pass their check digits; `secret`: API keys, private keys.
    `phone`, `ip` and `national_id` are patterns that other numbers may fit, so they are a choice.
    The same value gets the same placeholder in a row: `[email]`, `[email_2]`."""
    presidio: bool = False
    """Look for names and places with Microsoft Presidio too: pip install 'tunewright[pii]'."""
    presidio_model: str = "en_core_web_sm"
    """A spaCy model that is installed."""


class Split(Config):
    """Evaluation rows are chosen by a hash: stable under reordering and growth."""

    eval: float = Field(0.05, ge=0, lt=1)
    """Share of rows kept out of training."""
    by: str = "content"
    """`content`, or a column: rows with the same value there stay on the same side."""
    stratify: str | None = None
    """A column, such as the label: each of its values has rows on both sides."""

    @model_validator(mode="after")
    def _groups_are_not_divided(self) -> Split:
        if self.by != "content" and self.stratify is not None:
            raise ValueError("a split by groups cannot be stratified: a group stays whole")
        return self


class Loss(Config):
    """Which tokens of a conversation are to be learned; `weight: 0` on a message excludes it."""

    turns: Literal["all", "last"] = "all"
    """The assistant's turns that carry loss."""
    history: Literal["expand", "refuse"] = "expand"
    """Where a template rewrites earlier turns (some drop old reasoning): `expand` makes one document
    of each assistant turn, as it will be asked when served; `refuse` rejects the conversation."""


class Pack(Config):
    """Rows of `seq_len` tokens, each holding whole documents."""

    seq_len: int = Field(1024, ge=8)
    overflow: Literal["drop", "truncate_prompt", "split", "error"] = "drop"
    """A conversation longer than `seq_len`: quarantine it; drop its oldest turns, then shorten the
    question; divide it between turns; or stop. An answer is never cut."""


class Encryption(Config):
    """Shards, examples and quarantine are written with AES-256-GCM (Parquet modular encryption)."""

    key: str = Field(pattern=r"^(\$\{[A-Za-z_][A-Za-z0-9_]*\}|file:.+|kms:[^/]+/.+)$")
    """`${NAME}`: a variable of the environment; `file:PATH`: a file. 32 bytes as 64 hexadecimal digits
    or as base64: `openssl rand -hex 32`. `kms:SERVICE/KEY-ID`: a key service that an installed
    package offers. Every node needs the variable or the file."""


class DataConfig(Config):
    """`data:`"""

    sources: tuple[Source, ...] = Field(min_length=1)
    mix: Mix = Mix()
    normalize: Normalize = Normalize()
    rules: Rules = Rules()
    quality: Quality = Quality()
    near_duplicates: NearDuplicates | None = None
    contamination: Contamination | None = None
    privacy: Privacy = Privacy()
    split: Split = Split()
    loss: Loss = Loss()
    pack: Pack = Pack()
    encryption: Encryption | None = None
    chat_template: str | None = None
    """A Jinja file, or a named template, instead of the tokenizer's own; a tokenizer without one gets
    `plain`. Names: plain, chatml, qwen2, qwen2.5, qwen3, llama3, zephyr, gemma, mistral, phi3, phi4,
    deepseek. A template that writes special tokens which the tokenizer lacks is refused."""

    @model_validator(mode="after")
    def _repeat_is_for_all(self) -> DataConfig:
        repeated = [s for s in self.sources if not isinstance(s, BuiltinSource) and s.repeat > 1]
        if repeated and self.mix.strategy != "all":
            raise ValueError(
                f"repeat belongs to mix.strategy: all; with {self.mix.strategy} say weight instead"
            )
        return self

    @model_validator(mode="after")
    def _texts_do_not_mix(self) -> DataConfig:
        texts = [s for s in self.sources if not isinstance(s, BuiltinSource) and s.format == "text"]
        if texts and len(texts) != len(self.sources):
            raise ValueError("sources of format `text` cannot be mixed with conversations in one run")
        return self
