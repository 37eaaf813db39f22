"""What the peers' training scripts share: options, and tokens per second of a Hugging Face `Trainer`."""

import argparse
import json
import time
from collections.abc import Sequence

from transformers import TrainerCallback


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="folder with weights, tokenizer and chat template")
    parser.add_argument("rows", help="JSON lines of messages")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--leaky", action="store_true", help="documents of a row may see each other")
    return parser.parse_args()


class Stopwatch(TrainerCallback):
    """Seconds from the end of the warm-up to the end of the last step, everything between included."""

    def __init__(self, warm_up: int):
        self.warm_up, self.ends = warm_up, []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(time.monotonic())

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.ends[self.warm_up - 1]


def conclude(watch: Stopwatch, rows: Sequence, tokens: int, rows_per_step: int, last_loss: float) -> None:
    """Print the JSON line.

    Args:
        tokens: in all rows, padding aside.
    """
    steps = len(watch.ends) - watch.warm_up
    per_row = tokens / len(rows)
    print(
        json.dumps(
            {
                "tokens_per_s": round(steps * rows_per_step * per_row / watch.seconds, 1),
                "seconds_per_step": round(watch.seconds / steps, 3),
                "packed_rows": len(rows),
                "tokens": tokens,
                "loss": round(last_loss, 4),
            }
        )
    )
