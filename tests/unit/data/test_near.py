"""Near duplicates: estimates are near the truth, every dropped row is near the one that is kept."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.config.data import NearDuplicates
from tunewright.data.near import SHINGLES_AT_ONCE, Group, near_groups, signature
from tunewright.data.words import ngram_hashes, words

CONFIG = NearDuplicates(threshold=0.8)


def matrix(texts: list[str], config: NearDuplicates = CONFIG) -> npt.NDArray[np.uint32]:
    rows = b"".join(signature(text, config) for text in texts)
    return np.frombuffer(rows, np.uint32).reshape(len(texts), config.permutations)


def document(seed: int, length: int = 120) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(length)]


def changed(tokens: list[str], places: int) -> str:
    step = len(tokens) // (places + 1)
    return " ".join(f"x{i}" if places and i % step == step - 1 else t for i, t in enumerate(tokens))


def jaccard(a: str, b: str, n: int) -> float:
    one, two = (set(ngram_hashes(words(text), n).tolist()) for text in (a, b))
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("places", [1, 3, 8])
def test_signatures_estimate_the_similarity_of_the_word_ngrams(places: int) -> None:
    config = NearDuplicates(permutations=512)
    tokens = document(7, 400)
    one, two = " ".join(tokens), changed(tokens, places)
    estimate = float((matrix([one], config) == matrix([two], config)).mean())
    assert estimate == pytest.approx(jaccard(one, two, config.ngram), abs=0.09)  # 4 standard deviations


def test_a_signature_does_not_see_case_punctuation_or_blanks() -> None:
    one = signature("The quick brown fox, jumps over: the lazy dog.", CONFIG)
    assert signature("the QUICK brown  fox jumps\nover the lazy dog", CONFIG) == one
    assert signature("the lazy dog jumps over the quick brown fox", CONFIG) != one
    assert len(one) == 4 * CONFIG.permutations


def test_a_text_shorter_than_the_ngram_is_its_own_only_shingle() -> None:
    assert signature("Yes, please.", CONFIG) == signature("yes please", CONFIG)
    assert signature("Yes, please.", CONFIG) != signature("no thanks", CONFIG)
    assert len({signature(text, CONFIG) for text in ("", "?", "!!", "\ud800")}) == 4


def test_a_long_text_is_hashed_in_parts_with_the_same_result() -> None:
    tokens = document(3, SHINGLES_AT_ONCE * 2 + 100)
    whole = matrix([" ".join(tokens)])
    cuts = [tokens[:3000], tokens[2996:]]  # together they hold the same 5-word shingles
    assert (whole == matrix([" ".join(cut) for cut in cuts]).min(axis=0)).all()


def test_a_nearly_equal_row_is_dropped_for_the_smallest_key() -> None:
    tokens = document(1)
    texts = [changed(tokens, 1), " ".join(tokens), " ".join(document(2))]
    (group,) = near_groups(["b", "a", "c"], matrix(texts), 0.8)
    assert (group.kept, list(group.dropped)) == ("a", ["b"])
    assert 0.8 <= group.dropped["b"] < 1


def test_unlike_rows_and_no_rows_make_no_group() -> None:
    assert near_groups(["a", "b"], matrix([" ".join(document(1)), " ".join(document(2))]), 0.8) == []
    assert near_groups([], np.empty((0, 128), np.uint32), 0.8) == []


def test_a_chain_does_not_drop_what_is_unlike_the_row_that_is_kept() -> None:
    a = np.arange(128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:16] += 1000  # 0.875 like a
    c[:32] += 1000
    c[:16] = b[:16]  # 0.875 like b, 0.75 like a
    assert near_groups(["a", "b", "c"], np.stack([a, b, c]), 0.8) == [Group("a", {"b": 0.875})]
    assert near_groups(["b", "a", "c"], np.stack([a, b, c]), 0.8) == [Group("a", {"b": 0.875, "c": 0.875})]


signatures = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), min_size=2, max_size=24).map(
    # Rows made from five others by changing some of their first columns.
    lambda rows: np.stack(
        [np.where(np.arange(128) < flips, i * 7919 + flips, base * 1000).astype(np.uint32)
         for i, (base, flips) in enumerate(rows)]
    )
)  # fmt: skip


@given(signatures, st.randoms(use_true_random=False), st.sampled_from([0.6, 0.8, 0.95]))
@settings(max_examples=60, deadline=None)
def test_groups_are_true_and_do_not_depend_on_the_order(
    rows: npt.NDArray[np.uint32], rng: random.Random, threshold: float
) -> None:
    keys = [f"{i:03}" for i in range(len(rows))]
    groups = near_groups(keys, rows, threshold)
    order = list(range(len(rows)))
    rng.shuffle(order)
    assert near_groups([keys[i] for i in order], rows[order], threshold) == groups
    dropped = [key for group in groups for key in group.dropped]
    assert len(dropped) == len(set(dropped))
    assert not {group.kept for group in groups} & set(dropped)
    for group in groups:
        for key, similarity in group.dropped.items():
            assert key > group.kept
            assert similarity == (rows[int(key)] == rows[int(group.kept)]).mean() >= threshold


@pytest.mark.parametrize(("threshold", "permutations"), [(0.8, 128), (0.5, 128), (0.95, 64), (0.99, 16)])
def test_nearly_all_pairs_well_above_the_threshold_are_found(threshold: float, permutations: int) -> None:
    rng = np.random.default_rng(5)
    pairs, alike = 400, (1 + threshold) / 2
    one = rng.integers(0, 2**32, (pairs, permutations), dtype=np.uint32)
    other = np.where(rng.random(one.shape) < alike, one, rng.integers(0, 2**32, one.shape, dtype=np.uint32))
    keys = [f"a{i:04}" for i in range(pairs)] + [f"b{i:04}" for i in range(pairs)]
    above = (one == other).mean(axis=1) >= threshold
    groups = near_groups(keys, np.concatenate([one, other]), threshold)
    assert above.sum() > 250
    assert len(groups) >= 0.95 * above.sum()
    assert {group.kept for group in groups} <= {keys[i] for i in np.flatnonzero(above)}
