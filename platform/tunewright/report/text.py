"""Figures as people read them, the same in the terminal and on the page."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"  # noqa: RUF001 - an en dash, as tables show what is not there


def share(value: float | None) -> str:
    """0.9305 -> `0.930`; what was not measured -> a dash."""
    return NONE if value is None else f"{value:.3f}"


def difference(base: float | None, tuned: float | None) -> str:
    """Tuned minus base with its sign."""
    return NONE if base is None or tuned is None else f"{tuned - base:+.3f}"


def count(value: float | None) -> str:
    """12345.6 -> `12,346`."""
    return NONE if value is None else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """0.42 -> `0.4 s`, 75 -> `1 min 15 s`, 7260 -> `2 h 1 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def setting(value: Any) -> str:
    """A hyperparameter, short: 0.0003 -> `0.0003`, 2.9999e-05 -> `3e-05`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def finite(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def short_name(parameter: str) -> str:
    """`train.method.rank` -> `method.rank`: every swept parameter is one of training."""
    return parameter.removeprefix("train.")
