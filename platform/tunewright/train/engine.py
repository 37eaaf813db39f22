"""The DeepSpeed engine: built from a `TrainConfig`, its trainable state taken out and put back.

Taking out and putting back are collective: every worker calls them, in the same order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.config import TrainConfig
from tunewright.errors import ResumeMismatch

if TYPE_CHECKING:
    import torch


@dataclass
class Engine:
    """A DeepSpeed engine with what the loop needs to know of it.

    Attributes:
        deepspeed: the engine; its `module` is the model.
        named: the trainable parameters by name, in the same order on all workers.
    """

    deepspeed: Any
    named: list[tuple[str, Any]]
    stage: int
    device: torch.device
    dtype: torch.dtype
    gradient_norm: float = 0.0
    """Of the last step, before it was clipped; the same on every worker."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro batch; the last one of a step takes the step too.

        A step is not taken when the gradients are not finite: `gradient_norm` tells.
        """
        engine = self.deepspeed
        engine.backward(loss)
        if self.stage > 0 or not engine.is_gradient_accumulation_boundary():
            engine.step()  # ZeRO's optimizers look at the norm themselves, before the step
            self.gradient_norm = float(engine.get_global_grad_norm() or 0.0)
            return
        norms = [float(p.grad.float().norm()) for _, p in self.named if p.grad is not None]
        self.gradient_norm = math.sqrt(sum(norm**2 for norm in norms))
        if math.isfinite(self.gradient_norm):
            engine.step()

    def set_learning_rate(self, rate: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """fp32 weights (`w/NAME`) and Adam moments (`m/`, `v/`) on the CPU, the same on every worker."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        out = {}
        self._link_moments()
        unpartitioned = self.unpartitioned()
        for name, parameter in self.named:
            if unpartitioned:
                weight, state = unpartitioned[name]
                values = {"w": weight, "m": state["exp_avg"], "v": state["exp_avg_sq"]}
            else:
                values = {
                    "w": safe_get_full_fp32_param(parameter),
                    "m": safe_get_full_optimizer_state(parameter, "exp_avg"),
                    "v": safe_get_full_optimizer_state(parameter, "exp_avg_sq"),
                }
            for kind, value in values.items():
                out[f"{kind}/{name}"] = value.detach().float().cpu().clone().contiguous()
        return out

    def restore(self, tensors: Mapping[str, torch.Tensor], adam_step: int) -> None:
        """Put a trainable state back; `adam_step` counts the optimizer steps it has seen.

        Raises:
            ResumeMismatch: the state is of other parameters.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._check(tensors)
        self._link_moments()
        unpartitioned = self.unpartitioned()
        for name, parameter in self.named:
            if unpartitioned:
                weight, state = unpartitioned[name]
                weight.data.copy_(tensors[f"w/{name}"])
                state["exp_avg"].copy_(tensors[f"m/{name}"])
                state["exp_avg_sq"].copy_(tensors[f"v/{name}"])
            else:
                safe_set_full_fp32_param(parameter, tensors[f"w/{name}"])
                safe_set_full_optimizer_state(parameter, tensors[f"m/{name}"], "exp_avg")
                safe_set_full_optimizer_state(parameter, tensors[f"v/{name}"], "exp_avg_sq")
        self.count_steps_from(adam_step)
        self.deepspeed.global_steps = adam_step
        self._refresh_model_weights(tensors)

    def count_steps_from(self, adam_step: int) -> None:
        """Tell Adam how many steps it has taken; its bias correction begins anew without it."""
        optimizer = self.deepspeed.optimizer
        for state in getattr(optimizer, "optimizer", optimizer).state.values():
            if "step" in state:
                state["step"].fill_(float(adam_step))

    def materialise_optimizer(self, zero_loss: Callable[[], torch.Tensor]) -> None:
        """Make Adam's moments exist, by one step without learning rate or gradient.

        They must exist before they can be set; whoever calls this restores a state next.

        Args:
            zero_loss: a forward pass whose loss is multiplied by zero.
        """
        self.set_learning_rate(0.0)
        for _ in range(self.deepspeed.gradient_accumulation_steps()):
            self.backward(zero_loss())

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """While the block runs, every weight is whole on every worker; collective under ZeRO-3."""
        if self.stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.deepspeed.module.parameters())):
            yield

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.named:
            found = tensors.get(f"w/{name}")
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if found is None or tuple(found.shape) != shape:
                raise ResumeMismatch(
                    f"the checkpoint has {'no' if found is None else tuple(found.shape)} weight for {name}, "
                    f"which has shape {shape} here"
                )

    def _link_moments(self) -> None:
        """Let DeepSpeed find the moments of every parameter group: it links those of the first one only."""
        optimizer = self.deepspeed.optimizer
        if self.stage in (1, 2):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def unpartitioned(self) -> dict[str, tuple[Any, dict[str, Any]]]:
        """name -> (fp32 weight, Adam's state of it), where DeepSpeed partitions nothing; else empty."""
        optimizer = self.deepspeed.optimizer
        if self.stage > 0:
            return {}
        if not hasattr(optimizer, "fp32_groups"):  # an fp32 model: the weights are their own fp32 copies
            return {name: (p, optimizer.state[p]) for name, p in self.named}
        low, high = (
            [p for group in groups for p in group]
            for groups in (optimizer.fp16_groups, optimizer.fp32_groups)
        )
        copies = {id(p): copy for p, copy in zip(low, high, strict=True)}
        return {name: (copies[id(p)], optimizer.optimizer.state[copies[id(p)]]) for name, p in self.named}

    def _refresh_model_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the fp32 weights into the model; else the next forward pass would use stale ones."""
        if self.stage == 0:
            for name, parameter in self.named:
                parameter.data.copy_(tensors[f"w/{name}"])
            return
        if self.stage <= 2:
            self.deepspeed.optimizer.update_lp_params()
            return
        import deepspeed
        import torch.distributed as dist

        with deepspeed.zero.GatheredParameters([p for _, p in self.named], modifier_rank=0):
            if dist.get_rank() == 0:
                for name, parameter in self.named:
                    parameter.data.copy_(tensors[f"w/{name}"])


def build_engine(
    model: torch.nn.Module, config: TrainConfig, dtype: torch.dtype, device: torch.device
) -> Engine:
    """Wrap `model` for ZeRO; torch.distributed must be initialised already.

    The number of workers is the process group's: `workers` of the configuration may differ after
    a resume on another cluster, and the global batch stays what it is.
    """
    import deepspeed
    import torch
    import torch.distributed as dist

    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        decay_groups(named, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for _, p in named],
        optimizer=optimizer,
        config=deepspeed_config(config, dist.get_world_size(), dtype == torch.bfloat16),
        dist_init_required=False,
    )
    built = Engine(engine, named, config.zero.stage, device, dtype)
    built.count_steps_from(0)  # stage 0 in bf16 has taken one by now, to make the moments exist
    return built


def decay_groups(named: Sequence[tuple[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: matrices decay; biases, norms and IA3's factors do not.

    Those are pulled towards zero by nothing but the loss: a norm's weight begins at one, as IA3's do.
    """
    kept = [p for name, p in named if p.dim() < 2 or "ia3_l" in name]
    rest = {id(p) for p in kept}
    decayed = [p for _, p in named if id(p) not in rest]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def deepspeed_config(config: TrainConfig, world: int, bf16: bool) -> dict[str, Any]:
    """The JSON that DeepSpeed takes; every number stated, nothing `auto`."""
    micro = config.micro_batch_size
    accumulation = accumulation_steps(config, world)
    return {
        "train_batch_size": micro * accumulation * world,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": bf16},
        "fp16": {
            "enabled": config.precision == "fp16",
            "loss_scale": 0,  # a changing one
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "zero_allow_untested_optimizer": True,
        # Ours is torch's AdamW on the CPU too; DeepSpeed's own would be compiled when training starts.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": config.zero.stage,
            "stage3_param_persistence_threshold": config.zero.stage3_param_persistence_threshold,
            **_offload(config),
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
    }


def _offload(config: TrainConfig) -> dict[str, Any]:
    """What is kept in the machine's memory, pinned, so that it moves while the GPU computes."""
    zero, there = config.zero, {"device": "cpu", "pin_memory": True}
    return {
        **({"offload_optimizer": there} if zero.offload_optimizer else {}),
        **({"offload_param": there} if zero.offload_params else {}),
    }


def accumulation_steps(config: TrainConfig, world: int) -> int:
    """Micro batches a worker takes per optimizer step; of the last ones, some workers' may be empty."""
    return -(-config.global_batch_size // (config.micro_batch_size * world))


def prepare_process() -> None:
    """Join DeepSpeed to the process group that already exists, without compiling anything.

    On Linux CPUs DeepSpeed would build a shared-memory operator with g++ at start; images without
    a compiler could not train, and workers would race for the build.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    import deepspeed
    import torch.distributed as dist

    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
