"""The decoding thread: who shares a batch, who is refused, and that a failure stays with its cause."""

from __future__ import annotations

import threading
import time

import pytest

from tunewright.errors import EngineFailed, QueueFull
from tunewright.models.decode import Sampling
from tunewright.serve.batcher import Batcher, Ticket


class ListSink:
    """Keeps tokens; complete after `wanted`."""

    def __init__(self, wanted: int = 3, broken: bool = False):
        self.tokens: list[int] = []
        self.error: Exception | None = None
        self.wanted, self.broken = wanted, broken
        self.ended = threading.Event()

    def token(self, token: int) -> bool:
        if self.broken:
            raise ValueError("this sink is broken")
        self.tokens.append(token)
        if len(self.tokens) == self.wanted:
            self.ended.set()
        return len(self.tokens) == self.wanted

    def fail(self, error) -> None:
        self.error = error
        self.ended.set()


class CountingDecode:
    """Gives a ticket prompt[0], prompt[0]+1, ...; a prompt with 666 breaks its batch after a step."""

    def __init__(self):
        self.batches: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, group, tickets):
        self.batches.append((group, len(tickets)))
        for step in range(1000):
            assert self.gate.wait(20)
            if step == 1 and any(666 in ticket.prompt for ticket in tickets):
                raise RuntimeError("a bad request")
            if all(ticket.over for ticket in tickets):
                return
            yield [None if ticket.over else ticket.prompt[0] + step for ticket in tickets]


@pytest.fixture
def decode():
    return CountingDecode()


@pytest.fixture
def batcher(decode):
    made = Batcher(decode, max_batch_size=4, max_waiting=6)
    yield made
    decode.gate.set()
    made.close()
    assert not made.alive


def ticket(first=10, group="tuned", sink=None, extra=()):
    return Ticket(group, [first, *extra], Sampling(8), sink or ListSink())


def wait(*tickets):
    for waiting in tickets:
        assert waiting.sink.ended.wait(20)


def busy(batcher, decode):
    """Make the thread hang in a batch of one, so that what comes next waits."""
    decode.gate.clear()
    first = ticket()
    batcher.submit(first)
    deadline = time.monotonic() + 20
    while not decode.batches and time.monotonic() < deadline:
        time.sleep(0.001)
    assert decode.batches == [("tuned", 1)]
    return first


def test_a_request_gets_its_tokens_until_it_wants_no_more(batcher):
    asked = ticket(40)
    batcher.submit(asked)
    wait(asked)
    assert asked.sink.tokens == [40, 41, 42]
    assert asked.over


def test_what_waits_is_decoded_together_up_to_the_batch_size(batcher, decode):
    first = busy(batcher, decode)
    others = [ticket(100 * n) for n in range(1, 7)]
    for other in others:
        batcher.submit(other)
    decode.gate.set()
    wait(first, *others)
    assert decode.batches == [("tuned", 1), ("tuned", 4), ("tuned", 2)]
    assert [t.sink.tokens[0] for t in others] == [100, 200, 300, 400, 500, 600]


def test_groups_do_not_share_a_batch_and_none_starves(batcher, decode):
    first = busy(batcher, decode)
    others = [ticket(n, group) for n, group in enumerate(["base", "tuned", "base", "tuned", "tuned"])]
    for other in others:
        batcher.submit(other)
    decode.gate.set()
    wait(first, *others)
    assert decode.batches == [("tuned", 1), ("base", 2), ("tuned", 3)]


def test_a_full_queue_refuses_and_takes_again_later(batcher, decode):
    first = busy(batcher, decode)
    waiting = [ticket() for _ in range(6)]
    for other in waiting:
        batcher.submit(other)
    with pytest.raises(QueueFull, match="6 requests are waiting"):
        batcher.submit(ticket())
    waiting[3].over = True  # its client has gone: its place is free
    batcher.submit(ticket())
    decode.gate.set()
    wait(first, *(t for t in waiting if not t.over))
    late = ticket()
    batcher.submit(late)
    wait(late)


def test_a_request_whose_client_has_gone_is_not_decoded(batcher, decode):
    first = busy(batcher, decode)
    gone, other = ticket(1), ticket(2)
    batcher.submit(gone)
    batcher.submit(other)
    gone.over = True
    decode.gate.set()
    wait(first, other)
    assert gone.sink.tokens == []
    assert decode.batches == [("tuned", 1), ("tuned", 1)]


def test_a_request_that_breaks_its_batch_fails_alone(batcher, decode, caplog):
    first = busy(batcher, decode)
    good, bad, fine = ticket(100), ticket(200, extra=(666,)), ticket(300)
    for other in (good, bad, fine):
        batcher.submit(other)
    decode.gate.set()
    wait(first, good, bad, fine)
    assert good.sink.tokens == [100, 101, 102]
    assert fine.sink.tokens == [300, 301, 302]
    assert isinstance(bad.sink.error, EngineFailed)
    assert "a bad request" not in str(bad.sink.error)
    assert "a bad request" in caplog.text
    assert good.sink.error is None
    after = ticket(7)
    batcher.submit(after)
    wait(after)
    assert after.sink.tokens == [7, 8, 9]


def test_an_answer_that_cannot_go_on_fails_alone(batcher, decode, caplog):
    first = busy(batcher, decode)
    broken, good = ticket(1, sink=ListSink(broken=True)), ticket(5)
    batcher.submit(broken)
    batcher.submit(good)
    decode.gate.set()
    wait(first, broken, good)
    assert isinstance(broken.sink.error, EngineFailed)
    assert good.sink.tokens == [5, 6, 7]
    assert decode.batches == [("tuned", 1), ("tuned", 2)]


def test_closing_ends_the_thread_and_fails_what_waits(decode):
    batcher = Batcher(decode, max_batch_size=1, max_waiting=6)
    first = busy(batcher, decode)
    waiting = ticket()
    batcher.submit(waiting)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    decode.gate.set()
    closer.join(20)
    assert not batcher.alive
    assert first.sink.tokens == [10, 11, 12]
    assert isinstance(waiting.sink.error, EngineFailed)
    with pytest.raises(EngineFailed, match="shutting down"):
        batcher.submit(ticket())
