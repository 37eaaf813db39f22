"""`base:` and `train:` what is trained, how, and on how many workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config


class BaseModelConfig(Config):
    """`base:` the model that training starts from."""

    model: str
    """`tiny` (made by Tunewright itself), a local folder, or a Hugging Face id."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id; required for one, so that a run can be repeated."""


class LoraConfig(Config):
    """Low-rank adapters on linear layers, through PEFT."""

    type: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=512)
    """Rank of the update; memory and serving cost grow linearly."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update is alpha / rank; twice the rank when left out."""
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of linear layers, or `all-linear`."""

    @property
    def effective_alpha(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha


class FullConfig(Config):
    """Every weight is trained."""

    type: Literal["full"] = "full"


Method = Annotated[LoraConfig | FullConfig, Field(discriminator="type")]


class ZeroConfig(Config):
    """DeepSpeed ZeRO: what is partitioned over the workers."""

    stage: Literal[0, 1, 2, 3] = 2
    """1: optimizer states; 2: gradients too; 3: weights too; 0: nothing."""


class WorkerResources(Config):
    """What one training worker asks of Ray."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class TrainConfig(Config):
    """`train:`"""

    objective: Literal["sft", "pretrain"] = "sft"
    method: Method = LoraConfig()
    zero: ZeroConfig = ZeroConfig()
    workers: int = Field(1, ge=1)
    worker_resources: WorkerResources = WorkerResources()
    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, gt=0, lt=1)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    num_train_epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; give this or `num_train_epochs`."""
    global_batch_size: int = Field(16, ge=1)
    """Packed rows per optimizer step over all workers; does not change with the number of workers."""
    micro_batch_size: int = Field(4, ge=1)
    """Packed rows per forward pass on one worker."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes in it, else fp32."""
    gradient_checkpointing: bool = False
    logging_steps: int = Field(10, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    """Evaluate every so many steps; only at the end when left out."""
    save_steps: int = Field(50, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    max_failures: int = Field(3, ge=0)
    """Times a lost worker group is restarted from the last checkpoint before the run fails."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.num_train_epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of num_train_epochs and max_steps")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        rows, unit = self.global_batch_size, self.micro_batch_size * self.workers
        if rows % unit:
            lower, upper = rows // unit * unit, (rows // unit + 1) * unit
            valid = f"{lower} and {upper}" if lower else f"{upper}"
            raise ValueError(
                f"global_batch_size={rows} is not a multiple of micro_batch_size*workers={unit}; "
                f"nearest valid: {valid}"
            )
        return self
