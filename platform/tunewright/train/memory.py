"""How much memory this process holds, and the most it ever held; and the same of its GPU."""

from __future__ import annotations

import resource
import sys

GIB = 1024**3


def memory_figures() -> dict[str, float]:
    """`rss_gib` and `peak_rss_gib`; `cuda_gib` and `peak_cuda_gib` where torch has used a GPU."""
    import psutil

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    held = psutil.Process().memory_info().rss
    return {"rss_gib": held / GIB, "peak_rss_gib": max(held, peak) / GIB, **_cuda()}


def _cuda() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {
        "cuda_gib": torch.cuda.memory_allocated() / GIB,
        "peak_cuda_gib": torch.cuda.max_memory_allocated() / GIB,
    }
