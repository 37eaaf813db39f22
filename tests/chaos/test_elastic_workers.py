"""A training of one to two workers that loses a node for good goes on with one, on the same loss curve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 60
OTHER_WORLD_TOLERANCE = 1e-6
"""Relative, fp32: sums over another number of workers are taken in another order."""


def lose_a_node(folder: Path) -> None:
    """For a process of its own: two nodes of a CPU each, one of which goes in the middle of training."""
    import ray
    from ray.cluster_utils import Cluster

    from ray_trainings import after_steps, losses_of, training_spec
    from tunewright.artifacts import read_json
    from tunewright.train.launch import run_workers

    size = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    # Paths of unix sockets end at about 100 characters: not pytest's folder.
    ray_folder = tempfile.mkdtemp(prefix="twt-")
    head = {**size, "include_dashboard": False, "temp_dir": ray_folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(**size)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        shape = {"max_steps": STEPS, "save_steps": 5, "zero": zero}
        elastic = training_spec(folder, "elastic", workers={"min": 1, "max": 2}, **shape)
        with after_steps(elastic, (20, lambda: cluster.remove_node(node, allow_graceful=False))) as lost:
            run_workers(elastic)
        alone = training_spec(folder, "alone", workers=1, **shape)
        run_workers(alone)
        print(json.dumps({
            "lost": lost,
            "elastic": losses_of(elastic),
            "alone": losses_of(alone),
            "last": read_json(folder / "elastic" / "outcome.json"),
        }))  # fmt: skip
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_a_node_that_is_lost_for_good_leaves_the_loss_curve_as_it_is(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["lost"] == [20]
    assert told["last"]["workers"] == 1, "the group that came to the end"
    assert told["last"]["resumed_at_step"] >= 20 - 5, "and it began where the two had saved"
    assert list(told["elastic"]) == list(told["alone"]) == [str(step) for step in range(1, STEPS + 1)]
    assert list(told["elastic"].values()) == pytest.approx(
        list(told["alone"].values()), rel=OTHER_WORLD_TOLERANCE
    )


if __name__ == "__main__":
    lose_a_node(Path(sys.argv[1]))
