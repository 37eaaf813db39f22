"""Test doubles that several rooms share: models and tokenizers built in-process, engines that queue behaviour."""

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


def publish(store: Any, kind: str, facts: Any = None, parents: Any = None, fill: Any = None, **config: Any) -> Any:
    """An artifact of the store with these facts; `fill(folder)` writes its files."""
    from tunewright.artifacts import Plan

    plan = Plan(kind, dict(parents or {}), {"double": kind, **config}, "double")
    folder = store.work_dir(plan)
    if fill is not None:
        fill(folder)
    return store.publish(plan, folder, dict(facts or {}))


def publish_trained(store: Any, n: int = 1, gates: Any = (), base: Any = None, fill: Any = None) -> tuple[Any, Any]:
    """A trained artifact with base and data behind it, and an evaluation of it."""
    base = base or publish(store, "base", n=n)
    data = publish(store, "data", n=n)
    parents = {"base": base.ref, "data": data.ref}
    train = publish(store, "train", {"method": "lora", "steps": 10 * n}, parents, fill, n=n)
    facts = {"exact_match": 0.9, "gates": list(gates)}
    return train, publish(store, "evaluation", facts, {"train": train.ref}, n=n)
