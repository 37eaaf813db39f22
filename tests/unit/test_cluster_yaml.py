"""cluster.yaml is accepted by Ray's own validator, and by our rules where that one is silent."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
PINS = dict(line.split("==") for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line)


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPO / "cluster.yaml").read_text(encoding="utf-8"))
    return loaded


def validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate(cluster)


def test_ray_refuses_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["max_wrokers"] = 3
    with pytest.raises(Exception, match="max_wrokers"):
        validate(cluster)


@pytest.mark.parametrize("image", ["head_image", "worker_image"])
def test_images_have_the_pinned_ray_and_python(cluster: dict[str, Any], image: str) -> None:
    tag = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)-(cpu|gpu)", cluster["docker"][image])
    assert tag is not None
    assert tag[1] == PINS["ray"]
    assert f"Python {tag[2]}.{tag[3]}" in (REPO / "constraints.txt").read_text().splitlines()[0]


def test_gpu_workers_scale_from_none_within_the_clusters_bound(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert 1 <= worker["max_workers"] <= cluster["max_workers"]
    assert worker["resources"]["GPU"] >= 1
    assert cluster["docker"]["worker_image"].endswith("-gpu")


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_ray_starts_with_token_authentication(cluster: dict[str, Any], role: str) -> None:
    stop, start = cluster[f"{role}_start_ray_commands"]
    assert stop == "ray stop"
    assert start.startswith("export RAY_AUTH_MODE=token; ulimit -n 65536; ray start ")


def test_the_head_autoscales_and_keeps_its_dashboard_to_itself(cluster: dict[str, Any]) -> None:
    start = cluster["head_start_ray_commands"][1]
    assert "--head " in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_the_token_reaches_every_node_readable_by_its_owner_only(cluster: dict[str, Any]) -> None:
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]


def test_nodes_install_what_is_pinned(cluster: dict[str, Any]) -> None:
    installs = [command for command in cluster["setup_commands"] if "pip install" in command]
    assert len(installs) == 2
    assert all("-c constraints.txt" in command for command in installs)
    assert any(" -e ." in command for command in installs)
