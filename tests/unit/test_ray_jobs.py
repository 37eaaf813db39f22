"""A followed job's lines are printed once and completely, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobStatus

from tunewright import ray_jobs
from tunewright.errors import ClusterError

HEAD = "2026-11-21 09:00:00,000\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
START = "Running entrypoint for job j: python x.py\n"


class FlakyClient:
    """A cluster whose log connection breaks after each piece, and starts again from the beginning."""

    def __init__(self, pieces: list[str], unseen: str = "", answers: bool = True):
        self.pieces, self.unseen, self.answers = pieces, unseen, answers
        self.tails = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.tails += 1
        for piece in self.pieces[: self.tails]:
            yield piece
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job_id: str) -> JobStatus:
        if not self.answers:
            raise ConnectionError("refused")
        return JobStatus.SUCCEEDED if self.tails >= len(self.pieces) else JobStatus.RUNNING

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.pieces) + self.unseen


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "STATUS_PERIOD_S", 0.02)
    monkeypatch.setattr(ray_jobs, "TAIL_PERIOD_S", 0.02)


def follow(client: FlakyClient) -> tuple[str, str]:
    out = io.StringIO()
    status = asyncio.run(ray_jobs._follow(client, "j", ray_jobs._Printer(out)))  # type: ignore[arg-type]
    return status, out.getvalue()


def test_lines_are_not_repeated_after_a_lost_connection() -> None:
    client = FlakyClient([HEAD + START, "one\ntw", "o\n", "three\n"])
    assert follow(client) == (JobStatus.SUCCEEDED, "one\ntwo\nthree\n")
    assert client.tails >= 4


def test_lines_written_after_the_last_look_are_printed() -> None:
    assert follow(FlakyClient(["one\n"], unseen="two\n"))[1] == "one\ntwo\n"


def test_a_cluster_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "LOST_AFTER_S", 0.1)
    with pytest.raises(ClusterError, match="has not answered for 0 s while job j was running"):
        follow(FlakyClient(["one\n"], answers=False))
