"""The files around the package agree with one another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import tunewright
from tunewright import doctor

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
]
LINES = [
    line for line in (REPO / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_dependency_of_the_package_has_an_upper_bound() -> None:
    bounded = [r.name for r in REQUIREMENTS if any(s.operator in ("<", "<=", "==") for s in r.specifier)]
    assert {r.name for r in REQUIREMENTS} - set(bounded) <= {"packaging", "types-PyYAML"}


def test_constraints_are_plain_pins_that_any_registry_can_serve() -> None:
    assert len(LINES) > 100
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_pythons_are_the_same_everywhere() -> None:
    wanted = SpecifierSet(PROJECT["requires-python"])
    low, high = (".".join(map(str, version)) for version in doctor.PYTHON_RANGE)
    assert wanted == SpecifierSet(f">={low},<{high}")
    makefile = (REPO / "Makefile").read_text()
    assert f"{doctor.PYTHON_RANGE[0]} <= sys.version_info[:2] < {doctor.PYTHON_RANGE[1]}" in makefile


def test_the_changelog_names_this_version() -> None:
    assert f"## [{tunewright.__version__}]" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_names_what_it_can_do() -> None:
    said = subprocess.run(["make", "help"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in said for target in ("quickstart", "test", "check", "serve", "bench-%"))


def test_make_refuses_an_old_python_with_a_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    # -W pretends that the requirements are new, so that an environment which is there is made again.
    command = ["make", "-n", "test", "-W", "pyproject.toml", f"PYTHON={old}"]
    assert "version_info" in subprocess.run(command, cwd=REPO, capture_output=True, text=True).stdout
    command.remove("-n")
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Tunewright needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "is Python 3.9.1" in done.stderr


def test_continuous_integration_runs_make_test() -> None:
    script = REPO / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
    subprocess.run(["bash", "-n", script], check=True)


def test_the_console_script_is_the_command_line() -> None:
    module, _, function = PROJECT["scripts"]["tunewright"].partition(":")
    code = f"import {module} as m; assert callable(m.{function})"
    subprocess.run([sys.executable, "-c", code], check=True)
