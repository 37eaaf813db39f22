"""What every part of the configuration shares: frozen, unknown keys forbidden, docstrings kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all configuration objects. Validators check; they never change a value."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # YAML has `.nan` and `.inf`, and no comparison with a nan ever refuses
    )
