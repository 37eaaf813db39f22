"""The rows of the house: who may import whom, and where heavy packages may be imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "platform" / "tunewright"

# From the bottom. A module may import from rows below its own; never sideways, never up.
ROWS = [
    {"errors"},
    {"config"},
    {"artifacts"},
    {"monitor", "security"},
    {"models"},
    {"data", "registry"},
    {"train", "evaluate", "serve"},
    {"tune"},
    {"report", "line", "preflight", "console", "ray_guard", "ray_local", "runs", "doctor", "chat_client"},
    {"base_stage", "evaluation_stage", "ray_jobs", "endpoint"},
    {"submit", "closing", "preview", "export"},
    {"training_stages"},
    {"pipeline", "data_cli", "plan"},
    {"cli"},
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

STAGES = [
    "pipeline.py",
    "closing.py",
    "preflight.py",
    "base_stage.py",
    "training_stages.py",
    "evaluation_stage.py",
]
# Where a heavy package may be imported at all: files, or folders with everything in them.
ALLOWED = {
    "ray": [
        "data/",
        "tune/",
        "train/worker.py",
        "train/launch.py",
        "serve/deployment.py",
        "serve/app.py",
        "ray_local.py",
        "ray_jobs.py",
        "endpoint.py",
        *STAGES,
    ],
    "torch": ["models/", "train/", "evaluate/", "serve/torch_engine.py", "data/reader.py", *STAGES],
    "transformers": ["models/", "train/"],
    "tokenizers": ["models/"],
    "peft": ["models/", "train/"],
    "deepspeed": ["train/"],
    "cryptography": ["security/"],
    "sqlalchemy": ["data/sources/", "registry/"],
    "pyarrow": ["data/", "train/", "models/"],
    "datasets": ["data/"],
    "fastapi": ["serve/"],
    "starlette": ["serve/"],
    "uvicorn": ["serve/"],
    "vllm": ["serve/vllm_engine.py"],
    "openai": ["evaluate/", "chat_client.py", *STAGES],
    "matplotlib": ["report.py", "report/"],
    "jinja2": ["report.py", "report/", "models/"],
}
# Loaded by the command line before any work: heavy packages only inside functions.
LIGHT = {room for row in ROWS[ROW_OF["report"] :] for room in row} | {"errors", "config", "artifacts"}
CHOOSERS = {"jobs", "serve", "tune_spaces", "benchmarks", "tests", "doubles", "conftest"}


@dataclass(frozen=True)
class Import:
    """One `import` of a module of the package."""

    file: str
    line: int
    target: str
    at_load: bool
    """Whether it runs when the module is loaded, and not in a function or for types only."""
    for_types: bool

    @property
    def room(self) -> str:
        return self.file.partition("/")[0].removesuffix(".py")

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import in `source`, at any depth."""

    def walk(node: ast.AST, at_load: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: imports are absolute in this project"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
            for name in names:
                yield Import(file, child.lineno, name, at_load and not for_types, for_types)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from walk(child, at_load and not inside, for_types or typing)

    yield from walk(ast.parse(source), True, False)


ALL = [
    found
    for path in sorted(PACKAGE.rglob("*.py"))
    for found in imports_of(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())
]


def breaks_rows(found: Import) -> bool:
    """Whether an import of one of our rooms goes sideways or up."""
    parts = found.target.split(".")
    if parts[0] != "tunewright" or len(parts) < 2 or parts[1].startswith("__"):
        return False
    if parts[1] == found.room:
        return False
    return ROW_OF.get(parts[1], len(ROWS)) >= ROW_OF.get(found.room, -1)


def misplaced(found: Import) -> bool:
    """Whether a heavy package is imported in a file that may not know it."""
    return (
        found.top in ALLOWED
        and not found.for_types
        and not any(found.file == place or found.file.startswith(place) for place in ALLOWED[found.top])
    )


def test_every_module_has_a_row() -> None:
    rooms = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__", "__main__"} <= set(ROW_OF)


def test_imports_go_down_only() -> None:
    assert len(ALL) > 100
    assert [str(found) for found in ALL if breaks_rows(found)] == []


def test_heavy_packages_are_imported_where_they_belong() -> None:
    assert [str(found) for found in ALL if misplaced(found)] == []


def test_the_command_line_loads_nothing_heavy() -> None:
    early = [f for f in ALL if f.room in LIGHT and f.at_load and f.top in ALLOWED]
    assert [str(found) for found in early] == []


def test_nothing_imports_from_the_folders_that_choose() -> None:
    # They hold files for people and for Ray, not modules.
    assert [str(found) for found in ALL if found.top in CHOOSERS] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/chat.py", "from tunewright.data import shards"),
        ("train/loop.py", "def f():\n    from tunewright.serve import app"),
        ("registry/store.py", "import tunewright.data.pack"),
        ("errors.py", "from tunewright.config import load_run"),
    ],
)
def test_the_row_check_sees_a_wrong_import(file: str, line: str) -> None:
    assert [breaks_rows(found) for found in imports_of(line, file)] == [True]


@pytest.mark.parametrize(
    ("file", "line"), [("train/loop.py", "import ray"), ("serve/gateway.py", "def f():\n    import torch.nn")]
)
def test_the_heavy_check_sees_a_wrong_import(file: str, line: str) -> None:
    assert [misplaced(found) for found in imports_of(line, file)] == [True]


def test_platform_is_not_a_package() -> None:
    assert not (REPO / "platform" / "__init__.py").exists()
    assert not (REPO / "tests" / "__init__.py").exists()


def test_the_standard_platform_module_is_found_with_the_repository_on_the_path() -> None:
    code = "import platform, uuid, ray, ray.serve; print(platform.system(), platform.__file__)"
    path = os.pathsep.join([str(REPO), str(REPO / "platform")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert str(REPO) not in done.stdout.replace(sys.prefix, "")
    assert done.stdout.split()[0] in ("Linux", "Darwin")
