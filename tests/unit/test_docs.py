"""What the documentation says is so."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tunewright import cli
from tunewright.config import load_run
from tunewright.tune.space import load_space

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
SPACE_MARK = "<!-- a search space, not a run -->\n"


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def fenced(page: Path, language: str) -> list[tuple[str, str]]:
    """(what stands before, text) of each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start()], found[1])
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    ]


def yaml_blocks() -> Iterator[object]:
    for page in PAGES:
        for number, (before, text) in enumerate(fenced(page, "yaml"), start=1):
            yield pytest.param(before.endswith(SPACE_MARK), text, id=f"{name_of(page)}-{number}")


def test_configuration_page_is_what_the_schema_says() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", REPO / "docs/make_configuration.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = (REPO / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == made.render(), "run: python docs/make_configuration.py"


@pytest.mark.parametrize(("is_space", "text"), list(yaml_blocks()))
def test_every_yaml_example_is_valid(is_space: bool, text: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_space(path) if is_space else load_run(path)


def test_readme_and_guide_have_yaml_examples() -> None:
    assert len(fenced(REPO / "README.md", "yaml")) >= 1
    assert len(fenced(REPO / "docs/guide.md", "yaml")) >= 4


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_place_outside_the_repository(page: Path) -> None:
    found = re.findall(r"(?:/work/|/tmp/|/home/\w|/root/|\.\./shared)\S*", page.read_text(encoding="utf-8"))
    assert found == []


def verbs() -> set[str]:
    """`run`, `models`..., and `models promote`... of the groups."""
    group = typer.main.get_command(cli.app)
    found = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found |= {name} | {f"{name} {below}" for below in getattr(command, "commands", {})}
    return found


def test_readme_lists_every_command() -> None:
    section = (REPO / "README.md").read_text(encoding="utf-8").split("## Commands")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    listed = {verb for row in rows for verb in re.findall(r"`([a-z]+)`", row.split("|")[1])}
    assert listed == {verb for verb in verbs() if " " not in verb}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    known = verbs()
    for verb, below in re.findall(r"[`/]tunewright ([a-z]+)(?: ([a-z]+))?", page.read_text(encoding="utf-8")):
        assert verb in known, verb
        if any(name.startswith(f"{verb} ") for name in known):
            assert f"{verb} {below}" in known, f"{verb} {below}"


def test_the_guide_names_every_command() -> None:
    text = (REPO / "docs/guide.md").read_text(encoding="utf-8")
    groups = {verb.split()[0] for verb in verbs() if " " in verb}
    missing = [
        verb for verb in verbs() - groups if f"`tunewright {verb}" not in text and f"`{verb}" not in text
    ]
    assert missing == []


def test_every_place_in_the_readme_layout_exists() -> None:
    (block,) = [text for _, text in fenced(REPO / "README.md", "text") if text.startswith("platform/")]
    folder, seen = REPO, 0
    for line in block.splitlines():
        place = line.split()[0]
        if not line.startswith(" "):
            folder = REPO / place
            assert folder.exists(), place
        else:
            assert (folder / place).exists(), place
        seen += 1
    assert seen > 15


def test_the_readme_layout_names_every_room() -> None:
    (block,) = [text for _, text in fenced(REPO / "README.md", "text") if text.startswith("platform/")]
    rooms = {p.parent.name for p in (REPO / "platform/tunewright").glob("*/__init__.py")}
    assert rooms <= {line.split()[0].rstrip("/") for line in block.splitlines()}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z%-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^make ([a-z-]+)", text, flags=re.M))
    assert named <= targets


def test_commands_of_the_readme_name_files_that_exist() -> None:
    commands = "\n".join(text for _, text in fenced(REPO / "README.md", "bash"))
    assert "make quickstart" in commands and "make test" in commands
    paths = re.findall(r"\b(?:jobs|serve|docs)/[\w./-]+", commands)
    assert "jobs/pipeline.py" in paths
    for path in paths:
        assert (REPO / path).is_file(), path
