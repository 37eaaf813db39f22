"""Random numbers of training that belong to a row of the data at a step, and to nothing else.

Dropout drawn from a process's own stream changes with the number of workers and the micro batch. Here
each row has a generator for each place in the model, seeded by (seed, step, row, place): the same row
gets the same numbers on whatever worker, in whatever micro batch, and when activations are computed a
second time.

B rows, S tokens per row, D channels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def mixed(*numbers: int) -> int:
    """A seed of 63 bits; other numbers give another one."""
    content = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1


class RowNoise:
    """The rows that are in the model now, and their generators."""

    def __init__(self, seed: int):
        self.seed = seed
        self.seeds: list[int] = []
        self.lengths_BS: npt.NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._generator: dict[torch.device, torch.Generator] = {}

    def begin(self, step: int, rows: Sequence[int], segments_BS: npt.NDArray[np.int64]) -> None:
        """A micro batch comes next.

        What draws from torch's own stream, as dropout inside fused attention does, cannot know rows; it
        is seeded for each micro batch, which is the same one on whatever worker.
        """
        self.seeds = [mixed(self.seed, step, int(row)) for row in rows]
        self.lengths_BS = np.stack([np.bincount(segments_S)[segments_S] for segments_S in segments_BS])
        self.lengths_BS[segments_BS == 0] = 0
        torch.manual_seed(self.seeds[0])

    def generators(self, place: int, device: torch.device) -> Iterator[torch.Generator]:
        """One generator a row, each to be used before the next is taken."""
        if device not in self._generator:
            self._generator[device] = torch.Generator(device)
        for seed in self.seeds:
            yield self._generator[device].manual_seed(mixed(seed, place))


class RowDropout(torch.nn.Dropout):
    """Dropout whose mask belongs to the row."""

    def __init__(self, p: float, noise: RowNoise, place: int):
        super().__init__(p)
        self.noise, self.place = noise, place

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return input
        assert len(input) == len(self.noise.seeds), "the rows in the model are not those of the micro batch"
        kept = torch.empty_like(input)
        for row, generator in zip(kept, self.noise.generators(self.place, input.device), strict=True):
            row.bernoulli_(1 - self.p, generator=generator)
        return input * kept.div_(1 - self.p)


def own_dropout(model: torch.nn.Module, noise: RowNoise) -> int:
    """Give every dropout layer that drops anything its rows' masks; returns how many there are."""
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, torch.nn.Dropout) and layer.p > 0
    ]
    for place, (parent, name, layer) in enumerate(found, start=1):
        replacement = RowDropout(layer.p, noise, place).train(layer.training)
        if isinstance(parent, torch.nn.ModuleDict):
            parent[name] = replacement
        else:
            setattr(parent, name, replacement)
    return len(found)


def add_neftune(model: Any, alpha: float, noise: RowNoise) -> None:
    """Add uniform noise to the embeddings in training, weaker in longer documents.

    Packed or alone, a document of L tokens gets noise up to alpha / sqrt(L * D).
    Source: Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning (arXiv:2310.05914).
    """

    def add(module: torch.nn.Module, _: Any, embedded_BSD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded_BSD
        lengths_BS = torch.from_numpy(noise.lengths_BS).to(embedded_BSD.device)
        assert lengths_BS.shape == embedded_BSD.shape[:2]
        scale_BS = alpha / torch.sqrt(lengths_BS.clamp(min=1) * embedded_BSD.shape[-1])
        drawn_BSD = torch.empty_like(embedded_BSD)
        for row, generator in zip(drawn_BSD, noise.generators(0, embedded_BSD.device), strict=True):
            row.uniform_(-1, 1, generator=generator)
        return embedded_BSD + drawn_BSD * (scale_BS * (lengths_BS > 0)).to(drawn_BSD.dtype)[..., None]

    model.get_input_embeddings().register_forward_hook(add)
