"""Test doubles that several rooms share: models built in-process, engines that queue behaviour."""

from __future__ import annotations

from typing import Any


def tiny_llama(vocab_size: int, seed: int = 0, context: int = 128) -> Any:
    """A random Llama of 2 layers, 64 wide, in fp32 and evaluation mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        # Larger weights than a newborn's: so that the likeliest token changes with the context.
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def publish(
    store: Any, kind: str, facts: Any = None, parents: Any = None, fill: Any = None, **config: Any
) -> Any:
    """An artifact of the store with these facts; `fill(folder)` writes its files."""
    from tunewright.artifacts import Plan

    plan = Plan(kind, dict(parents or {}), {"double": kind, **config}, "double")
    found = store.find(plan)
    if found is not None:
        return found
    folder = store.work_dir(plan)
    if fill is not None:
        fill(folder)
    return store.publish(plan, folder, dict(facts or {}))


def publish_trained(
    store: Any, n: int = 1, gates: Any = (), base: Any = None, fill: Any = None
) -> tuple[Any, Any]:
    """A trained artifact with base and data behind it, and an evaluation of it."""
    base = base or publish(store, "base", n=n)
    data = publish(store, "data", n=n)
    parents = {"base": base.ref, "data": data.ref}
    train = publish(store, "train", {"method": "lora", "steps": 10 * n}, parents, fill, n=n)
    facts = {"exact_match": 0.9, "gates": list(gates)}
    return train, publish(store, "evaluation", facts, {"train": train.ref}, n=n)


class EchoEngine:
    """An `Engine` that answers with the words of the last message, one a delta.

    Queue behaviour for the next requests in `script`: an exception to refuse with, a pair
    (n, exception) to fail with after n words, or a number of seconds to wait before each word.
    """

    version, template = "desk@v1", "abc123def456"

    def __init__(self, *script: Any):
        self.script = list(script)
        self.requests: list[Any] = []
        self.cancelled = 0
        self.unhealthy: Exception | None = None

    async def models(self) -> list[Any]:
        from tunewright.serve.engine import ServedModel

        return [
            ServedModel("prod", self.version, self.template, "base/1234", 1700000000),
            ServedModel("base", "base/1234", self.template, None, 1700000000),
        ]

    async def health(self) -> None:
        if self.unhealthy:
            raise self.unhealthy

    async def generate(self, request: Any) -> Any:
        import asyncio
        from dataclasses import replace

        from tunewright.errors import ModelNotFound
        from tunewright.serve.engine import Delta

        self.requests.append(request)
        turn = self.script.pop(0) if self.script else 0
        if request.model not in ("prod", "base"):
            raise ModelNotFound("no such model", param="model", code="model_not_found")
        if isinstance(turn, Exception):
            raise turn
        fail_after, error = turn if isinstance(turn, tuple) else (None, None)
        words = (request.prompt or request.messages[-1]["content"]).split(" ")
        limit = request.max_new_tokens or len(words)
        accepted = Delta("", self.version, self.template, prompt_tokens=7)
        try:
            yield accepted
            for n, word in enumerate(words[:limit], 1):
                if n - 1 == fail_after:
                    raise error
                await asyncio.sleep(turn if isinstance(turn, int | float) else 0)
                text = word if n == 1 else " " + word
                reason = None if n < min(limit, len(words)) else "stop" if len(words) <= limit else "length"
                yield replace(accepted, text=text, completion_tokens=n, finish_reason=reason)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise


def serving(app: Any) -> Any:
    """Context manager: the ASGI app on a free port of the loopback; gives its URL."""
    import contextlib
    import socket
    import threading
    import time

    import uvicorn

    @contextlib.contextmanager
    def running() -> Any:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            listener.close()
            assert not thread.is_alive()

    return running()


def tiny_model_folder(folder: Any, seed: int = 0, context: int = 128, endless: bool = False) -> Any:
    """A random Hugging Face model with a byte-level tokenizer and a chat template; returns `folder`.

    With `endless`, a stop token is never the likeliest, so that an answer fills the context.
    """
    import torch

    from tunewright.models.load import load_tokenizer
    from tunewright.models.tiny import TinyShape, write_newborn

    shape = TinyShape(vocab_limit=300, context=context)
    write_newborn(folder, ["the quick brown fox jumps over the lazy dog"], shape, seed)
    model = tiny_llama(len(load_tokenizer(folder)), seed, context)
    if endless:
        with torch.no_grad():
            model.lm_head.weight[:7] = 0  # the special tokens
    # The tokenizer's and the generation config's stop tokens stay as they were written.
    kept = (folder / "generation_config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_bytes(kept)
    return folder


def publish_version(
    store: Any,
    model: str = "desk",
    alias: str | None = "prod",
    method: str = "lora",
    seed: int = 0,
    context: int = 128,
    endless: bool = False,
) -> Any:
    """A registered version of random weights: base, adapter (or a whole model), tokenizer; alias moved."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    from tunewright.models.base import model_folder
    from tunewright.models.load import load_model, load_renderer, save_tokenizer
    from tunewright.registry import Registry

    size = {"context": context, "endless": endless}
    base = publish(store, "base", fill=lambda folder: tiny_model_folder(folder / "model", **size), **size)
    data = publish(store, "data", n=seed)

    def fill(folder: Any) -> None:
        save_tokenizer(load_renderer(model_folder(base)), folder / "tokenizer")
        if method == "full":
            tiny_model_folder(folder / "model", seed + 1000, **size)
            return
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.manual_seed(seed)
            config = LoraConfig(
                r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
            )
            adapted = get_peft_model(load_model(model_folder(base), None, torch.float32), config)
        adapted.save_pretrained(str(folder / "adapter"))

    parents = {"base": base.ref, "data": data.ref}
    train = publish(store, "train", {"method": method, "steps": 1}, parents, fill, method=method, seed=seed)
    evaluation = publish(store, "evaluation", {"gates": []}, {"train": train.ref}, method=method, seed=seed)
    version = Registry(store).register(model, train, evaluation, run="double")
    if alias:
        Registry(store).promote(model, alias, version.number, "double", "")
    return version
