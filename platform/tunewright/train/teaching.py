"""A micro batch of one or several tasks, asked and judged: losses with gradients, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunewright.train.forward import Forward
from tunewright.train.objectives.base import Answer, Places, Rows
from tunewright.train.streams import Micro, Part, Stream

if TYPE_CHECKING:
    import torch


def ask(
    forward: Forward,
    streams: Sequence[Stream],
    micro: Micro,
    training: bool = True,
    split: str = "train",
    baselines: Mapping[int, float] | None = None,
) -> list[Answer]:
    """What the model says about each part of the micro batch, by one forward pass.

    Args:
        training: whether labels are smoothed.
        split: which rows these are, for what the model said of them before.
        baselines: task -> `Answer.baseline`.
    """
    masks = [streams[part.task].objective.places(part.rows) for part in micro.parts]
    places = Places.of(np.concatenate(masks))
    objectives = [streams[part.task].objective for part in micro.parts]
    logps_N = uniform_N = scores_NC = None
    if objectives[0].head == "lm":
        uniform = training and any(objective.smoothing for objective in objectives)
        logps_N, uniform_N = forward.logps(micro.rows, places, uniform)
    else:
        scores_NC = forward.scores(micro.rows, places)
    answers, at = [], 0
    for part, mask in zip(micro.parts, masks, strict=True):
        own = Places.of(mask)
        mine = slice(at, at + len(own))
        at += len(own)
        answers.append(
            Answer(
                rows=part.rows,
                places=own,
                logps_N=None if logps_N is None else logps_N[mine],
                uniform_N=None if uniform_N is None else uniform_N[mine],
                scores_NC=None if scores_NC is None else scores_NC[mine],
                reference_D=_reference(forward, streams[part.task], part, split),
                baseline=(baselines or {}).get(part.task, 0.0),
            )
        )
    return answers


def ask_first(forward: Forward, streams: Sequence[Stream], micro: Micro, split: str) -> list[Answer]:
    """What the model says of the first pass's rows, in evaluation mode; parts without one count nothing."""
    import torch

    parts = []
    for part in micro.parts:
        first = streams[part.task].objective.first_pass
        rows: Rows = _empty(part.rows) if first is None else first.rows(part.rows)
        parts.append(Part(part.task, part.indices, rows))
    model = forward.engine.deepspeed.module
    was_training = model.training
    model.eval()
    with torch.no_grad():
        answers = ask(forward, streams, Micro(tuple(parts)), False, f"other_{split}")
    model.train(was_training)
    return answers


def _empty(rows: Rows) -> Rows:
    return rows | {name: np.zeros_like(rows[name]) for name in ("segment_ids", "loss_mask")}


def _reference(forward: Forward, stream: Stream, part: Part, split: str) -> torch.Tensor | None:
    import torch

    if stream.reference is None or (split.startswith("other_") and not stream.objective.first_pass):
        return None
    by_row = getattr(stream.reference, split)
    values = [by_row[index] for index in part.indices]
    whole = np.concatenate(values) if values else np.zeros(0, np.float32)
    return torch.from_numpy(whole).to(forward.engine.device)
