"""`base:` and `train:` what is trained, how, and on how many workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tunewright.config.base import Config
from tunewright.config.methods import AnyMethod, LoraConfig
from tunewright.config.objectives import LANGUAGE_OBJECTIVES, ObjectiveConfig


class BaseModelConfig(Config):
    """`base:` the model that training starts from."""

    model: str
    """`tiny` (made by Tunewright itself), a local folder, or a Hugging Face id."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id; required for one, so that a run can be repeated."""
    new_tokens: tuple[str, ...] = ()
    """Special tokens that the tokenizer gets, such as `<|tool|>`, and the embeddings a row for each, which
    begins as the mean of the others. They are learned by `full`, by `freeze` when it names the embeddings,
    and by the low-rank methods, which train and save their rows beside the updates."""

    @model_validator(mode="after")
    def _tokens_can_be_told_apart(self) -> BaseModelConfig:
        for token in self.new_tokens:
            if not token or token != token.strip():
                raise ValueError(f"new_tokens: {token!r} is empty or has blanks around it; write <|tool|>")
        twice = sorted({token for token in self.new_tokens if self.new_tokens.count(token) > 1})
        if twice:
            raise ValueError(f"new_tokens: {twice[0]} is named twice")
        return self


class ZeroConfig(Config):
    """DeepSpeed ZeRO: what is partitioned over the workers."""

    stage: Literal[0, 1, 2, 3] = 2
    """1: optimizer states; 2: gradients too; 3: weights too; 0: nothing."""
    offload_optimizer: bool = False
    """Keep the optimizer's states in the machine's memory, and step there; slower, for GPUs too small."""
    offload_params: bool = False
    """Keep the weights there too, and bring each layer's to the GPU when it is its turn; stage 3."""
    stage3_param_persistence_threshold: int = Field(100_000, ge=0)
    """Stage 3 leaves weights of fewer elements than this whole on every worker; DeepSpeed's own default."""

    @model_validator(mode="after")
    def _offloads_what_is_partitioned(self) -> ZeroConfig:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer is done by stages 1, 2 and 3; choose one of them")
        if self.offload_params and self.stage != 3:
            raise ValueError(f"offload_params is done by stage 3, and stage is {self.stage}")
        return self


class WorkerResources(Config):
    """What one training worker asks of Ray."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class ElasticWorkers(Config):
    """`workers:` as many as the cluster holds, between two numbers; others when that changes.

    A change restarts the workers from the newest checkpoint. The global batch stays what it is; with a
    number of workers that does not divide it, some have nothing to do in its last micro batches.
    """

    min: int = Field(1, ge=1)
    """Training waits until there are so many."""
    max: int = Field(ge=1)
    """And never has more."""

    @model_validator(mode="after")
    def _in_order(self) -> ElasticWorkers:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


def _workers_kind(value: Any) -> str:
    return "elastic" if isinstance(value, dict | ElasticWorkers) else "number"


Workers = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[ElasticWorkers, Tag("elastic")],
    Discriminator(_workers_kind),
]


class EarlyStopping(Config):
    """`early_stopping:` ends training when a figure of the evaluation gets no better."""

    metric: str = "eval_loss"
    """A figure of the evaluation."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger figure is better."""
    patience: int = Field(3, ge=1)
    """Evaluations in a row without a better figure, after which training ends."""
    min_delta: float = Field(0.0, ge=0)
    """A figure counts as better when it beats the best one by more than this."""


class BestCheckpoint(Config):
    """`best:` the checkpoint with the best figure is kept beside the last ones."""

    metric: str = "eval_loss"
    """A figure of the evaluation."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger figure is better."""
    publish: bool = True
    """Whether training's result is the best checkpoint, or the last step all the same."""


class Watchdog(Config):
    """`watchdog:` goes back to the last good checkpoint when the loss runs away.

    A loss is high when it is above `factor` times the median of the last `window` losses that were
    not. After `patience` high losses in a row, training goes back to the newest checkpoint, which is
    from before them, and on from there with half the learning rate.
    """

    factor: float = Field(3.0, gt=1)
    patience: int = Field(3, ge=1)
    window: int = Field(50, ge=4, le=1000)
    """Losses in the median; nothing is judged before there are so many."""
    max_rollbacks: int = Field(3, ge=1)
    """Times training goes back; then the run fails."""


class MlflowConfig(Config):
    """`mlflow:` training's settings, figures and artifacts go to an MLflow server too."""

    tracking_uri: str = Field(min_length=1)
    """`http://HOST:PORT`, or a database such as `sqlite:////data/mlflow.db`."""
    experiment: str = Field("tunewright", min_length=1)
    """Where the run appears; made when it is not there."""


class TrainConfig(ObjectiveConfig):
    """`train:`"""

    method: AnyMethod = LoraConfig()
    zero: ZeroConfig = ZeroConfig()
    workers: Workers = 1
    """A number, or the bounds of one that changes with the cluster: `{min: 1, max: 8}`."""
    worker_resources: WorkerResources = WorkerResources()
    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """How the rate falls after the warm-up; `wsd` stays, and falls in a line at the end."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the rate rises in a line to `learning_rate`."""
    warmup_fraction: float = Field(0.0, ge=0, le=1)
    """The same as a share of all steps, rounded up; give one of the two."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The rate at the end, as a share of `learning_rate`."""
    decay_fraction: float | None = Field(None, gt=0, le=1)
    """The share of all steps in which the rate of `wsd` falls; 0.1 when left out."""
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices; biases, norms and other vectors are not decayed."""
    adam_beta1: float = Field(0.9, gt=0, lt=1)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are shortened to this."""
    neftune_alpha: float | None = Field(None, gt=0)
    """Strength of the noise on the embeddings in training (NEFTune); 5 is usual, none when left out."""
    num_train_epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; give this or `num_train_epochs`."""
    global_batch_size: int = Field(16, ge=1)
    """Packed rows per optimizer step over all workers; does not change with the number of workers."""
    micro_batch_size: int = Field(4, ge=1)
    """Packed rows per forward pass on one worker."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes in it, else fp32. fp16 is for GPUs without bf16: its narrow
    range needs a scaled loss, and steps that overflow are left out."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them."""
    logging_steps: int = Field(10, ge=1)
    tensorboard: bool = True
    """Figures go to event files in the run's folder too, for `tensorboard --logdir`."""
    mlflow: MlflowConfig | None = None
    """Needs `pip install 'tunewright[mlflow]'`."""
    eval_steps: int | None = Field(None, ge=1)
    """Evaluate every so many steps; only at the end when left out."""
    early_stopping: EarlyStopping | None = None
    """Training takes all of its steps when left out."""
    best: BestCheckpoint | None = None
    """The last step is training's result when left out."""
    watchdog: Watchdog | None = None
    """A rising loss is only written down when left out."""
    save_steps: int = Field(50, ge=1)
    """Write a checkpoint every so many steps."""
    save_minutes: float | None = Field(None, gt=0)
    """And whenever so many minutes have gone by since the last one."""
    keep_checkpoints: int = Field(2, ge=1)
    max_failures: int = Field(3, ge=0)
    """Times a lost worker group is restarted from the last checkpoint before the run fails."""
    hang_minutes: float | None = Field(5.0, gt=0)
    """A worker that stands still for so long within steps is named and ended, and its group restarted;
    six times as long while it loads, evaluates or saves. More where steps are slow: ten times the longest
    wait before. Nobody is ended when this is null."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.num_train_epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of num_train_epochs and max_steps")
        return self

    @property
    def world_sizes(self) -> range:
        """The numbers of workers that training may have."""
        if isinstance(self.workers, int):
            return range(self.workers, self.workers + 1)
        return range(self.workers.min, self.workers.max + 1)

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        rows, unit, said = self.global_batch_size, self.micro_batch_size, "micro_batch_size"
        if isinstance(self.workers, int):
            unit, said = unit * self.workers, "micro_batch_size*workers"
        if rows % unit:
            lower, upper = rows // unit * unit, (rows // unit + 1) * unit
            valid = f"{lower} and {upper}" if lower else f"{upper}"
            raise ValueError(
                f"global_batch_size={rows} is not a multiple of {said}={unit}; nearest valid: {valid}"
            )
        return self

    @model_validator(mode="after")
    def _scales_its_loss(self) -> TrainConfig:
        if self.precision == "fp16" and self.zero.stage == 0:
            raise ValueError("precision fp16 needs zero.stage 1, 2 or 3, which keep its loss scale")
        return self

    @model_validator(mode="after")
    def _offloads_from_a_gpu(self) -> TrainConfig:
        asked = [name for name in ("offload_optimizer", "offload_params") if getattr(self.zero, name)]
        if asked and not self.worker_resources.gpus:
            raise ValueError(
                f"zero.{asked[0]} moves what is in a GPU's memory to the machine's, where workers without a "
                f"GPU (worker_resources.gpus=0) have it already; leave it off, or give each worker a GPU"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainConfig:
        if self.warmup_steps and self.warmup_fraction:
            raise ValueError("give one of warmup_steps and warmup_fraction")
        if self.min_lr_ratio and self.lr_scheduler_type == "constant":
            raise ValueError("min_lr_ratio: a constant rate does not fall; choose linear, cosine or wsd")
        if self.decay_fraction is not None and self.lr_scheduler_type != "wsd":
            raise ValueError(f"decay_fraction is for wsd, and lr_scheduler_type is {self.lr_scheduler_type}")
        return self

    @model_validator(mode="after")
    def _judged_by_evaluations(self) -> TrainConfig:
        for name in ("early_stopping", "best"):
            if getattr(self, name) is not None and self.eval_steps is None:
                raise ValueError(f"{name} needs eval_steps: without it there is one evaluation, at the end")
        return self

    @model_validator(mode="after")
    def _method_fits_engine(self) -> TrainConfig:
        if self.method.type == "prefix_tuning" and self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing computes a block again without the keys and values in front of it, "
                "so prefix_tuning cannot have it; choose prompt_tuning, or leave it off"
            )
        if (
            self.method.type in ("prompt_tuning", "prefix_tuning")
            and self.objective not in LANGUAGE_OBJECTIVES
        ):
            raise ValueError(
                f"method.type={self.method.type} learns virtual tokens in front of a language model, and "
                f"objective {self.objective} trains a head of its own; choose lora, dora, rslora, qlora, "
                f"ia3, freeze or full"
            )
        if self.method.type == "qlora" and self.zero.stage == 3:
            raise ValueError(
                "zero.stage=3 partitions weights, and those of qlora are packed in 4 bits; choose 0, 1 or 2"
            )
        return self
