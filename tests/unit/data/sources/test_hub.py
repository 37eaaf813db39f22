"""Hugging Face data sets: local folders of any kind, and what is said when the hub cannot give one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.config import HuggingFaceSource
from tunewright.data.sources.hub import hub_rows
from tunewright.errors import DataError

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B-person"])),
        "at": datasets.Value("timestamp[s]"),
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
    }
)


def made(count: int) -> datasets.Dataset:
    message = {"role": "user", "content": "hi"}
    rows = [
        {
            "text": f"row {n}",
            "label": n % 2,
            "tags": [0, 1][: n % 3],
            "at": n,
            "messages": [message] * (n % 2),
        }
        for n in range(count)
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def expected(n: int) -> dict[str, Any]:
    return {
        "text": f"row {n}",
        "label": ["no", "yes"][n % 2],
        "tags": ["O", "B-person"][: n % 3],
        "at": f"1970-01-01T00:{n // 60:02d}:{n % 60:02d}",
        "messages": [{"role": "user", "content": "hi"}] * (n % 2),
    }


def rows(dataset: str | Path, scratch: Path, **changes: Any) -> list[Any]:
    source = HuggingFaceSource(type="huggingface", dataset=str(dataset), **changes)
    return [json.loads(row) for row in hub_rows(source, scratch)]


@pytest.fixture
def quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path, quiet: None) -> Path:
    return tmp_path / "set"


def test_a_saved_data_set_is_read_with_names_of_classes(folder: Path, tmp_path: Path) -> None:
    made(70).save_to_disk(str(folder))
    assert rows(folder, tmp_path) == [expected(n) for n in range(70)]
    assert rows(folder, tmp_path, max_rows=3) == [expected(n) for n in range(3)]


def test_a_saved_set_of_splits_gives_the_one_asked_for(folder: Path, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": made(3), "test": made(1)}).save_to_disk(str(folder))
    assert len(rows(folder, tmp_path)) == 3
    assert rows(folder, tmp_path, split="test") == [expected(0)]
    with pytest.raises(DataError, match="no split `dev`; there are train, test"):
        rows(folder, tmp_path, split="dev")


def test_rows_of_a_batch_border_come_once(folder: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"n": list(range(2001))}).save_to_disk(str(folder))
    assert [row["n"] for row in rows(folder, tmp_path)] == list(range(2001))


def test_a_class_that_is_not_known_is_null(folder: Path, tmp_path: Path) -> None:
    labels = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"label": [1, -1, None]}, features=labels).save_to_disk(str(folder))
    assert [row["label"] for row in rows(folder, tmp_path)] == ["yes", None, None]


def test_a_folder_of_files_is_loaded_and_its_cache_does_not_stay(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (folder / "train.jsonl").write_text('{"zip": "007", "n": 1}\n{"zip": "1", "n": null}\n', encoding="utf-8")
    assert rows(folder, scratch) == [{"zip": "007", "n": 1}, {"zip": "1", "n": None}]
    (folder / "train.jsonl").write_text('{"zip": "8", "n": 2}\n', encoding="utf-8")
    assert rows(folder, scratch) == [{"zip": "8", "n": 2}]
    assert list(scratch.iterdir()), "what was converted is in the scratch folder"


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        ({}, {}, "doesn't contain any data files"),
        ({"train.jsonl": '{"a": 1}'}, {"split": "dev"}, 'Unknown split "dev"'),
        ({"train.jsonl": '{"a": 1}'}, {"name": "other"}, "other"),
        ({"train.jsonl": "{broken"}, {}, "(?i)json|generating"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_one_sentence(
    folder: Path, tmp_path: Path, files: dict[str, str], changes: dict[str, str], said: str
) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        rows(folder, tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_code_of_a_data_set_is_never_run(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'evil')!r}, 'w')", encoding="utf-8")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        rows(folder, tmp_path)
    assert not (tmp_path / "evil").exists()


def test_columns_of_bytes_and_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"b": [b"x"]}).save_to_disk(str(folder))
    with pytest.raises(DataError, match="column `b` holds bytes"):
        rows(folder, tmp_path)
    picture = datasets.Features({"p": datasets.Image()})
    datasets.Dataset.from_dict({"p": [None]}, features=picture).save_to_disk(str(folder) + "2")
    with pytest.raises(DataError, match="column `p` holds image"):
        rows(str(folder) + "2", tmp_path)


def test_the_hub_needs_a_revision(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"openai/gsm8k: give revision, a commit or tag.*there is none of that name"
    ):
        rows("openai/gsm8k", tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="the hub cannot be reached and the data set is not in its cache"
    ) as caught:
        rows("tunewright/no-such-set", tmp_path, revision="0123abc", name="main")
    assert "tunewright/no-such-set at revision 0123abc" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
@pytest.mark.parametrize("after", ["", "4444", "88888888"], ids=len)
@pytest.mark.parametrize(
    "name", ["ray.data.arrow_tensor", "ray.data.arrow_variable_shaped_tensor", "arrow.py_extension_type"]
)
def test_a_pickle_in_a_files_types_is_never_loaded(
    folder: Path, tmp_path: Path, kind: str, name: str, after: str
) -> None:
    import ray.data  # registers its types with pyarrow, as in a run

    assert ray.data.DataContext is not None
    evil = tmp_path / "evil"
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Evil(evil))}
    schema = pa.schema(
        [pa.field("x", pa.list_(pa.int64()), metadata=metadata), pa.field("text" + after, pa.string())]
    )
    table = pa.table({"x": [[1]], "text" + after: ["a"]}, schema=schema)
    if kind == "parquet":
        folder.mkdir()
        pq.write_table(table, folder / "train.parquet")
    else:
        datasets.Dataset.from_dict({"x": [[1]], "text": ["a"]}).save_to_disk(str(folder))
        (data,) = folder.glob("data-*.arrow")
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with pa.OSFile(str(data), "wb") as file, new(file, schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match="has an Arrow extension type, which can carry code and is refused"):
        rows(folder, tmp_path)
    assert not evil.exists()


def test_the_pickle_is_a_real_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "evil"))).close()
    assert (tmp_path / "evil").exists()
