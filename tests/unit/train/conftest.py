"""One process group for all trainings in this process: DeepSpeed keeps the first one it sees for good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loops import joined


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    with joined():
        yield


@pytest.fixture
def one_worker(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker, alone."""
    # For the test only: processes that other tests start would inherit it.
    monkeypatch.setenv("LOCAL_RANK", "0")
