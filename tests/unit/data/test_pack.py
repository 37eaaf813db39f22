"""Packing places every document once, in no row too many."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.pack import pack_best_fit
from tunewright.errors import DataError

lengths_and_capacity = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=60), st.just(capacity))
)


def test_the_example_of_the_docstring() -> None:
    assert pack_best_fit([5, 2, 4, 1], 6) == [[0, 3], [2, 1]]


@given(lengths_and_capacity)
def test_every_document_is_in_exactly_one_row_and_no_row_overflows(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    rows = pack_best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)


@given(lengths_and_capacity)
def test_best_fit_decreasing_keeps_its_proven_bound(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    rows = pack_best_fit(lengths, capacity)
    lower = math.ceil(sum(lengths) / capacity)
    # 11/9 of the optimum plus 6/9 (Dosa 2007); the optimum is at most twice the lower bound.
    assert lower <= len(rows) <= max(1, 2 * lower) * 11 / 9 + 1
    if len(rows) > 1:  # no two rows could have been one
        fill = sorted(sum(lengths[i] for i in row) for row in rows)
        assert fill[0] + fill[1] > capacity


@given(st.lists(st.integers(1, 8), min_size=8, max_size=200))
def test_short_documents_fill_all_rows_but_one(lengths: list[int]) -> None:
    rows = pack_best_fit(lengths, 64)
    assert len(rows) <= math.ceil(sum(lengths) / 64) + 1


@given(lengths_and_capacity)
def test_packing_the_same_twice_gives_the_same_rows(case: tuple[list[int], int]) -> None:
    assert pack_best_fit(*case) == pack_best_fit(*case)


def test_equal_lengths_keep_their_order() -> None:
    assert pack_best_fit([3, 3, 3, 3], 6) == [[0, 1], [2, 3]]


def test_no_documents_make_no_rows() -> None:
    assert pack_best_fit([], 8) == []


@pytest.mark.parametrize("lengths", [[3, 9], [0], [-1, 2]], ids=str)
def test_a_document_that_is_empty_or_too_long_is_refused_and_never_cut(lengths: list[int]) -> None:
    with pytest.raises(DataError, match=r"sequence \d has -?\d tokens; a row holds 1\.\.8"):
        pack_best_fit(lengths, 8)
