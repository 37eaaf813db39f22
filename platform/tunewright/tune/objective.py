"""What a sweep optimises: a task's figure on validation rows, by generation in the training worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.config import TaskConfig

Parts = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class TaskObjective:
    """Builds, inside a worker, the scorer of validation rows; small enough to be sent there.

    Attributes:
        data: folder of the data artifact, whose evaluation rows are asked.
        rows: at most so many of them.
    """

    data: str
    task: TaskConfig
    rows: int
    batch_size: int

    def __call__(self) -> Callable[[Any, int, int], Parts]:
        from tunewright.artifacts import Artifact, Manifest, read_json
        from tunewright.data.conversations import read_examples
        from tunewright.evaluate.generate import LocalGenerator
        from tunewright.evaluate.metrics import score
        from tunewright.evaluate.tasks import task_from_messages
        from tunewright.models.load import load_renderer

        folder = Path(self.data)
        data = Artifact(folder, Manifest(**read_json(folder / "manifest.json")))
        config = self.task.model_copy(update={"max_rows": self.rows})
        task = task_from_messages(config, read_examples(data, self.rows))
        renderer = load_renderer(folder / "tokenizer")

        def scorer(model: Any, rank: int, world: int) -> Parts:
            """This worker's share of the rows; shares add up to the whole."""
            mine = task.shard(rank, world)
            if not mine.prompts:
                return {"exact_match": (0.0, 0.0)}
            use_cache, model.config.use_cache = model.config.use_cache, True
            answers = LocalGenerator(model, renderer, self.batch_size)(mine.prompts, task.max_new_tokens)
            model.config.use_cache = use_cache
            scores = score(mine, answers)
            return {"exact_match": (float(scores.exact), float(scores.n))}

        return scorer
