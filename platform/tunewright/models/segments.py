"""Segments of text -> token ids, many at once. Knows nothing of messages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.errors import ModelError
from tunewright.models.words import Words, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = (
    "a",
    " a",
    "a b",
    "Two words.\n\nNext  line\t1234 x=y",
    "\n",
    "\u00e9\u0301 \u6f22\u5b57 \U0001f600 ",
)

CHECKED = 512
"""Texts of a process that are encoded both ways and compared."""

log = logging.getLogger(__name__)


class SegmentEncoder:
    """Tokenizes segments by themselves, without the tokens that a tokenizer would put around a text.

    The `tokenizers` library is asked directly where this gives the ids that Hugging Face's wrapper
    gives; a few wrappers do more to a text, and are then asked themselves, at a tenth of the speed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: Iterable[str]):
        self._tokenizer: Any = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        around = " ".join(special_tokens)
        probes = [*_PROBES, f"a {around}b", f"{around}\n"]
        self._words: Words | None = None
        self._direct = self._by_backend(probes) == self._by_wrapper(probes)
        if self._direct:
            self._words = words_of(tokenizer)
            self._checks_left = CHECKED
        if not self._direct:
            log.info("tokenizer is asked through its wrapper", extra={"tokenizer": type(tokenizer).__name__})

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        if not texts:
            return []
        if not self._direct:
            return self._by_wrapper(texts)
        return self._by_words(self._words, texts) if self._words else self._by_backend(texts)

    def _by_words(self, words: Words, texts: Sequence[str]) -> list[list[int]]:
        """Word by word where that is exact, else by the tokenizer; the first texts by both.

        Raises:
            ModelError: the two differ, which would make what is learned depend on where it was made.
        """
        found = [words.encode(text) if text.isascii() else None for text in texts]
        others = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        rest = iter(self._by_backend(others) if others else ())
        out = [next(rest) if ids is None else ids for ids in found]
        if self._checks_left > 0:
            checked = min(self._checks_left, len(texts))
            self._checks_left -= checked
            if self._by_backend(texts[:checked]) != out[:checked]:
                raise ModelError(
                    "the tokenizer's ids are not those of its words; please report this tokenizer"
                )
        return out

    def _by_backend(self, texts: Sequence[str]) -> list[list[int]]:
        backend = self._backend
        # A tokenizer.json may bring a truncation, and other callers of the tokenizer may leave one behind.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != self._tokenizer.split_special_tokens:
            backend.encode_special_tokens = self._tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _by_wrapper(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False)
        return [list(ids) for ids in found["input_ids"]]
