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


@pytest.fixture(autouse=True)
def as_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models go the ways of large ones: attention by documents, logits by pieces."""
    from tunewright.models import attention, token_logps

    monkeypatch.setattr(attention, "PAIRS_PER_DOCUMENT", 0)
    monkeypatch.setattr(token_logps, "FEW_LOGITS", 0)
