"""A wrong file gets one sentence a problem: the file, the line, and the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.config import load_run
from tunewright.errors import ConfigError

GOOD = """\
name: desk
base: {model: tiny}
data:
  sources:
    - {type: builtin}
train:
  max_steps: 2
"""


def problems(tmp_path: Path, text: str | bytes, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value).replace(f"{path}", "run.yaml").splitlines()


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_run(path).train.max_steps == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: desk", "nmae: desk", "run.yaml:1: unknown key `nmae`; did you mean `name`?"),
        (
            "  max_steps: 2",
            "  max_steps: 2\n  lerning_rate: 1",
            "run.yaml:8: unknown key `train.lerning_rate`; did you mean `learning_rate`?",
        ),
        (
            "{type: builtin}",
            "{type: builtin, rwos: 3}",
            "run.yaml:5: unknown key `data.sources.0.rwos`; did you mean `rows`?",
        ),
        (
            "    - {type: builtin}",
            "    - {type: builtin}\n    - type: jsonl\n      path: x\n      colums: {a: b}",
            "run.yaml:8: unknown key `data.sources.1.colums`; did you mean `columns`?",
        ),
        (
            "  max_steps: 2",
            "  max_steps: 2\n  method:\n    type: lora\n    rnak: 3",
            "run.yaml:10: unknown key `train.method.rnak`; did you mean `rank`?",
        ),
        (
            "  max_steps: 2",
            "  max_steps: 2\nevaluate:\n  tasks:\n    - name: t\n      source: {type: jsonl, path: x}\n"
            "      max_tokens: 3",
            "run.yaml:12: unknown key `evaluate.tasks.0.max_tokens`; did you mean `max_new_tokens`?",
        ),
    ],
    ids=["top", "second level", "item", "second item", "chosen method", "task"],
)
def test_an_unknown_key_names_the_line_and_the_nearest_valid_key(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert GOOD.count(old) == 1
    assert expected in problems(tmp_path, GOOD.replace(old, new))


def test_a_key_like_no_other_lists_the_valid_ones(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, GOOD.replace("base: {model: tiny}", "base: {model: tiny, qqqq: 1}"))
    assert told == "run.yaml:2: unknown key `base.qqqq`; valid keys: model, new_tokens, revision"


def test_valid_keys_of_one_kind_of_source_are_not_offered_for_another(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, GOOD.replace("{type: builtin}", "{type: builtin, zzzz: 1}"))
    valid = told.partition("valid keys: ")[2]
    assert valid == "dirty_fraction, name, part, rows, seed, type"


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("name: desk", "name: A b").replace("max_steps: 2", "max_steps: 0\n  workrs: 2")
    told = problems(tmp_path, text)
    assert [line.split(" ")[0] for line in told] == ["run.yaml:1:", "run.yaml:7:", "run.yaml:8:"]


def test_a_wrong_item_does_not_also_make_its_list_too_short(tmp_path: Path) -> None:
    told = problems(tmp_path, GOOD.replace("{type: builtin}", "{type: jsonl}"))
    assert told == ["run.yaml:5: `data.sources.0.path` is required"]


def test_an_empty_list_of_sources_is_too_short(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, GOOD.replace("sources:\n    - {type: builtin}", "sources: []"))
    assert told.startswith("run.yaml:4: `data.sources`: Tuple should have at least 1 item")


def test_a_source_of_an_unknown_type_lists_the_types(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, GOOD.replace("{type: builtin}", "{type: jsnl, path: x}"))
    assert told.startswith("run.yaml:5: `data.sources.0`: Input tag 'jsnl'")
    assert "'jsonl'" in told
    assert "'builtin'" in told


def test_required_sections_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: desk\n") == [
        "run.yaml: `base` is required",
        "run.yaml: `data` is required",
        "run.yaml: `train` is required",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [a\nbase: 3\n", "run.yaml:2: not valid YAML: expected ',' or ']'"),
        ("name: a\n\tbase: 3\n", "run.yaml:2: not valid YAML: found character '\\t'"),
        ("a: b: c\n", "run.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("name: a\nbase: *x\n", "run.yaml:2: not valid YAML: found undefined alias 'x'"),
        (GOOD + "name: again\n", "run.yaml:8: not valid YAML: the key `name` is given twice"),
        (GOOD + "  max_steps: 3\n", "run.yaml:8: not valid YAML: the key `max_steps` is given twice"),
        (GOOD + "on: 3\n", "run.yaml:8: not valid YAML: the key `on` is not text; put it in quotes"),
        (GOOD + "? [a]\n: 3\n", "run.yaml:8: not valid YAML: the key `[...]` is not text"),
        ("!!python/object/apply:os.getcwd []\n", "run.yaml:1: not valid YAML: could not determine a constr"),
        ("a: &x [*x]\n", "run.yaml: nested too deeply, or an alias stands inside itself"),
        ("a: " + "[" * 3000 + "]" * 3000, "run.yaml: nested too deeply"),
        ("", "run.yaml: expected `key: value` lines, found an empty file"),
        ("# nothing but a remark\n", "run.yaml: expected `key: value` lines, found an empty file"),
        ("- a\n- b\n", "run.yaml: expected `key: value` lines, found a list"),
        ("just words\n", "run.yaml: expected `key: value` lines, found a str"),
        (b"name: caf\xe9 x\n", "run.yaml: cannot be read as UTF-8 text: "),
        (b"\x00\x01\x02", "run.yaml: not valid YAML: "),
    ],
    ids=lambda value: None if isinstance(value, bytes) or "run.yaml" not in value else value[10:50],
)
def test_what_is_not_a_run_file_is_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert problems(tmp_path, text)[0].startswith(expected)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: no such file"):
        load_run(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text: .*[Dd]irectory"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_steps", "--set train.max_steps: expected KEY=VALUE, such as train.learning_rate=1e-4"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("train.max_steps=[", "--set train.max_steps=[: the value is not valid YAML"),
        (
            "train.max_stps=3",
            "--set train.max_stps=3: unknown key `train.max_stps`; did you mean `max_steps`?",
        ),
        (
            "train.method={type: lora, rnak: 3}",
            "--set train.method={type: lora, rnak: 3}: unknown key `train.method.rnak`; did you mean `rank`?",
        ),
        ("data.sources.1.rows=5", "--set data.sources.1.rows=5: `1` is not an item 0..0"),
        ("data.sources.first.rows=5", "--set data.sources.first.rows=5: `first` is not an item 0..0"),
        ("train.max_steps.x=5", "--set train.max_steps.x=5: `train.max_steps` has no keys"),
        ("train.\u00b2=5", "--set train.\u00b2=5: unknown key `train.\u00b2`"),
        ("train.max_steps=0", "--set train.max_steps=0: `train.max_steps`: Input should be greater than"),
        ("base.model=", "--set base.model=: `base.model`: Input should be a valid string (found None)"),
    ],
)
def test_a_wrong_override_is_named_in_place_of_the_line(tmp_path: Path, override: str, expected: str) -> None:
    assert problems(tmp_path, GOOD, override)[0].startswith(expected)
