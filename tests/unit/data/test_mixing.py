"""Which rows are used, how often and for what: by their content, whatever their order."""

from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import DataConfig
from tunewright.data.mixing import Census, Choice, choose, merge_census, needs_census

KEYS = [xxhash.xxh3_128_hexdigest(str(n).encode()) for n in range(20_000)]


def config(sources: int = 2, **changes: Any) -> DataConfig:
    given: list[dict[str, Any]] = [{"type": "jsonl", "path": f"{n}.jsonl"} for n in range(sources)]
    for index, extra in changes.pop("each", {}).items():
        given[index] |= extra
    return DataConfig.model_validate({"sources": given, **changes})


def drawn(choice: Choice, source: int, rows: int, stratum: str | None = None) -> int:
    used = [key for key in KEYS[:rows] if choice.uses(source, stratum, key)]
    return sum(choice.copies_of(source, key) for key in used)


def test_all_rows_of_all_sources_are_used_once_and_nothing_is_counted_beforehand() -> None:
    assert not needs_census(config())
    choice = choose(config(), None)
    assert [drawn(choice, source, 1000) for source in (0, 1)] == [1000, 1000]


def test_repeat_takes_every_row_of_a_source_so_often() -> None:
    choice = choose(config(each={1: {"repeat": 3}}), None)
    assert [drawn(choice, source, 500) for source in (0, 1)] == [500, 1500]


def test_weights_give_the_asked_shares() -> None:
    asked = config(each={0: {"weight": 3}, 1: {"weight": 1}}, mix={"strategy": "weights"})
    choice = choose(asked, Census({(0, None): 10_000, (1, None): 10_000}, {}))
    first, second = drawn(choice, 0, 10_000), drawn(choice, 1, 10_000)
    assert first / (first + second) == pytest.approx(0.75, abs=0.01)
    assert first + second == pytest.approx(20_000, rel=0.02)
    assert choice.asked == {0: 0.75, 1: 0.25}


def test_a_temperature_evens_out_sources_of_unlike_size() -> None:
    census = Census({(0, None): 16_000, (1, None): 1_000}, {})
    choice = choose(config(mix={"strategy": "temperature", "temperature": 2, "max_repeat": 100}), census)
    first, second = drawn(choice, 0, 16_000), drawn(choice, 1, 1_000)
    assert first / second == pytest.approx(4, rel=0.05)
    even = choose(config(mix={"strategy": "temperature", "temperature": 1}), census)
    assert (drawn(even, 0, 16_000), drawn(even, 1, 1_000)) == (16_000, 1_000)


def test_a_small_source_is_not_repeated_more_than_allowed() -> None:
    asked = config(each={1: {"weight": 9}}, mix={"strategy": "weights", "max_repeat": 2})
    choice = choose(asked, Census({(0, None): 10_000, (1, None): 100}, {}))
    assert drawn(choice, 1, 100) == 200


def test_a_mixture_of_a_stated_size_has_about_that_size() -> None:
    asked = config(mix={"rows": 3_000})
    choice = choose(asked, Census({(0, None): 10_000, (1, None): 5_000}, {}))
    first, second = drawn(choice, 0, 10_000), drawn(choice, 1, 5_000)
    assert first + second == pytest.approx(3_000, rel=0.1)
    assert first / second == pytest.approx(2, rel=0.15)


def test_a_sample_has_about_the_rows_asked_for_and_keeps_the_shares_of_its_strata() -> None:
    asked = config(1, each={0: {"sample": {"rows": 2_000, "stratify": "label"}}})
    choice = choose(asked, Census({(0, "a"): 15_000, (0, "b"): 5_000}, {}))
    counts = drawn(choice, 0, 15_000, "a"), drawn(choice, 0, 5_000, "b")
    assert sum(counts) == pytest.approx(2_000, rel=0.1)
    assert counts[0] / counts[1] == pytest.approx(3, rel=0.2)


def test_a_balanced_sample_takes_as_many_of_each_value_as_the_rarest_has() -> None:
    asked = config(1, each={0: {"sample": {"stratify": "label", "balanced": True}}})
    choice = choose(asked, Census({(0, "a"): 15_000, (0, "b"): 1_000}, {}))
    assert drawn(choice, 0, 1_000, "b") == 1_000
    assert drawn(choice, 0, 15_000, "a") == pytest.approx(1_000, rel=0.1)


def test_each_stratum_of_a_stratified_split_has_an_evaluation_row() -> None:
    asked = config(1, split={"eval": 0.05, "stratify": "label"})
    choice = choose(asked, Census({(0, None): 30}, {"a": (29, KEYS[0]), "b": (1, KEYS[1])}))
    assert choice.eval_keys == {KEYS[0]}, "a stratum of one row keeps it for training"


@given(st.floats(0.05, 1), st.floats(0.1, 5), st.permutations(range(200)))
def test_a_choice_depends_on_the_row_alone(share: float, copies: float, order: list[int]) -> None:
    choice = Choice({(0, None): share}, {0: copies})
    wanted = {key: (choice.uses(0, None, key), choice.copies_of(0, key)) for key in KEYS[:200]}
    again = Choice({(0, None): share}, {0: copies})
    for index in order:
        assert wanted[KEYS[index]] == (again.uses(0, None, KEYS[index]), again.copies_of(0, KEYS[index]))


@given(st.floats(0.05, 0.9), st.floats(0.01, 0.1))
def test_a_larger_share_keeps_all_rows_of_a_smaller_one(share: float, more: float) -> None:
    small, large = Choice({(0, None): share}), Choice({(0, None): share + more})
    kept = [key for key in KEYS[:500] if small.uses(0, None, key)]
    assert all(large.uses(0, None, key) for key in kept)


def test_the_census_of_buckets_adds_up() -> None:
    parts = [
        '{"rows": [[0, "a", 3], [1, null, 2]], "strata": [["x", 2, "bb"], ["y", 1, "cc"]]}',
        '{"rows": [[0, "a", 4], [0, "b", 1]], "strata": [["x", 5, "aa"]]}',
    ]
    census = merge_census(parts)
    assert census.rows == {(0, "a"): 7, (1, None): 2, (0, "b"): 1}
    assert census.strata == {"x": (7, "aa"), "y": (1, "cc")}


def test_what_would_be_ambiguous_is_refused() -> None:
    with pytest.raises(ValueError, match=r"repeat belongs to mix\.strategy: all"):
        config(each={0: {"repeat": 2}}, mix={"strategy": "weights"})
    with pytest.raises(ValueError, match="balanced needs the column"):
        config(each={0: {"sample": {"balanced": True}}})
    with pytest.raises(ValueError, match="a group stays whole"):
        config(split={"by": "customer", "stratify": "label"})
