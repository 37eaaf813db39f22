"""A written model against what it was made from, both loaded from disk and computed in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.models.compare import Agreement, compare_models, probes_of
from tunewright.models.load import load_model
from tunewright.models.merge import WithoutAdapter

ROOM = 2.5
"""GPU memory free, in copies of the model in fp32, at which both models go there."""


def agreement_with(
    source: tuple[Path, Path | None], written: Path, documents: Sequence[Sequence[int]]
) -> tuple[Agreement, Agreement | None]:
    """How far the written model agrees with its source, and the source with its base alone.

    The second tells what the first is to be measured by; None when the source has no adapter.

    Args:
        source: folders of the base and of its adapter; or of a whole model and None.
    """
    import torch

    trained: Any = load_model(*source, torch.float32)
    made: Any = load_model(written, None, torch.float32)
    if _fits_gpu(made):
        trained, made = trained.to("cuda"), made.to("cuda")
    merged = compare_models(trained, made, probes_of(documents, pad_id=0))
    del made
    if source[1] is None:
        return merged, None
    return merged, compare_models(trained, WithoutAdapter(trained), probes_of(documents, pad_id=0))


def _fits_gpu(model: Any) -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    free, _ = torch.cuda.mem_get_info()
    return bool(free > ROOM * 4 * model.num_parameters())
