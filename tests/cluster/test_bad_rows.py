"""What only a worker can find out about a source reaches the person as one sentence."""

from pathlib import Path

import pytest

from tiny_runs import newborn_base, small_run, write_run
from tunewright.config import BaseModelConfig, load_run
from tunewright.data.prepare import prepare, prepare_plan
from tunewright.errors import DataError
from tunewright.models.base import register_folder

pytestmark = pytest.mark.cluster


def test_a_damaged_file_found_by_a_worker_is_a_data_error(ray_cluster: None, tmp_path: Path) -> None:
    from tunewright.artifacts import Store

    rows = tmp_path / "rows.json"
    rows.write_text('[{"prompt": "a", "completion": "b"}, {"prompt"')
    run = small_run(newborn_base(tmp_path / "base"), tmp_path / "store")
    run["data"]["sources"] = [{"type": "json", "path": str(rows), "format": "prompt_completion"}]
    config = load_run(write_run(tmp_path / "run.yaml", run)).data
    store = Store(tmp_path / "store")
    base, _ = register_folder(store, BaseModelConfig(model=str(tmp_path / "base")))
    with pytest.raises(DataError, match=r"rows\.json: not JSON: "):
        prepare(store, config, base, prepare_plan(config, base))
