"""Rows with classes and pairs, and small random models with a head, for the objectives that train one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from loops import VOCABULARY, MemoryRows, small_model
from tunewright.data.rows import NO_LABEL
from tunewright.models.heads import load_headed
from tunewright.models.packed import EVERY_LAYER, Windows
from tunewright.train.bare import bare_forward
from tunewright.train.forward import Forward

INTENTS = ("buy", "chat", "sell")
TAGS = ("B-city", "B-name", "I-city", "O")
SCORE = ("score",)


class Intents(MemoryRows):
    """Texts whose class stands at the last token, and is told by it."""

    def __init__(self, count: int = 16, seed: int = 7):
        super().__init__(count, seed)
        self.rows["labels"] = np.full_like(self.rows["input_ids"], NO_LABEL)
        for row, _, end in places_of(self.rows):
            last = self.rows["input_ids"][row, end - 1]
            self.rows["labels"][row, end - 1] = last * len(INTENTS) // VOCABULARY


class Words(MemoryRows):
    """Words of two tokens; a tag stands at each one's first, and is told by it."""

    def __init__(self, count: int = 16, seed: int = 7):
        super().__init__(count, seed)
        self.rows["labels"] = np.full_like(self.rows["input_ids"], NO_LABEL)
        for row, begin, end in places_of(self.rows):
            firsts = self.rows["input_ids"][row, begin:end:2]
            self.rows["labels"][row, begin:end:2] = firsts * len(TAGS) // VOCABULARY


class Pairs(MemoryRows):
    """Chosen answers of the lower half of the vocabulary, rejected ones of the upper."""

    def __init__(self, count: int = 16, seed: int = 7):
        super().__init__(count, seed)
        numbers = np.random.default_rng(seed)
        half = VOCABULARY // 2
        for row, begin, end in places_of(self.rows):
            number = self.rows["segment_ids"][row, begin]
            ids = numbers.integers(0, half, end - begin) + (0 if number % 2 else half)
            self.rows["input_ids"][row, begin:end] = ids
        for row in range(count):
            segments = self.rows["segment_ids"][row]
            if segments.max() % 2:
                segments[segments == segments.max()] = 0


def places_of(rows: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(row, first place, last place + 1) of each document."""
    found = []
    for row, segments in enumerate(rows["segment_ids"]):
        for number in range(1, int(segments.max()) + 1):
            (inside,) = np.nonzero(segments == number)
            found.append((row, int(inside[0]), int(inside[-1]) + 1))
    return found


OBJECTIVES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "classify": (Intents, "sequence", INTENTS),
    "tag": (Words, "token", TAGS),
    "reward": (Pairs, "sequence", SCORE),
}
"""Objective -> rows, what its head is asked about, its classes."""


def headed(
    objective: str = "classify", kind: str = "llama", dtype: Any = torch.float32, **changes: Any
) -> Any:
    """A small random model of an architecture, written, and read with a head."""
    _, head, labels = OBJECTIVES[objective]
    with tempfile.TemporaryDirectory() as folder:
        write_base(small_model(kind, **changes), Path(folder))
        return load_headed(Path(folder), head, labels, dtype, seed=5)  # type: ignore[arg-type]


def asking(model: Any, windows: Windows = EVERY_LAYER) -> Forward:
    """The model as training asks it, without an engine around it."""
    return bare_forward(model, torch.device("cpu"), torch.float32, 0, windows)


def write_base(model: Any, folder: Path) -> None:
    """The model without its output layer; `save_pretrained` writes nothing on workers but the first."""
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("lm_head")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.to_json_file(folder / "config.json")
