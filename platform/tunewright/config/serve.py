"""`serve:` where and how the endpoint runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config


class ServeConfig(Config):
    """`serve:`"""

    alias: str = Field("prod", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """The alias that moves to the new version and that clients name in `model`."""
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(4, gt=0)
    """Requests a replica should have in flight; above it the autoscaler adds replicas."""
    max_ongoing_requests: int = Field(32, ge=1)
    max_queued_requests: int = Field(128, ge=1)
    """Requests waiting beyond this are refused with 429 and Retry-After."""
    max_batch_size: int = Field(16, ge=1)
    """Requests that one replica decodes together."""
    max_new_tokens: int = Field(256, ge=1)
    """Upper bound, and the default when a request names none."""
    host: str = "127.0.0.1"
    """Loopback unless stated."""
    port: int = Field(8000, ge=1, le=65535)
    precision: Literal["fp32", "bf16"] = "fp32"
    replica_cpus: float = Field(0.5, ge=0)
    replica_gpus: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _replicas_ordered(self) -> ServeConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}")
        return self
