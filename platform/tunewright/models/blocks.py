"""Causal attention over spans of rows on a CPU, by matrix products of blocks.

Torch's own kernel takes a span at a time, too, but three times as long for the gradients: its products
are small. Here heads that share keys and values are rows of one product, and the softmax of short
spans is kept for the backward pass.

B rows, S tokens per row, H heads, K heads of keys and values, R = H / K, D channels of a head;
Q queries of a block, T tokens that some of them see.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

BLOCK = 256
"""Queries of a block. No block sees past its last query, so long spans cost half of their square."""
KEPT = 256
"""Tokens that the blocks may see whose softmax is kept: H * 256 numbers a token at most."""

Span = tuple[int, int, int]
"""(row, first token, tokens)"""


def block_attention(
    query_BHSD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    spans: tuple[Span, ...],
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """(B, S, H, D) attention of every token to its span up to itself; zeros outside of spans.

    Args:
        window: tokens that one sees at most, itself included.
    """
    given = (query_BHSD, key_BKSD, value_BKSD, spans, scale, window)
    out: torch.Tensor = _BlockAttention.apply(*given)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: tuple[Span, ...],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        rows, heads, length, _ = query.shape
        out_BSHD = _empty(query, rows, length, heads, spans)
        kept: list[torch.Tensor] = []
        wanted = any(ctx.needs_input_grad)
        for block in _blocks(spans, window):
            shares_KQT = _shares(query, key, block, scale, window)
            _put(out_BSHD, block, torch.bmm(shares_KQT, block.seen(value)))
            if wanted and block.keys <= KEPT:
                kept.append(shares_KQT)
        ctx.spans, ctx.scale, ctx.window = spans, scale, window
        if wanted:
            ctx.save_for_backward(query, key, value, *kept)
        return out_BSHD

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (up_BSHD,) = upstream
        query, key, value, *kept = ctx.saved_tensors
        shares_kept = iter(kept)
        rows, heads, length, _ = query.shape
        of_query = _empty(query, rows, length, heads, ctx.spans)
        of_key, of_value = (torch.zeros_like(of_query[:, :, : key.shape[1]]) for _ in range(2))
        for block in _blocks(ctx.spans, ctx.window):
            if block.keys <= KEPT:
                shares = next(shares_kept)
            else:
                shares = _shares(query, key, block, ctx.scale, ctx.window)
            up = _queries(up_BSHD.transpose(1, 2), block, key.shape[1])
            of_shares = torch.bmm(up, block.seen(value).transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(ctx.scale)
            _put(of_query, block, torch.bmm(of_scores, block.seen(key)))
            whole = block.first == block.begin and block.queries == block.keys
            for sums, left, right in (
                (of_value, shares, up),
                (of_key, of_scores, _queries(query, block, key.shape[1])),
            ):
                place = sums[block.row, block.first : block.end].transpose(0, 1)
                part = torch.bmm(left.transpose(1, 2), right)
                if whole:
                    place.copy_(part)
                else:
                    place.add_(part)
        return of_query.transpose(1, 2), of_key.transpose(1, 2), of_value.transpose(1, 2), None, None, None


class _Block:
    """Queries from `begin` up to `end` of a row, and the tokens from `first` up to `end` that they see."""

    __slots__ = ("begin", "end", "first", "row")

    def __init__(self, row: int, begin: int, end: int, first: int):
        self.row, self.begin, self.end, self.first = row, begin, end, first

    @property
    def queries(self) -> int:
        return self.end - self.begin

    @property
    def keys(self) -> int:
        return self.end - self.first

    def seen(self, each_BKSD: torch.Tensor) -> torch.Tensor:
        return each_BKSD[self.row, :, self.first : self.end]


def _blocks(spans: tuple[Span, ...], window: int | None) -> Iterator[_Block]:
    for row, first, tokens in spans:
        for begin in range(first, first + tokens, BLOCK):
            seen_from = first if window is None else max(first, begin - window + 1)
            yield _Block(row, begin, min(begin + BLOCK, first + tokens), seen_from)


def _shares(
    query: torch.Tensor, key: torch.Tensor, block: _Block, scale: float, window: int | None
) -> torch.Tensor:
    """(K, R * Q, T) the softmax of the block's scores."""
    repeated = query.shape[1] // key.shape[1]
    reach = None if window is None or window >= block.keys else window
    hidden_QT = _hidden(block.queries, block.keys, repeated, reach, query.dtype)
    queries = _queries(query, block, key.shape[1])
    scores = torch.baddbmm(hidden_QT, queries, block.seen(key).transpose(1, 2), alpha=scale)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=1024)
def _hidden(queries: int, keys: int, repeated: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """(R * Q, T) minus infinity where a query must not look, else 0; the last query sees the last key."""
    back = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(~near, -torch.inf).repeat(repeated, 1)


def _queries(each_BHSD: torch.Tensor, block: _Block, groups: int) -> torch.Tensor:
    """(K, R * Q, D) of a block, heads that share keys one behind the other."""
    part_HQD = each_BHSD[block.row, :, block.begin : block.end]
    return part_HQD.reshape(groups, -1, part_HQD.shape[-1])


def _put(into_BSHD: torch.Tensor, block: _Block, part: torch.Tensor) -> None:
    """Store (K, R * Q, D) where the block's queries lie."""
    place_HQD = into_BSHD[block.row, block.begin : block.end].transpose(0, 1)
    place_HQD.copy_(part.view(place_HQD.shape))


def _empty(like: torch.Tensor, rows: int, length: int, heads: int, spans: tuple[Span, ...]) -> torch.Tensor:
    """(B, S, H, D) with zeros at least where no span will be stored."""
    shape = (rows, length, heads, like.shape[-1])
    covered = sum(tokens for *_, tokens in spans) == rows * length
    return like.new_empty(shape) if covered else like.new_zeros(shape)
