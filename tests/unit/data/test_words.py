"""Words are what letters make, in every script; n-grams with the same words have the same hash."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.words import FACTOR, ngram_hashes, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 KM -- well-known!", "it s 3 5 km well known"),
        ("snake_case(x)=7", "snake case x 7"),
        ("Größe, ÉTÉ", "größe été"),
        ("e\u0301te\u0301 = été", "été été"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("Привет, мир", "привет мир"),
        ("我在2026年 works", "我 在 2026 年 works"),
        ("カタカナ", "カ タ カ ナ"),
        ("a\x00b\ud800c", "a b c"),
        (" ...!? ", ""),
    ],
)
def test_letters_and_digits_make_words(text: str, expected: str) -> None:
    assert b" ".join(words(text)).decode() == expected


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_words_hold_no_blanks_and_joining_them_changes_nothing(text: str) -> None:
    found = words(text)
    assert all(word.split() == [word] for word in found)
    assert len(words(b" ".join(found).decode())) >= len(found)


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=12), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_ngrams_have_the_same_hash_exactly_if_they_are_the_same_words(tokens: list[bytes], n: int) -> None:
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    hashes = ngram_hashes(tokens, n)
    assert len(hashes) == max(0, len(grams))
    assert len(set(hashes.tolist())) == len(set(grams))


def test_the_hash_is_the_polynomial_it_is_said_to_be() -> None:
    tokens = [b"one", b"two", b"three", b"four"]
    a, b, c, d = (xxhash.xxh3_64_intdigest(token) for token in tokens)
    expected = [(x * FACTOR**3 + y * FACTOR**2 + z * FACTOR) % 2**64 for x, y, z in ((a, b, c), (b, c, d))]
    assert ngram_hashes(tokens, 3).tolist() == expected
    assert ngram_hashes(tokens, 3).dtype == np.uint64
