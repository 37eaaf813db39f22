"""What tests on a local Ray share."""

import pytest

from data_desk import Desk, data_config
from tiny_runs import newborn_base
from tunewright.artifacts import Store
from tunewright.config import BaseModelConfig
from tunewright.data.prepare import prepare, prepare_plan
from tunewright.models.base import register_folder


@pytest.fixture(scope="session")
def desk(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A store with a newborn base, and the data set of generated tickets made with it."""
    folder = tmp_path_factory.mktemp("desk")
    store = Store(folder / "store")
    base, _ = register_folder(store, BaseModelConfig(model=str(newborn_base(folder / "model"))))
    config = data_config()
    return Desk(store, base, prepare(store, config, base, prepare_plan(config, base)))
