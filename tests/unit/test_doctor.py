"""`tunewright doctor` names what is wrong and what to do, and fails only on what stops a run."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tunewright import doctor


def test_this_machine_gets_a_state_and_advice_for_each_problem(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path / "store")
    names = [check.name for check in checks]
    assert {"python", "cores", "memory", "disk", "store", "gpu", "port 8000", "port 8265"} <= set(names)
    assert len(names) == len(set(names))
    assert all(check.do for check in checks if check.state != "ok")
    assert all(check.found for check in checks)


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")]
)
def test_python_must_be_in_range(version: tuple[int, int], state: str) -> None:
    assert doctor.check_python(version).state == state


def test_a_missing_and_an_old_package_fail_with_the_command_that_helps() -> None:
    wanted = [Requirement("pytest>=1"), Requirement("pytest>=999"), Requirement("no-such-package-here>=2,<3")]
    old, missing, fitting = doctor.check_packages(wanted)
    assert (old.state, old.found) == ("fail", importlib.metadata.version("pytest"))
    assert (missing.state, missing.found) == ("fail", "not installed")
    assert missing.do == "pip install 'no-such-package-here<3,>=2' -c constraints.txt"
    assert (fitting.state, fitting.found) == ("ok", "1 within their ranges")


def test_a_version_that_differs_from_its_pin_is_a_warning(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# comment\npytest==0.0.1\nnot-installed-at-all==1\n")
    (differs,) = doctor.check_pins(pins)
    assert differs.state == "warn"
    assert differs.found == f"pytest {importlib.metadata.version('pytest')} (pinned 0.0.1)"


def test_pins_that_fit_are_ok_whatever_the_build_suffix(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    public = importlib.metadata.version("torch").partition("+")[0]
    pins.write_text(f"torch=={public}\n")
    assert [check.state for check in doctor.check_pins(pins)] == ["ok"]
    assert list(doctor.check_pins(tmp_path / "none.txt")) == []


def test_little_memory_fails_and_some_memory_warns() -> None:
    assert [doctor.check_memory(gib).state for gib in (1.0, 4.0, 16.0)] == ["fail", "warn", "ok"]


def test_one_core_is_a_warning() -> None:
    assert doctor.check_cores(1).state == "warn"
    assert doctor.check_cores(2).state == "ok"


def test_few_open_files_fail() -> None:
    assert doctor.check_open_files(256).state == "fail"
    assert doctor.check_open_files(65536).state == "ok"


def test_a_port_in_use_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = doctor.check_port(port, "serve.port")
    assert (taken.state, taken.found) == ("warn", "in use")
    assert "serve.port" in taken.do
    assert doctor.check_port(port, "serve.port").state == "ok"


def test_looking_at_a_store_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    assert doctor.check_store(root).state == "ok"
    assert not (tmp_path / "a").exists()


def test_a_store_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check = doctor.check_store(tmp_path / "file" / "store")
    assert check.state == "fail"
    assert "TUNEWRIGHT_STORE" in check.do


def test_a_long_temporary_folder_fails(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    assert doctor.check_temp(deep).state == "fail"
    assert doctor.check_temp(Path("/tmp")).state == "ok"


def test_bf16_is_read_from_the_processors_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx512f avx512_bf16 amx_bf16\n")
    assert doctor.check_bf16(cpuinfo).found == "amx_bf16, avx512_bf16"
    cpuinfo.write_text("flags : fpu avx2\n")
    assert "fp32" in doctor.check_bf16(cpuinfo).found


def test_a_broken_gpu_driver_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (check,) = doctor.check_gpu()
    assert check.state == "warn"
    assert "driver" in check.do


def test_gpus_are_listed_and_a_cpu_torch_beside_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.13.0+cpu")
    gpu, torch = doctor.check_gpu()
    assert gpu.found == "GPU 0: NVIDIA H200"
    assert torch.state == "warn"
