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
        self.known: dict[Any, Traced] = {}

    def changed(self, workers: int | None = None, **settings: Any) -> Estimate:
        """The estimate of a training with other settings."""
        config = self.config.model_copy(update=settings)
        count = self.workers if workers is None else workers
        other = Estimate(self.settings, config, self.row, self.bytes_each, count)
        other.known = self.known  # most settings leave the passes of a row what they are
        return other

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

    def traced(self, scattered: bool) -> Traced:
        """The passes of a micro batch; those of one row and of two say what another row adds.

        Args:
            scattered: under ZeRO-3.
        """
        one, two = (self._of_all_blocks(rows, scattered) for rows in (1, 2))
        more = self.config.micro_batch_size - 1
        return Traced(one.peak + more * (two.peak - one.peak), one.asking + more * (two.asking - one.asking))

    def _of_all_blocks(self, rows: int, scattered: bool) -> Traced:
        layers = self.settings.num_hidden_layers
        if layers <= max(BLOCKS):
            return self._traced(layers, rows, scattered)
        few, more = (self._traced(count, rows, scattered) for count in BLOCKS)
        each = (more.peak - few.peak) / (BLOCKS[1] - BLOCKS[0])
        return Traced(round(more.peak + each * (layers - BLOCKS[1])), more.asking)

    def memory(self, stage: int | None = None) -> Memory:
        """One worker's, under the configuration's ZeRO stage or another."""
        chosen = self.config.zero.stage if stage is None else stage
        return memory(chosen, self.sizes, self.traced(chosen == 3), self.bytes_each, self.workers)

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

    def _traced(self, layers: int, rows: int, scattered: bool) -> Traced:
        key = (self.config.method, self.config.gradient_checkpointing, layers, rows, scattered)
        if key not in self.known:
            asked_S = self.row.mask_S
            peak, rest = (self._peak(layers, rows, mask_S, scattered) for mask_S in (asked_S, asked_S * 0))
            self.known[key] = Traced(peak, max(0, peak - rest))
        return self.known[key]

    def _peak(self, layers: int, size: int, mask_S: Any, scattered: bool) -> int:
        import torch

        from tunewright.train.forecast.trace import passes, weightless, without_data

        dtype = torch.bfloat16 if self.bytes_each == 2 else torch.float32
        model = self._model(layers).train()
        if self.config.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        segments_BS = np.tile(self.row.segments_S, (size, 1))
        ids_BS = np.zeros_like(segments_BS)
        rows = {"input_ids": ids_BS, "position_ids": ids_BS, "segment_ids": segments_BS, "loss_mask": ids_BS}
        # The place before a learned token is asked; the first of a row is no place's next.
        asked_BS = np.tile(np.roll(mask_S, -1) * (np.arange(len(mask_S)) < len(mask_S) - 1), (size, 1)) > 0
        with without_data():
            weightless(model, dtype)
            return passes(model, rows, asked_BS, dtype, scattered).peak
