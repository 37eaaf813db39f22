"""A training's memory from its settings alone: passes traced without data, and what DeepSpeed adds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.config import TrainConfig
from tunewright.config.methods import FreezeConfig, Method
from tunewright.train.forecast.memory import Memory, Setting, Sizes, Traced, memory
from tunewright.train.forecast.workload import Workload

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tunewright.models.skeleton import Parameters

BLOCKS = (2, 4)
"""A deeper model is traced with so few blocks; what two of them add stands for the others."""
ROWS = (4, 8)
"""The same of a larger micro batch's rows: of one or two, what the output layer holds would be the most."""
FROZEN_AND_TRAINED = ((1, 1), (2, 1), (1, 2))
"""The blocks that a model of which the last ones are trained is traced with, in the same way."""
STAGES = (0, 1, 2, 3)


class Estimate:
    """What a training of a model needs.

    Args:
        settings: of the base model.
        row: the row that asks most, by `Workload`; its documents are every row's.
        bytes_each: of a parameter in the model: 2 or 4.
        workers: among which ZeRO divides.
        gpu: whether it is a GPU's memory.
    """

    def __init__(
        self,
        settings: PretrainedConfig,
        config: TrainConfig,
        row: Workload,
        bytes_each: int,
        workers: int,
        gpu: bool = False,
    ):
        self.settings, self.config, self.row = settings, config, row
        self.bytes_each, self.workers, self.gpu = bytes_each, workers, gpu
        self.known: dict[Any, Traced] = {}

    def changed(self, workers: int | None = None, **settings: Any) -> Estimate:
        """The estimate of a training with other settings."""
        config = self.config.model_copy(update=settings)
        count = self.workers if workers is None else workers
        other = Estimate(self.settings, config, self.row, self.bytes_each, count, self.gpu)
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
        trained = [weight.numel() for weight in self.model.parameters() if weight.requires_grad]
        weights = self.parameters.total * self.bytes_each
        if self.config.method.type == "qlora":
            from tunewright.train.forecast.quantized import bytes_saved

            weights -= bytes_saved(self._bare(self.settings.num_hidden_layers), self.bytes_each)
        return Sizes(weights, self.parameters.total, sum(trained), max(trained))

    def traced(self, scattered: bool) -> Traced:
        """The passes of a micro batch; of one of many rows by what some more rows add to a few.

        Args:
            scattered: under ZeRO-3.
        """
        rows = self.config.micro_batch_size
        if rows <= ROWS[1]:
            return self._of_all_blocks(rows, scattered)
        few, more = (self._of_all_blocks(count, scattered) for count in ROWS)
        times = (rows - ROWS[1]) / (ROWS[1] - ROWS[0])
        peak = more.peak + times * (more.peak - few.peak)
        return Traced(round(peak), round(more.asking + times * (more.asking - few.asking)))

    def _of_all_blocks(self, rows: int, scattered: bool) -> Traced:
        layers, method = self.settings.num_hidden_layers, self.config.method
        if layers <= max(BLOCKS) or _names_a_block(method):  # which a model of few may not have
            return self._traced(layers, rows, scattered)
        last = method.last_blocks if isinstance(method, FreezeConfig) else 0
        if not last:
            few, more = (self._traced(count, rows, scattered) for count in BLOCKS)
            each = (more.peak - few.peak) / (BLOCKS[1] - BLOCKS[0])
            return Traced(round(more.peak + each * (layers - BLOCKS[1])), more.asking)
        least, frozen, trained = (
            self._traced(below + above, rows, scattered, above) for below, above in FROZEN_AND_TRAINED
        )
        below = (layers - last - 1) * (frozen.peak - least.peak)
        return Traced(least.peak + below + (last - 1) * (trained.peak - least.peak), least.asking)

    def memory(self, stage: int | None = None) -> Memory:
        """One worker's, under the configuration's ZeRO stage or another."""
        config, chosen = self.config, self.config.zero.stage if stage is None else stage
        accumulates = config.global_batch_size > config.micro_batch_size * self.workers
        setting = Setting(chosen, self.bytes_each, self.workers, accumulates, self.gpu)
        return memory(setting, self.sizes, self.traced(chosen == 3))

    @property
    def by_stage(self) -> Mapping[int, Memory]:
        return {stage: self.memory(stage) for stage in STAGES}

    def _model(self, layers: int, last_blocks: int | None = None) -> Any:
        from tunewright.train.methods.fitting import with_method

        config = self.config
        if last_blocks is not None:
            method = config.method.model_copy(update={"last_blocks": last_blocks})
            config = config.model_copy(update={"method": method})
        return with_method(self._bare(layers), config)

    def _bare(self, layers: int) -> Any:
        """The base with so many blocks."""
        from tunewright.models.skeleton import skeleton_of
        from tunewright.train.methods.fitting import HEADS

        settings = copy.deepcopy(self.settings)
        settings.num_hidden_layers = layers
        if getattr(settings, "layer_types", None):
            settings.layer_types = settings.layer_types[:layers]
        return skeleton_of(settings, "the base", HEADS.get(self.config.objective, "lm"))

    def _traced(self, layers: int, rows: int, scattered: bool, last_blocks: int | None = None) -> Traced:
        key = (self.config.method, self.config.gradient_checkpointing, layers, rows, scattered, last_blocks)
        if key not in self.known:
            asked_S = self.row.mask_S
            masks = (asked_S, asked_S * 0)
            peak, rest = (self._peak(layers, rows, mask_S, scattered, last_blocks) for mask_S in masks)
            self.known[key] = Traced(peak, max(0, peak - rest))
        return self.known[key]

    def _peak(self, layers: int, size: int, mask_S: Any, scattered: bool, last_blocks: int | None) -> int:
        import torch

        from tunewright.train.forecast.trace import passes, weightless, without_data

        dtype = torch.bfloat16 if self.bytes_each == 2 else torch.float32
        model = self._model(layers, last_blocks).train()
        if self.config.method.type == "qlora":
            from tunewright.train.forecast.quantized import like_four_bits

            like_four_bits(model)
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


def _names_a_block(method: Method) -> bool:
    """Whether a module that the method names has a number in its name, as `layers.7.mlp` has."""
    fields = ("modules", "target_modules", "modules_to_save", "feedforward_modules")
    names = [name for field in fields for name in getattr(method, field, ())]
    return any(part.isdigit() for name in names for part in name.split("."))
