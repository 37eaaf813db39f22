"""Ids of ASCII text, word by word and remembered: the same ids as the tokenizer's own, in half the time.

Byte-level BPE first cuts a text into words by a pattern and then merges within each word alone, so the
ids of a text are those of its words, one after the other. Words come again; their ids are looked up. In
ASCII the patterns' classes are plain ranges, so Python's `re` cuts exactly where the tokenizer does.
Other text, and tokenizers of another kind, are left to the tokenizer.
"""

from __future__ import annotations

import json
import re
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_WORDS = 100_000
"""Words remembered; about 20 MB. Then it begins anew."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PATTERNS = (GPT2, LLAMA3, QWEN2)
"""How published byte-level tokenizers cut words. Another pattern is left to its tokenizer."""


class Words:
    """Encodes ASCII text with a tokenizer that `words_of` found fit."""

    def __init__(self, backend: Any, pattern: str, added: dict[str, int]):
        ascii_only = pattern.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")
        # Outside of brackets a range needs brackets of its own.
        outside = re.sub(r"(?<![\[\w-])(A-Za-z|0-9)(?=[+{|])", r"[\1]", ascii_only)
        self._cut = re.compile(outside, re.ASCII).findall
        self._ids = _Remembered(backend)
        self._added = added
        longest_first = sorted(added, key=len, reverse=True)
        self._around = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
        self._sign = commonprefix(list(added))  # noqa: RUF071 - of characters is what is meant

    def encode(self, text: str) -> list[int]:
        """The ids of an ASCII text."""
        ids = self._ids
        if self._around is None or self._sign not in text:
            return [i for word in self._cut(text) for i in ids[word]]
        out: list[int] = []
        for number, piece in enumerate(self._around.split(text)):
            if number % 2:
                out.append(self._added[piece])
            else:
                out += [i for word in self._cut(piece) for i in ids[word]]
        return out


class _Remembered(dict[str, tuple[int, ...]]):
    """Ids of words, asked of the tokenizer the first time."""

    def __init__(self, backend: Any):
        super().__init__()
        self._backend = backend

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= MOST_WORDS:
            self.clear()
        ids = self[word] = tuple(self._backend.encode(word, add_special_tokens=False).ids)
        return ids


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words | None:
    """What encodes ASCII text for the tokenizer; None if it is not byte-level BPE with a known pattern.

    Added tokens must be matched as they are written: without taking blanks along, or looking at what
    stands beside them.
    """
    backend: Any = tokenizer.backend_tokenizer
    parts = json.loads(backend.to_str())
    model, added = parts["model"], tokenizer.added_tokens_decoder
    plain = model["type"] == "BPE" and not any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    flagged = any(token.lstrip or token.rstrip or token.single_word for token in added.values())
    pattern = _pattern(parts.get("pre_tokenizer"))
    normalizer = (parts.get("normalizer") or {}).get("type")
    if not plain or flagged or pattern is None or normalizer not in (None, "NFC"):
        return None
    if getattr(tokenizer, "split_special_tokens", False):
        return None
    return Words(backend, pattern, {token.content: int(number) for number, token in added.items()})


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The pattern by which words are cut, if it is one of the known."""
    if pre_tokenizer is None:
        return None
    if pre_tokenizer["type"] == "ByteLevel":
        fits = pre_tokenizer.get("use_regex", True) and not pre_tokenizer["add_prefix_space"]
        return GPT2 if fits else None
    if pre_tokenizer["type"] != "Sequence" or len(pre_tokenizer["pretokenizers"]) != 2:
        return None
    split, level = pre_tokenizer["pretokenizers"]
    found = split.get("pattern", {}).get("Regex") if split["type"] == "Split" else None
    level_fits = level["type"] == "ByteLevel" and not level["add_prefix_space"] and not level["use_regex"]
    if found in PATTERNS and split["behavior"] == "Isolated" and not split["invert"] and level_fits:
        return str(found)
    return None
