"""Text -> words and hashes of word n-grams, as near duplicates, contamination and repetition see them.

Letters, marks and digits make words, in lower case and Unicode NFC; all else only parts them. Scripts
that put no blanks between words (Han, Kana, Thai, Lao, Khmer, Burmese) count a character as a word.
Knows nothing of rows or settings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
FACTOR = 0x9E3779B97F4A7C15  # odd, so that no word of an n-gram is shifted out of its hash


class _Letters(dict[int, int | str]):
    """What `str.translate` puts for each character; learned as characters come up."""

    def __missing__(self, code: int) -> int | str:
        kind = unicodedata.category(chr(code))
        put: int | str
        if kind[0] not in "LMN":
            put = "" if kind == "Cf" else " "  # invisible ones, such as a soft hyphen, part no word
        elif any(first <= code <= last for first, last in UNSPACED):
            put = f" {chr(code)} "
        else:
            put = code
        self[code] = put
        return put


_LETTERS = _Letters()


def words(text: str) -> list[bytes]:
    """The words of a text, in UTF-8: `"It's 3.5 KM"` -> `[b"it", b"s", b"3", b"5", b"km"]`."""
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.translate(_LETTERS).encode().split()


def ngram_hashes(tokens: Sequence[bytes], n: int) -> npt.NDArray[np.uint64]:
    """One 64-bit hash for each `n` words in a row, M of them: max(0, len(tokens) - n + 1).

    The polynomial of the words' xxh3 hashes, modulo 2^64: every place has its own power of an odd
    factor, so the order counts.
    """
    if len(tokens) < n:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, tokens), np.uint64, len(tokens))
    if n == 1:
        return hashes
    powers = np.cumprod(np.full(n, FACTOR, np.uint64))
    return np.convolve(hashes, powers, "valid").astype(np.uint64, copy=False)
