"""`train.method:` which weights are trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config

Result = Literal["adapter", "model"]
"""What a training writes: a PEFT folder that needs its base, or a whole Hugging Face folder."""


class FullConfig(Config):
    """Every weight is trained."""

    result: ClassVar[Result] = "model"
    type: Literal["full"] = "full"


class FreezeConfig(Config):
    """The last blocks, or named modules, are trained; every other weight stays as it is."""

    result: ClassVar[Result] = "model"
    type: Literal["freeze"] = "freeze"
    last_blocks: int = Field(0, ge=0)
    """Transformer blocks that are trained, counted from the last."""
    modules: tuple[str, ...] = ()
    """Modules that are trained too: a name or its end (`lm_head`, `layers.1.mlp`), or a pattern
    (`layers.*.mlp`)."""

    @model_validator(mode="after")
    def _trains_something(self) -> FreezeConfig:
        if not self.last_blocks and not self.modules:
            raise ValueError("give last_blocks, modules or both; without them no weight would be trained")
        return self


class LowRank(Config):
    """What the methods that add low-rank updates to linear layers share; all go through PEFT."""

    result: ClassVar[Result] = "adapter"
    rank: int = Field(16, ge=1, le=512)
    """Rank of the update; memory and serving cost grow linearly."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update is alpha / rank; twice the rank when left out."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of each update's inputs that is left out in training, drawn for each row of the data."""
    target_modules: tuple[str, ...] = Field(("all-linear",), min_length=1)
    """Names of linear layers, or `all-linear`, alone: each but the output layer."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole beside the updates and saved with them, such as `lm_head`."""

    @property
    def effective_alpha(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @model_validator(mode="after")
    def _all_linear_alone(self) -> LowRank:
        if "all-linear" in self.target_modules and len(self.target_modules) > 1:
            raise ValueError("target_modules: all-linear stands alone; it names every linear layer already")
        twice = sorted(set(self.target_modules) & set(self.modules_to_save))
        if twice:
            raise ValueError(
                f"{twice[0]} is in target_modules and in modules_to_save; name it in one of them"
            )
        return self


class LoraConfig(LowRank):
    """Low-rank adapters on linear layers."""

    type: Literal["lora"] = "lora"


class RsloraConfig(LowRank):
    """LoRA whose scale is alpha / sqrt(rank), so that a large rank learns as fast as a small one."""

    type: Literal["rslora"] = "rslora"


class DoraConfig(LowRank):
    """LoRA that also learns how long each output's weights are; slower, often better at small ranks."""

    type: Literal["dora"] = "dora"


class QloraConfig(LowRank):
    """LoRA over a base held in 4 bits (NF4, by bitsandbytes): a quarter of the memory of bf16."""

    type: Literal["qlora"] = "qlora"


LowRankMethod = LoraConfig | RsloraConfig | DoraConfig | QloraConfig


class PromptTuningConfig(Config):
    """Learned embeddings in front of every document."""

    result: ClassVar[Result] = "adapter"
    type: Literal["prompt_tuning"] = "prompt_tuning"
    tokens: int = Field(20, ge=1, le=4096)
    """Virtual tokens; they take as much of the model's context. They begin as random words."""


class PrefixTuningConfig(Config):
    """Learned keys and values in front of every document, in every layer."""

    result: ClassVar[Result] = "adapter"
    type: Literal["prefix_tuning"] = "prefix_tuning"
    tokens: int = Field(20, ge=1, le=4096)
    """Virtual tokens; they take as much of the model's context. They begin as random words."""


class Ia3Config(Config):
    """One learned factor for each channel of a few layers: the smallest adapter there is."""

    result: ClassVar[Result] = "adapter"
    type: Literal["ia3"] = "ia3"
    target_modules: tuple[str, ...] = ()
    """Names of the layers; PEFT's choice for the architecture when left out."""
    feedforward_modules: tuple[str, ...] = ()
    """Those of `target_modules` whose inputs are scaled instead of their outputs; by habit the last
    layer of each MLP."""

    @model_validator(mode="after")
    def _feedforward_is_a_target(self) -> Ia3Config:
        other = [name for name in self.feedforward_modules if name not in self.target_modules]
        if other:
            raise ValueError(f"feedforward_modules: {other[0]} is not in target_modules; name it there too")
        return self


Method = FullConfig | FreezeConfig | LowRankMethod | PromptTuningConfig | PrefixTuningConfig | Ia3Config
AnyMethod = Annotated[Method, Field(discriminator="type")]
