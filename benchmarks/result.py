"""The last line of every benchmark: one JSON object for machines."""

import json
import os
import platform
from typing import Any


def conclude(
    name: str,
    metrics: dict[str, Any],
    ratios: dict[str, float],
    goals: dict[str, float],
    met: bool,
    **env: Any,
) -> int:
    """Print the line; returns the exit code, 0 if the goals are met.

    Args:
        env: what else of the environment bears on the figures, such as a library's version.
    """
    where = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    line = {
        "name": name,
        "env": where | env,
        "metrics": metrics,
        "ratios": ratios,
        "goals": goals,
        "met": met,
    }
    print(json.dumps(line))
    return 0 if met else 1
