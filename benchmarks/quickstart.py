"""How long does the quickstart take, first and second time, and how good is what it makes?

    python benchmarks/quickstart.py            (make bench-quickstart)

Each time is the whole command from nothing: local Ray, job, stages, endpoint, its answers, shut-down.
The last line is one JSON object.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from result import conclude

from tunewright.artifacts import read_json

ROOT = Path(__file__).parents[1]
GOALS = {"first_s": 360.0, "second_s": 60.0, "tuned_exact_match": 0.85, "base_exact_match": 0.05}


def run_quickstart(store: Path) -> tuple[float, dict]:
    """Seconds of the whole command, and the run's summary."""
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "tunewright.cli", "run", str(ROOT / "jobs/configs/quickstart.yaml")],
        env={**os.environ, "TUNEWRIGHT_STORE": str(store)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - begun, read_json(store / "runs" / "quickstart" / "summary.json")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tw-bench-") as name:
        first_s, first = run_quickstart(Path(name))
        second_s, second = run_quickstart(Path(name))
    made_again = [s["name"] for s in second["stages"] if s["state"] == "made" and s["name"] != "deploy"]
    assert not made_again, f"the second run made {made_again} again"
    metrics = {
        "first_s": round(first_s, 1),
        "second_s": round(second_s, 1),
        "second_to_first_answer_s": second["seconds"],
        "base_exact_match": first["base"]["exact_match"],
        "tuned_exact_match": first["tuned"]["exact_match"],
        "train_tokens_per_s": round(first["tokens_per_s"]),
        "stages_s": {s["name"]: s["seconds"] for s in first["stages"]},
    }
    for key, value in metrics.items():
        if key != "stages_s":
            print(f"{key:<26} {value:>10}   goal {GOALS.get(key, '-')}")
    for stage, seconds in metrics["stages_s"].items():
        print(f"  {stage:<24} {seconds:>10}")
    met = (
        first_s <= GOALS["first_s"]
        and second_s <= GOALS["second_s"]
        and metrics["tuned_exact_match"] >= GOALS["tuned_exact_match"]
        and metrics["base_exact_match"] <= GOALS["base_exact_match"]
    )
    ratios = {"second/first": round(second_s / first_s, 3)}
    return conclude("quickstart", metrics, ratios, GOALS, met)


if __name__ == "__main__":
    sys.exit(main())
