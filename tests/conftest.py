"""Fixtures of the whole suite. Everything runs on a laptop without a network, except tests marked `gpu`."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunewright.artifacts import Store

# Before anything imports Ray, torch or transformers: they read these once.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "TUNEWRIGHT_STORE", "TUNEWRIGHT_API_KEY"):
    os.environ.pop(name, None)

REPO = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 200 * 1024**2
# Worker processes find the package here even where it is not installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(REPO / "platform"), os.environ.get("PYTHONPATH")])
)


@pytest.fixture
def repo() -> Path:
    """The root of the repository."""
    return REPO


@pytest.fixture
def tmp_store(tmp_path: Path) -> Store:
    """An empty store of this test's own."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A private Ray of 4 CPUs in this process, shared by the session's cluster tests."""
    import ray

    # Unix socket paths are limited to about 100 characters, so pytest's own folder is too deep.
    folder = tempfile.mkdtemp(prefix="twt-")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        namespace="tests",
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
