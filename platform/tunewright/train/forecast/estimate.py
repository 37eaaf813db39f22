"""A training's memory from its settings alone: passes traced without data, and DeepSpeed's terms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.config import TrainConfig
from tunewright.train.forecast.memory import Memory, Sizes, Traced, memory
from tunewright.train.forecast.workload import Workload

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tunewright.models.skeleton import Parameters

BLOCKS = (2, 4)
"""A deeper model is traced with so few blocks; what two of them add stands for the others."""
STAGES = (0, 1, 2, 3)


class Estimate:
    """What a training of a model needs.

    Args:
        settings: of the base model.
        row: the row that asks most, by `Workload`; its documents are every row's.
        bytes_each: of a parameter in the model: 2 or 4.
        workers: among which ZeRO divides.
    """

    def __init__(
        self, settings: PretrainedConfig, config: TrainConfig, row: Workload, bytes_each: int, workers: int
    ):
        self.settings, self.config, self.row = settings, config, row
        self.bytes_each, self.workers = bytes_each, workers

    @cached_property
    def parameters(self) -> Parameters:
        """By kind, and which of them are trained."""
        from tunewright.models.skeleton import parameters_of

        return parameters_of(self.model)

    @cached_property
    def model(self) -> Any:
        """On the meta device, with the method on it."""
        return self._model(self.settings.num_hidden_layers)

    @cached_property
    def sizes(self) -> Sizes:
        from tunewright.train.methods.names import architecture, blocks

        name, _ = blocks(self.model)
        modules = architecture(self.model)
        largest = max(sum(p.numel() for p in block.parameters()) for block in modules[name].children())
        return Sizes(self.parameters.total, self.parameters.trainable, largest)

    @cached_property
    def traced(self) -> Traced:
        """The passes of a micro batch."""
        layers = self.settings.num_hidden_layers
        if layers <= 2 * max(BLOCKS):
            return self._traced(layers)
        few, more = (self._traced(count) for count in BLOCKS)
        each = (more.peak - few.peak) / (BLOCKS[1] - BLOCKS[0])
        return Traced(round(more.peak + each * (layers - BLOCKS[1])), more.asking)

    def memory(self, stage: int | None = None) -> Memory:
        """One worker's, under the configuration's ZeRO stage or another."""
        chosen = self.config.zero.stage if stage is None else stage
        return memory(chosen, self.sizes, self.traced, self.bytes_each, self.workers)

    @property
    def by_stage(self) -> Mapping[int, Memory]:
        return {stage: self.memory(stage) for stage in STAGES}

    def _model(self, layers: int) -> Any:
        from tunewright.models.skeleton import skeleton_of
        from tunewright.train.methods.fitting import HEADS, with_method

        settings = copy.deepcopy(self.settings)
        settings.num_hidden_layers = layers
        if getattr(settings, "layer_types", None):
            settings.layer_types = settings.layer_types[:layers]
        head = HEADS.get(self.config.objective, "lm")
        return with_method(skeleton_of(settings, "the base", head), self.config)

    def _traced(self, layers: int) -> Traced:
        asked_S = self.row.mask_S
        peak, rest = (self._peak(layers, mask_S) for mask_S in (asked_S, asked_S * 0))
        return Traced(peak, max(0, peak - rest))

    def _peak(self, layers: int, mask_S: Any) -> int:
        import torch

        from tunewright.train.forecast.trace import passes, weightless, without_data

        dtype = torch.bfloat16 if self.bytes_each == 2 else torch.float32
        model = self._model(layers).train()
        if self.config.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        size = self.config.micro_batch_size
        segments_BS = np.tile(self.row.segments_S, (size, 1))
        ids_BS = np.zeros_like(segments_BS)
        rows = {"input_ids": ids_BS, "position_ids": ids_BS, "segment_ids": segments_BS, "loss_mask": ids_BS}
        # The place before a learned token is asked; the first of a row is no place's next.
        asked_BS = np.tile(np.roll(mask_S, -1) * (np.arange(len(mask_S)) < len(mask_S) - 1), (size, 1)) > 0
        with without_data():
            weightless(model, dtype)
            return passes(model, rows, asked_BS, dtype).peak
