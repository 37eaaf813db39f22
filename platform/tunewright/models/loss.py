"""The loss of finished conversations, for evaluation. Runs no optimizer and knows nothing of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# B rows, S tokens per row, K positions whose next token is supervised in some row, V vocabulary


@torch.inference_mode()
def supervised_loss(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, batch_size: int
) -> tuple[float, int]:
    """Sum of the loss over supervised tokens, and their number.

    Args:
        rows: (ids, loss_mask) of each conversation; `ids[i]` is supervised where `loss_mask[i]` is 1
            and predicted from the tokens before it, so the first token never counts.
    """
    loss_sum, tokens = 0.0, 0
    by_length = sorted(rows, key=lambda row: -len(row[0]))
    for start in range(0, len(by_length), batch_size):
        batch_sum, batch_tokens = _batch_loss(model, by_length[start : start + batch_size], pad_id)
        loss_sum, tokens = loss_sum + batch_sum, tokens + batch_tokens
    return loss_sum, tokens


def _batch_loss(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int
) -> tuple[float, int]:
    longest = max(len(ids) for ids, _ in rows)
    ids_BS = torch.full((len(rows), longest), pad_id)
    attend_BS = torch.zeros_like(ids_BS)
    wanted_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
    for index, (ids, mask) in enumerate(rows):
        ids_BS[index, : len(ids)] = torch.tensor(ids)
        attend_BS[index, : len(ids)] = 1
        wanted_BS[index, : len(ids)] = torch.tensor(mask, dtype=torch.bool)
    wanted_BS = wanted_BS[:, 1:]
    at_K = wanted_BS.any(dim=0).nonzero()[:, 0]
    if not len(at_K):
        return 0.0, 0
    device = model.device
    # Padding stands to the right of every supervised token, which therefore never sees it.
    logits_BKV = model(
        input_ids=ids_BS.to(device),
        attention_mask=attend_BS.to(device),
        logits_to_keep=at_K.to(device),
        use_cache=False,
    ).logits
    wanted_BK = wanted_BS[:, at_K]
    targets = ids_BS[:, 1:][:, at_K][wanted_BK].to(device)
    chosen = logits_BKV[wanted_BK.to(device)].float()
    return float(cross_entropy(chosen, targets, reduction="sum")), len(targets)
