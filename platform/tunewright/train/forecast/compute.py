"""How long a training takes: the operations that it needs, and how fast devices do them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.errors import ConfigError

GB = 10**9
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Device:
    """A kind of accelerator, or this machine's processor.

    Attributes:
        memory: bytes of one device.
        flops: floating-point operations a second of dense bf16 matrix products.
        utilisation: the share of `flops` that training reaches; an assumption unless measured.
        gpu: whether it is one.
    """

    name: str
    memory: int
    flops: float
    utilisation: float
    gpu: bool = True


ASSUMED_UTILISATION = 0.35
"""Of a GPU; not measured here."""
MEASURED_UTILISATION = 0.15
"""Of a processor, by `benchmarks/train_step.py`."""
TIMED_S = 0.5
DEVICES = {
    # Memory and dense bf16 tensor-core rate as NVIDIA's data sheets give them; V100 has fp16 alone.
    name: Device(name, memory * GB, tflops * 1e12, ASSUMED_UTILISATION)
    for name, memory, tflops in (
        ("b200", 180, 2250),
        ("h200", 141, 989),
        ("h100", 80, 989),
        ("a100-80gb", 80, 312),
        ("a100-40gb", 40, 312),
        ("l40s", 48, 362),
        ("a10", 24, 125),
        ("l4", 24, 121),
        ("rtx4090", 24, 165),
        ("v100", 32, 125),
        ("t4", 16, 65),
    )
}


def device_named(name: str) -> Device:
    """A kind of GPU by its name.

    Raises:
        ConfigError: it is not in the table.
    """
    known = DEVICES.get(name.lower())
    if known is not None:
        return known
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"--device {name}: known devices are {', '.join(DEVICES)}{meant}")


def this_device() -> Device | None:
    """The GPU of this machine; None if it has none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    plain = found.name.lower().replace("-", "").replace(" ", "")
    for name, device in DEVICES.items():
        if name.split("-")[0] in plain:
            return replace(device, name=found.name, memory=found.total_memory)
    raise ConfigError(f"this machine's {found.name} is not in the table: say what is like it with --device")


def this_processor(threads: float, workers: int) -> Device:
    """This machine's processor, as one of so many workers has it; its matrix products are timed.

    Args:
        threads: of a worker.
    """
    import time

    import torch

    count = max(1, round(threads))
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    size, best = 2048, 0.0
    left, right = (torch.randn(size, size).bfloat16() for _ in range(2))
    try:
        until = time.monotonic() + TIMED_S
        while time.monotonic() < until:
            begun = time.monotonic()
            left @ right
            best = max(best, 2 * size**3 / (time.monotonic() - begun))
    finally:
        torch.set_num_threads(before)
    memory = memory_left() // workers
    name = f"this machine's processor, {count} threads a worker"
    return Device(name, memory, best, MEASURED_UTILISATION, gpu=False)


def memory_left() -> int:
    """Bytes of this machine that nothing holds, or of this container where it may take less."""
    import psutil

    left = int(psutil.virtual_memory().available)
    try:
        most, held = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or none with a limit
        return left
    return min(left, max(0, most - held))


@dataclass(frozen=True)
class Work:
    """Floating-point operations of training, by token.

    Attributes:
        forward: of the linear layers but the output layer.
        output: of the output layer, for a token that is asked about.
        trained: of the linear layers whose weights take gradients.
        attention: for each token that a token sees.
    """

    forward: float
    output: float
    trained: float
    attention: float

    def step(self, tokens: float, asked: float, mean_seen: float, checkpointing: bool = False) -> float:
        """Operations of a forward and a backward pass over so many tokens.

        A linear layer costs its forward pass, as much again for the gradient of its input, and as much
        again where its weights are trained; attention costs 2 products forward and 5 backward.

        Args:
            asked: how many of the tokens the output layer is asked about.
            mean_seen: how many tokens a token sees, on average.
            checkpointing: blocks compute their forward pass twice.
        """
        passes = 3 if checkpointing else 2
        linear = tokens * (passes * self.forward + self.trained)
        scores = tokens * mean_seen * self.attention * (1 + 2.5 + (1 if checkpointing else 0))
        return linear + 2 * asked * self.output + scores


def work_of(model: Any) -> Work:
    """What a model's passes cost; its weights may be on the meta device."""
    import torch
    from transformers.pytorch_utils import Conv1D

    config = model.config
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    kept = {id(weight) for weight in output.parameters()} if output is not None else set()
    forward = asked = trained = 0.0
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        weight: Any = module.weight
        cost = 2.0 * weight.numel()
        if id(weight) in kept:
            asked = cost
            continue
        forward += cost
        trained += cost if weight.requires_grad else 0.0
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Work(forward, asked, trained, 4.0 * width * config.num_hidden_layers)
