"""Answers come back whole, in order, and the loss is a sum over supervised tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import torch

from doubles import tiny_model_folder
from tunewright.config import BuiltinSource, TaskConfig
from tunewright.errors import EvaluateError
from tunewright.evaluate.generate import EndpointGenerator, LocalGenerator, answer_loss
from tunewright.evaluate.suite import evaluate_generator, evaluate_model
from tunewright.evaluate.tasks import Task, task_from_messages
from tunewright.models.chat import ChatRenderer
from tunewright.models.load import load_model, load_renderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Newborn:
    """A random model and its renderer."""

    model: PreTrainedModel
    renderer: ChatRenderer


@pytest.fixture(scope="module")
def newborn(tmp_path_factory: pytest.TempPathFactory) -> Newborn:
    folder = tmp_path_factory.mktemp("newborn")
    tiny_model_folder(folder, context=96)
    return Newborn(load_model(folder, None, torch.float32), load_renderer(folder))


def make_task(pairs: list[tuple[str, str]], answer: str = "text", **settings: object) -> Task:
    """A task of single-turn conversations (question, answer)."""
    config = TaskConfig.model_validate(
        {"name": "desk", "source": BuiltinSource(type="builtin"), "answer": answer, **settings}
    )
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return task_from_messages(config, chats)


@pytest.fixture
def text_task() -> Task:
    return make_task(
        [(f"{'long ' * (i % 4)}question {i}", f"answer {i}") for i in range(7)], max_new_tokens=6
    )


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def transformers_answer(newborn: Newborn, prompt: list[dict[str, Any]], max_new_tokens: int) -> str:
    """What transformers' own `generate` says: the independent reference."""
    ids = torch.tensor([newborn.renderer.prompt(prompt)])
    out = newborn.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens,
        eos_token_id=sorted(newborn.renderer.stop_ids), pad_token_id=newborn.renderer.pad_id,
    )  # fmt: skip
    return newborn.renderer.text(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_in_the_prompts_order_whatever_the_batch(
    newborn: Newborn, text_task: Task, batch_size: int
) -> None:
    answers = LocalGenerator(newborn.model, newborn.renderer, batch_size)(text_task.prompts, 6)
    assert answers == [transformers_answer(newborn, prompt, 6) for prompt in text_task.prompts]
    assert len(set(answers)) > 1


def test_progress_ends_at_the_number_of_prompts(newborn: Newborn, text_task: Task) -> None:
    seen: list[tuple[int, int]] = []
    LocalGenerator(newborn.model, newborn.renderer, 3, lambda *at: seen.append(at))(text_task.prompts, 2)
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_an_answer_never_passes_the_context(newborn: Newborn) -> None:
    generate = LocalGenerator(newborn.model, newborn.renderer, 4)
    room = 5
    filler = fitting_prompt(newborn, generate.context_tokens - room)
    too_long = ask("y" * 400)
    answers = generate([ask(filler), too_long, ask("short")], 50)
    assert answers[0] == transformers_answer(newborn, ask(filler), room)
    assert answers[1] == ""
    assert generate.too_long([ask(filler), too_long]) == 1


def fitting_prompt(newborn: Newborn, tokens: int) -> str:
    text = ""
    while len(newborn.renderer.prompt(ask(text + "7"))) <= tokens:
        text += "7"
    assert len(newborn.renderer.prompt(ask(text))) == tokens
    return text


def reference_loss(newborn: Newborn, messages: list[dict[str, Any]]) -> tuple[float, int]:
    """One conversation alone, every position computed, summed by hand."""
    row = newborn.renderer.conversation(messages)
    with torch.no_grad():
        logits = newborn.model(torch.tensor([row.ids])).logits[0]
    log_probs = logits.log_softmax(-1)
    losses = [-float(log_probs[i - 1, row.ids[i]]) for i in range(1, len(row.ids)) if row.loss_mask[i]]
    return sum(losses), len(losses)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_loss_is_summed_over_supervised_tokens_whatever_the_batch(newborn: Newborn, batch_size: int) -> None:
    chats = [
        [*ask("q"), {"role": "assistant", "content": "a longer answer than the others"}],
        [*ask("a much longer question"), {"role": "assistant", "content": "no"}],
        [
            *ask("one"),
            {"role": "assistant", "content": "x"},
            *ask("two"),
            {"role": "assistant", "content": "yy"},
        ],
    ]
    wanted = [reference_loss(newborn, chat) for chat in chats]
    loss_sum, tokens = answer_loss(newborn.model, newborn.renderer, chats, batch_size)
    assert tokens == sum(n for _, n in wanted)
    assert loss_sum == pytest.approx(sum(loss for loss, _ in wanted), rel=1e-5)


def test_losses_of_shards_add_up_to_the_loss_of_all(newborn: Newborn, text_task: Task) -> None:
    whole = answer_loss(newborn.model, newborn.renderer, text_task.conversations, 4)
    parts = [
        answer_loss(newborn.model, newborn.renderer, text_task.shard(rank, 2).conversations, 4)
        for rank in (0, 1)
    ]
    assert sum(tokens for _, tokens in parts) == whole[1]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0], rel=1e-5)


def test_no_conversation_that_fits_has_no_loss(newborn: Newborn) -> None:
    too_long = [*ask("y" * 400), {"role": "assistant", "content": "x"}]
    assert answer_loss(newborn.model, newborn.renderer, [too_long], 4) == (0.0, 0)


def test_a_model_is_scored_on_every_row_of_every_task(newborn: Newborn, text_task: Task) -> None:
    right = transformers_answer(newborn, ask("question"), 6)
    easy = make_task([("question", right), ("y" * 400, "x")], name="easy", max_new_tokens=6)
    seen: list[str] = []
    result = evaluate_model(
        newborn.model, newborn.renderer, [text_task, easy], 4, lambda name, *_: seen.append(name)
    )
    assert list(result) == ["desk", "easy"] and set(seen) == {"desk", "easy"}
    assert (result["desk"]["n"], result["desk"]["exact"], result["desk"]["too_long"]) == (7, 0, 0)
    assert len(result["desk"]["examples"]) == 5 and len(result["desk"]["answers"]) == 7
    assert result["easy"]["right"] == [True, False]
    assert (result["easy"]["exact_match"], result["easy"]["too_long"]) == (0.5, 1)
    loss_sum, tokens = answer_loss(newborn.model, newborn.renderer, text_task.conversations, 64)
    assert result["desk"]["loss"] == pytest.approx(loss_sum / tokens, rel=1e-5)
    json.dumps(result, allow_nan=False)


Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@pytest.fixture
def endpoint() -> Iterator[Callable[[Reply], str]]:
    """Starts an HTTP server that answers each request's JSON with what the test's function returns."""
    servers: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request["authorization"] = self.headers["authorization"]
                status, body = reply(request)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def test_an_endpoint_is_scored_by_the_same_suite(endpoint: Callable[[Reply], str], text_task: Task) -> None:
    requests: list[dict[str, Any]] = []

    def echo(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        requests.append(request)
        return 200, completion("answer " + request["messages"][-1]["content"].split()[-1])

    generate = EndpointGenerator(endpoint(echo), "tw-key", "desk@prod", concurrency=3)
    result = evaluate_generator(generate, [text_task])["desk"]
    assert (result["exact"], result["n"], result["loss"]) == (7, 7, None)
    assert len(requests) == 7
    for request in requests:
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("desk@prod", 0, 6)
        assert request["authorization"] == "Bearer tw-key"


def test_a_refused_request_names_the_endpoint_and_its_reason(endpoint: Callable[[Reply], str]) -> None:
    url = endpoint(lambda _: (404, {"error": {"message": "no model desk@v9"}}))
    with pytest.raises(EvaluateError, match=r"127\.0\.0\.1:\d+/v1, model desk@v9: 404 .*no model desk@v9"):
        EndpointGenerator(url, "k", "desk@v9")([ask("q")], 4)


def test_an_endpoint_that_is_down_is_said_to_be_down() -> None:
    with pytest.raises(EvaluateError, match=r"does not answer: .*is the endpoint up\?"):
        EndpointGenerator("http://127.0.0.1:9/v1", "k", "m")([ask("q")], 4)
