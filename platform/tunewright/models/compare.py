"""How far two models agree about the same tokens. Knows nothing of files, adapters or tolerances.

B rows, S tokens per row, K positions that count in some row, V vocabulary, N positions compared at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import ModelError

if TYPE_CHECKING:
    import torch

AT_ONCE = 64
"""Positions whose probabilities are held at a time; of a vocabulary of 150,000 they take 77 MB a copy."""


@dataclass(frozen=True)
class Probe:
    """What both models are asked.

    Attributes:
        inputs: what each is called with, logits_to_keep aside; their first dimension is B.
        counted_BS: True where the prediction of the next token is compared.
    """

    inputs: Mapping[str, Any]
    counted_BS: torch.Tensor


@dataclass(frozen=True)
class Agreement:
    """Two models on the same tokens.

    Attributes:
        kl: mean Kullback-Leibler divergence of b from a, in nats a token; 0 if they say the same.
        top1: share of tokens at which both find the same next token the likeliest.
        max_logit_difference: the largest difference of two logits.
        tokens: how many were compared.
    """

    kl: float
    top1: float
    max_logit_difference: float
    tokens: int


def compare_models(a: Any, b: Any, batches: Iterable[Probe]) -> Agreement:
    """What `a`, the reference, and `b` say about every counted token, added up batch by batch.

    The logits of one batch are held at a time, and probabilities of a few positions. Those are in fp64:
    fp32 would add a divergence of its own. Both models are asked in evaluation mode and left in the mode
    they were in.

    Raises:
        ModelError: nothing to compare, other vocabularies, or logits that are not finite.
    """
    import torch

    kl = same = 0.0
    largest, tokens = 0.0, 0
    modes = [(model, model.training) for model in (a, b)]
    try:
        with torch.inference_mode():
            for probe in batches:
                if not probe.counted_BS.any():
                    continue
                ours, theirs = (_logits(model.eval(), probe) for model in (a, b))
                if ours.shape[-1] != theirs.shape[-1]:
                    raise ModelError(
                        f"the models have {ours.shape[-1]:,} and {theirs.shape[-1]:,} tokens in their "
                        f"vocabularies; only models of the same tokenizer can be compared"
                    )
                for some, others in zip(ours.split(AT_ONCE), theirs.split(AT_ONCE), strict=True):
                    of = _divergence(some.double(), others.to(some.device).double())
                    kl, same, largest = kl + of[0], same + of[1], max(largest, of[2])
                tokens += len(ours)
    finally:
        for model, training in modes:
            model.train(training)
    if not tokens:
        raise ModelError("there is no token to compare the models on; give at least one document of two")
    if not math.isfinite(kl) or not math.isfinite(largest):
        raise ModelError(f"a model's logits are not finite on {tokens:,} tokens; its weights are damaged")
    return Agreement(max(0.0, kl / tokens), same / tokens, largest, tokens)


def probes_of(documents: Iterable[Sequence[int]], pad_id: int, tokens_at_once: int = 2048) -> Iterator[Probe]:
    """Documents, each alone in a row, as probes of at most so many tokens, padding included.

    Every token but a document's last is counted: what comes after that, nobody knows. A document that
    is longer than `tokens_at_once` is a probe by itself.
    """
    batch: list[Sequence[int]] = []
    for document in documents:
        longest = max([len(document), *map(len, batch)])
        if batch and longest * (len(batch) + 1) > tokens_at_once:
            yield _padded(batch, pad_id)
            batch = []
        batch.append(document)
    if batch:
        yield _padded(batch, pad_id)


def documents_of(rows: Mapping[str, Any], most_tokens: int | None = None) -> list[list[int]]:
    """The documents of packed rows, in their order; those of one token are left out.

    Args:
        rows: `input_ids` and `segment_ids`, both (B, S), as `PackedRows.take` gives them.
        most_tokens: no more documents once so many tokens are there.
    """
    out: list[list[int]] = []
    taken = 0
    for ids_S, segments_S in zip(np.asarray(rows["input_ids"]), np.asarray(rows["segment_ids"]), strict=True):
        for number in range(1, int(segments_S.max(initial=0)) + 1):
            document = ids_S[segments_S == number].tolist()
            if most_tokens is not None and taken >= most_tokens:
                return out
            if len(document) > 1:
                out.append(document)
                taken += len(document)
    return out


def _padded(documents: Sequence[Sequence[int]], pad_id: int) -> Probe:
    import torch

    longest = max(map(len, documents))
    ids_BS = torch.full((len(documents), longest), pad_id)
    attend_BS = torch.zeros_like(ids_BS)
    counted_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
    for row, document in enumerate(documents):
        ids_BS[row, : len(document)] = torch.tensor(document)
        attend_BS[row, : len(document)] = 1
        counted_BS[row, : len(document) - 1] = True
    return Probe({"input_ids": ids_BS, "attention_mask": attend_BS}, counted_BS)


def _logits(model: Any, probe: Probe) -> torch.Tensor:
    """(N, V) of the counted positions, row by row."""
    device = next(model.parameters()).device
    counted_BS = probe.counted_BS.to(device)
    at_K = counted_BS.any(dim=0).nonzero()[:, 0]
    inputs = {name: v.to(device) if hasattr(v, "to") else v for name, v in probe.inputs.items()}
    logits_BKV = model(**inputs, logits_to_keep=at_K, use_cache=False).logits
    out: torch.Tensor = logits_BKV[counted_BS[:, at_K]]
    return out


def _divergence(ours_NV: torch.Tensor, theirs_NV: torch.Tensor) -> tuple[float, float, float]:
    """Sum of the divergences, number of equal favourites, and the largest difference of two logits."""
    a_NV, b_NV = ours_NV.log_softmax(-1), theirs_NV.log_softmax(-1)
    terms_NV = a_NV.exp() * (a_NV - b_NV)
    same_N = ours_NV.argmax(-1) == theirs_NV.argmax(-1)
    largest = (ours_NV - theirs_NV).abs().max() if len(ours_NV) else 0.0
    return float(terms_NV.sum()), float(same_N.sum()), float(largest)
