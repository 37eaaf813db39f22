"""Entry 2: what the model says of documents that share a row is what it says of each alone.

N places of the sampled rows, D documents of them, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.models.heads import kind_of
from tunewright.train.bare import bare_forward, evaluating
from tunewright.train.certificate.entry import Entry, within
from tunewright.train.certificate.sample import (
    Subject,
    kept_documents,
    reference_of,
    segments_of,
    with_most_documents,
)
from tunewright.train.forward import Forward
from tunewright.train.objectives.base import Answer, Places, Rows
from tunewright.train.streams import Micro, Part
from tunewright.train.teaching import ask

if TYPE_CHECKING:
    import torch

SAMPLED_ROWS, LOOKED_AT = 4, 32
SAMPLED_TOKENS = 4096
DOCUMENTS_A_ROW = 4
"""The first ones, which is an even number: a pair of answers stays together."""
LOSS = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
"""Relative difference of the losses. fp32: sums over rows of another length are taken in another order.
bf16, fp16: rounding in other kernels; see the bound below, which finds a leak whatever the precision."""
FOREIGN = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3}
"""Difference, in nats or scores, that other tokens in the documents beside it may make at a place. Masked
scores are exactly zero and the order of sums is the same, so none is expected in any precision."""


@dataclass(frozen=True)
class Difference:
    """What packing changes for one task."""

    packed: float
    alone: float
    foreign: float
    documents: int
    rows: int

    @property
    def relative(self) -> float:
        return abs(self.packed - self.alone) / max(abs(self.alone), 1e-12)


def packed_entry(subjects: Sequence[Subject], model: Any, device: torch.device, dtype: torch.dtype) -> Entry:
    """Whether each task's packed rows lose what their documents lose one by one.

    One by one, each goes through the model's own forward pass, with the library's masks and not ours.
    Besides, the tokens of every second document are replaced: no other document may feel it.
    """
    precision = name_of(dtype)
    measured: dict[str, Any] = {}
    tolerance: dict[str, float] = {}
    sentences, wrong = [], []
    for subject in subjects:
        found = _difference(subject, model, device, dtype)
        suffix = f"/{subject.stream.name}" if subject.stream.name else ""
        bounds = {
            f"relative_difference{suffix}": LOSS[precision],
            f"foreign_tokens{suffix}": FOREIGN[precision],
        }
        figures = {
            f"relative_difference{suffix}": found.relative,
            f"foreign_tokens{suffix}": found.foreign,
        }
        if not within(figures, bounds):
            wrong.append(subject.told + _problem(found, FOREIGN[precision]))
        sentences.append(
            f"{subject.told}{found.documents} documents in {found.rows} rows lose {found.packed:.6g}, and "
            f"{found.alone:.6g} one by one"
        )
        tolerance |= bounds
        measured |= figures | {
            f"loss_packed{suffix}": found.packed,
            f"loss_alone{suffix}": found.alone,
            f"documents{suffix}": found.documents,
        }
    return Entry(2, not wrong, "; ".join(wrong or sentences), measured, tolerance)


def name_of(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(dtype).removeprefix("torch.")]


def _problem(found: Difference, most_foreign: float) -> str:
    if not found.foreign <= most_foreign:
        return (
            f"packed documents leak into each other: other tokens in one change what the model says of the "
            f"next by up to {found.foreign:.3g}"
        )
    return (
        f"{found.documents} documents packed in {found.rows} rows lose {found.packed:.8g}, and "
        f"{found.alone:.8g} one by one: packing changes what is learned"
    )


def _difference(subject: Subject, model: Any, device: torch.device, dtype: torch.dtype) -> Difference:
    import torch

    stream = subject.stream
    indices = with_most_documents(stream.rows, LOOKED_AT, SAMPLED_ROWS, SAMPLED_TOKENS)
    rows = stream.rows.take(indices)
    most_B = np.minimum(rows["segment_ids"].max(axis=1, initial=0), DOCUMENTS_A_ROW)
    numbers = [list(range(1, int(most) + 1)) for most in most_B]
    length = max(1, int((np.isin(rows["segment_ids"], np.arange(1, DOCUMENTS_A_ROW + 1))).sum(axis=1).max()))
    rows = kept_documents(rows, numbers, length)
    stream = replace(stream, reference=reference_of(stream, dict(zip(indices, numbers, strict=True))))
    forward = bare_forward(model, device, dtype, rows["segment_ids"].shape[1])
    with evaluating(model), torch.no_grad():
        (packed,) = ask(forward, [stream], Micro((Part(0, np.array(indices), rows),)), training=False)
        alone = _alone(packed, model, device)
        foreign = _foreign(packed, forward, model)
        units = max(1, stream.objective.units(rows))
        losses = [float(stream.objective.loss(answer, training=False)) / units for answer in (packed, alone)]
    documents = int(rows["segment_ids"].max(axis=1, initial=0).sum())
    return Difference(losses[0], losses[1], foreign, documents, len(indices))


def _alone(packed: Answer, model: Any, device: torch.device) -> Answer:
    """The same answer, of each document by itself."""
    import torch

    found = []
    for row, segments_S in enumerate(packed.rows["segment_ids"]):
        columns = packed.places.columns[packed.places.rows == row]
        for at in segments_of(segments_S):
            ids = torch.from_numpy(packed.rows["input_ids"][row, at]).to(device)
            inside = columns[(columns >= at.start) & (columns < at.stop)] - at.start
            found.append(_said(model, ids, torch.from_numpy(inside).to(device)))
    every = torch.cat(found)
    if packed.logps_N is None:
        return replace(packed, scores_NC=every)
    return replace(packed, logps_N=every)


def _said(model: Any, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """What the model says at places of one document: log-probabilities, or scores."""
    import torch

    if not len(at):
        return torch.zeros(0, device=ids.device)
    kind = kind_of(model)
    if kind is None:
        logits_NV = model(input_ids=ids[None], logits_to_keep=at, use_cache=False).logits[0].float()
        logps_N: torch.Tensor = logits_NV.log_softmax(-1).gather(1, ids[at + 1][:, None])[:, 0]
        return logps_N
    scores: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits.float()
    if kind == "token":
        return scores[0, at]
    assert at.tolist() == [len(ids) - 1], "the library answers for a text where its last token stands"
    return scores


def _foreign(packed: Answer, forward: Forward, model: Any) -> float:
    """The largest change at a place of the documents 2, 4..., when the tokens of 1, 3... are others."""
    import torch

    rows: Rows = dict(packed.rows)
    others_BS = rows["segment_ids"] % 2 == 1
    size = model.get_input_embeddings().weight.shape[0]
    rows["input_ids"] = np.where(others_BS, (rows["input_ids"] + 1) % size, rows["input_ids"])
    places: Places = packed.places
    kept_N = ~others_BS[places.rows, places.columns]
    if not kept_N.any():
        return 0.0
    if packed.logps_N is None:
        assert packed.scores_NC is not None
        change = forward.scores(rows, places) - packed.scores_NC
    else:
        change = forward.logps(rows, places)[0] - packed.logps_N
    return float(change[torch.from_numpy(kept_N).to(change.device)].abs().max())
