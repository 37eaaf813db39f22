"""Prompts -> tokens: one batch, one key-value cache, one token a step for each sequence.

Evaluation and serving both decode here, so that a served answer is the evaluated one. Knows
nothing of text, templates, queues or files.
"""

# B rows still being decoded, S columns of the cache (left padding included), V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tunewright.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How one sequence goes on.

    Args:
        max_new_tokens: at least 1; the stop token counts.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is drawn from, in (0, 1].
        seed: the same seed gives the same tokens, alone or in a batch; None draws one.
    Raises:
        DataError: a value out of its range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens={self.max_new_tokens}; at least 1 is needed")
        if not self.temperature >= 0:
            raise DataError(f"temperature={self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p={self.top_p}; it must be above 0 and at most 1")


@torch.inference_mode()
def decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[Sampling],
    stop_ids: frozenset[int],
    pad_id: int,
    cancelled: Callable[[int], bool] | None = None,
) -> Iterator[list[int | None]]:
    """Each step, the next token of every sequence; None for one that has ended.

    A sequence ends with its stop token, which is given too, at `max_new_tokens`, or when
    `cancelled(index)` is true. The iterator ends with the last sequence.

    Raises:
        DataError: an empty prompt, or not one `Sampling` a prompt.
        ModelError: the model's scores are not finite numbers.
    """
    if len(prompts) != len(sampling):
        raise DataError(f"{len(prompts)} prompts but {len(sampling)} samplings")
    if any(not prompt for prompt in prompts):
        raise DataError("a prompt has no tokens")
    if not prompts:
        return
    generators = [_generator(s) for s in sampling]
    given = [0] * len(prompts)
    rows = list(range(len(prompts)))
    batch = _Batch(model, prompts, pad_id, max(s.max_new_tokens for s in sampling))
    logits_BV = batch.prefill()
    while True:
        alive = [at for at, i in enumerate(rows) if cancelled is None or not cancelled(i)]
        if not alive:
            return
        tokens_B = _choose(logits_BV, rows, sampling, generators)
        step: list[int | None] = [None] * len(prompts)
        kept = []
        for at in alive:
            i, token = rows[at], tokens_B[at]
            step[i] = token
            given[i] += 1
            if token not in stop_ids and given[i] < sampling[i].max_new_tokens:
                kept.append(at)
        yield step
        if not kept:
            return
        if len(kept) < len(rows):
            batch.keep(kept)
            rows = [rows[at] for at in kept]
        logits_BV = batch.step([tokens_B[at] for at in kept])


class _Batch:
    """The rows in the model: padded on the left, so that every row's next token is one column."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, room: int):
        from transformers import DynamicCache

        self.model = model
        self.device = next(model.parameters()).device
        self.cache = DynamicCache(config=model.config)
        self.width = max(map(len, prompts))
        self.ids_BS = torch.tensor([[pad_id] * (self.width - len(p)) + list(p) for p in prompts])
        lengths_B = torch.tensor([len(p) for p in prompts])
        self.mask_BS = torch.ones(len(prompts), self.width + room, dtype=torch.long)
        self.mask_BS[:, : self.width] = torch.arange(self.width) >= (self.width - lengths_B)[:, None]
        self.mask_BS = self.mask_BS.to(self.device)
        self.next_B = lengths_B.to(self.device)
        self.padded = bool((lengths_B < self.width).any())

    def prefill(self) -> torch.Tensor:
        """Logits after the prompts; only of the last column, so that long prompts cost no memory."""
        positions_BS = (self.mask_BS[:, : self.width].cumsum(-1) - 1).clamp(min=0)
        return self._forward(self.ids_BS.to(self.device), positions_BS)

    def step(self, tokens_B: list[int]) -> torch.Tensor:
        """Logits after one more token a row."""
        self.width += 1
        positions_B1 = self.next_B[:, None]
        self.next_B = self.next_B + 1
        return self._forward(torch.tensor(tokens_B, device=self.device)[:, None], positions_B1)

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows; it costs one copy of the cache, as a step does."""
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask_BS, self.next_B = self.mask_BS[index], self.next_B[index]
        self.padded = bool((self.mask_BS[:, 0] == 0).any())

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            # Without padding no mask is needed, and attention is faster without one.
            attention_mask=self.mask_BS[:, : self.width] if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: torch.Tensor = output.logits[:, -1]
        return logits_BV


def _choose(
    logits_BV: torch.Tensor,
    rows: Sequence[int],
    sampling: Sequence[Sampling],
    generators: Sequence[torch.Generator | None],
) -> list[int]:
    best_B, tokens_B = logits_BV.max(dim=-1)
    if not bool(torch.isfinite(best_B).all()):
        raise ModelError("the model's scores are not finite numbers; its weights are damaged or overflow")
    chosen: list[int] = tokens_B.tolist()
    for at, i in enumerate(rows):
        generator = generators[i]
        if generator is not None:
            chosen[at] = _draw(logits_BV[at], sampling[i], generator)
    return chosen


def _draw(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token drawn with one uniform number, in the vocabulary's order.

    The order matters: sorted by probability, two tokens nearly alike could change places with the
    last bit of a score, and a seed would no longer give the same text alone and in a batch.
    """
    scores_V = logits_V.to("cpu", torch.float64)
    probabilities_V = torch.softmax((scores_V - scores_V.max()) / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        probabilities_V[order_V[before_V >= sampling.top_p]] = 0.0
    cumulative_V = probabilities_V.cumsum(-1)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative_V[-1]
    return min(int(torch.searchsorted(cumulative_V, point, right=True)), len(cumulative_V) - 1)


def _generator(sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator
