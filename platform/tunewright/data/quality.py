"""Quality: rows out of line by length, repetition or script. Limits that are left out cost nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from tunewright.config.data import Quality
from tunewright.data.words import ngram_hashes, words

PHRASE = 5
"""Words of a phrase, for `repetition`."""
# Blocks of the Unicode standard; only the letters in them count.
BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": (
        (0x0041, 0x02B8),
        (0x1E00, 0x1EFF),
        (0x2C60, 0x2C7F),
        (0xA722, 0xA7FF),
        (0xAB30, 0xAB5A),
        (0xFB00, 0xFB06),
        (0xFF21, 0xFF5A),
    ),
    "Greek": ((0x0370, 0x03E1), (0x03F0, 0x03FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x0400, 0x052F), (0x1C80, 0x1C8A), (0xA640, 0xA69F)),
    "Hebrew": ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x0600, 0x06FF), (0x0750, 0x077F), (0x0870, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "Devanagari": ((0x0900, 0x097F), (0xA8E0, 0xA8FF)),
    "Thai": ((0x0E00, 0x0E7F),),
    "Hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97C), (0xAC00, 0xD7FB), (0xFFA0, 0xFFDC)),
    "Hiragana": ((0x3041, 0x3096), (0x309D, 0x309F)),
    "Katakana": ((0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "Han": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAD9), (0x20000, 0x323AF)),
}
SCRIPTS = (*BLOCKS, "other", "none")
OTHER, NONE = len(BLOCKS), len(BLOCKS) + 1
LAST = 0x323AF  # of Han; what comes after it is no letter of any script


def check_quality(question: str, answer: str, config: Quality) -> str | None:
    """Why a row is out of line, or None.

    Lengths are those of question and answer together; the phrases of each are counted apart, since an
    answer may well repeat the question; scripts are judged on the letters of both.
    """
    length = len(question) + len(answer)
    if config.min_chars is not None and length < config.min_chars:
        return f"shorter than data.quality.min_chars={config.min_chars}"
    if config.max_chars is not None and length > config.max_chars:
        return f"longer than data.quality.max_chars={config.max_chars}"
    if config.min_answer_chars is not None and len(answer.strip()) < config.min_answer_chars:
        return f"an answer shorter than data.quality.min_answer_chars={config.min_answer_chars}"
    limit = config.max_repetition
    if limit is not None and (repetition(answer) > limit or repetition(question) > limit):
        return f"repeats itself beyond data.quality.max_repetition={limit}"
    if config.scripts:
        share = script_share(f"{question}\n{answer}", config.scripts)
        if share < config.min_script_share:
            least = f"data.quality.min_script_share={config.min_script_share}"
            return f"too few letters of {', '.join(config.scripts)}: {least}"
    return None


def repetition(text: str) -> float:
    """Share of the words that stand in a 5-word phrase which the text holds more than once.

    repetition("no more of it please, " * 4)  ->  1.0
    """
    tokens = words(text)
    if len(tokens) <= PHRASE or len(set(tokens)) == len(tokens):
        return 0.0
    hashes = ngram_hashes(tokens, PHRASE)
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = counts[which] > 1
    inside = np.convolve(repeated, np.ones(PHRASE, np.int64)) > 0
    return float(inside.mean())


def dominant_script(text: str) -> str:
    """The script that most letters are of; `other` for one without a name here, `none` without letters."""
    if text.isascii():
        return "none" if text.lower() == text.upper() else "Latin"
    counts = _letters(text)
    return SCRIPTS[int(counts.argmax())] if counts.any() else "none"


def script_share(text: str, scripts: tuple[str, ...]) -> float:
    """Share of the letters that are of one of `scripts`; 1 for a text without letters."""
    counts = _letters(text)
    letters = int(counts.sum())
    return float(sum(counts[SCRIPTS.index(s)] for s in scripts)) / letters if letters else 1.0


def _letters(text: str) -> npt.NDArray[np.int64]:
    """Letters of each of `SCRIPTS` but `none`."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.bincount(_table()[np.minimum(codes, LAST)], minlength=len(SCRIPTS))[:NONE]


@cache
def _table() -> npt.NDArray[np.uint8]:
    """Code point -> number of its script."""
    table = np.full(LAST + 1, NONE, np.uint8)
    table[[code for code in range(0x20000) if chr(code).isalpha()]] = OTHER
    for number, blocks in enumerate(BLOCKS.values()):
        for first, last in blocks:
            block = table[first : last + 1]
            block[(block == OTHER) | (first >= 0x20000)] = number
    return table
