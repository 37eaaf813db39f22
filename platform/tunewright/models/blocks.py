"""Causal attention over spans of rows on a CPU, by matrix products of blocks.

Torch's own kernel takes a span at a time, too, but three times as long for the gradients: its products
are small. Here heads that share keys and values are rows of one product, short spans of about the same
length are computed together, and their softmax is kept for the backward pass.

B rows, S tokens per row, H heads, K heads of keys and values, R = H / K, D channels of a head;
G spans of a group; Q queries of a block, T tokens that some of them see.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

BLOCK = 256
"""Queries of a block. Longer spans are computed block by block, none of which sees past its last query,
so that they cost half of their square; shorter ones are computed in groups."""
KEPT = 256
"""Tokens that the blocks of a long span may see whose softmax is kept: H * 256 numbers a token at most."""
FILLED = 0.85
"""Share of a group's scores that are of its spans; the rest makes them equally long."""
GROUP = 1 << 20
"""Scores of a group, unless one span has more: 2 MB in 16 bits, few enough to stay cached."""

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
        together = _together(spans, rows, length, heads, key.shape[1])
        wanted = any(ctx.needs_input_grad)
        parts: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        lying_query, lying_key, lying_value = (_lying(each) for each in (query, key, value))
        for group in together.groups:
            hidden_QT = _hidden(group.longest, group.longest, together.repeated, window, query.dtype)
            queries, keys = group.of(lying_query), group.of(lying_key)
            shares_GQT = torch.baddbmm(hidden_QT, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
            parts.append(torch.bmm(shares_GQT, group.of(lying_value)))
            if wanted:
                kept.append(shares_GQT)
        out_BSHD = together.put_back(parts, query)
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
        up_BHSD = upstream[0].transpose(1, 2)
        query, key, value, *kept = ctx.saved_tensors
        shares_kept = iter(kept)
        rows, heads, length, _ = query.shape
        together = _together(ctx.spans, rows, length, heads, key.shape[1])
        lying_query, lying_key, lying_value, lying_up = (_lying(e) for e in (query, key, value, up_BHSD))
        parts: tuple[list[torch.Tensor], ...] = ([], [], [])
        for group in together.groups:
            shares, up = next(shares_kept), group.of(lying_up, filled=True)
            of_shares = torch.bmm(up, group.of(lying_value).transpose(1, 2))
            of_scores = _of_scores(of_shares, shares, ctx.scale)
            parts[0].append(torch.bmm(of_scores, group.of(lying_key)))
            parts[1].append(torch.bmm(of_scores.transpose(1, 2), group.of(lying_query)))
            parts[2].append(torch.bmm(shares.transpose(1, 2), up))
        of_query, of_key, of_value = (
            together.put_back(part, like) for part, like in zip(parts, (query, key, value), strict=True)
        )
        for block in _blocks(ctx.spans, ctx.window):
            if block.keys <= KEPT:
                shares = next(shares_kept)
            else:
                shares = _shares(query, key, block, ctx.scale, ctx.window)
            up = _queries(up_BHSD, block, key.shape[1])
            of_scores = _of_scores(torch.bmm(up, block.seen(value).transpose(1, 2)), shares, ctx.scale)
            _put(of_query, block, torch.bmm(of_scores, block.seen(key)))
            for sums, left, right in (
                (of_value, shares, up),
                (of_key, of_scores, _queries(query, block, key.shape[1])),
            ):
                place = sums[block.row, block.first : block.end].transpose(0, 1)
                place.add_(torch.bmm(left.transpose(1, 2), right))
        return of_query.transpose(1, 2), of_key.transpose(1, 2), of_value.transpose(1, 2), None, None, None


Rows = npt.NDArray[np.int64]


class _Group:
    """Spans that are computed as if each were as long as the longest; what is filled up comes last in
    each, where no query of the span sees it, and is stored nowhere.

    Attributes:
        rows: which rows of (B * S * heads, D) are gathered, for H and for K heads.
        beyond: which of the gathered ones are not the span's.
    """

    def __init__(self, spans: list[Span], length: int, heads: int, kv_heads: int):
        self.longest = spans[0][2]
        self.batch = len(spans) * kv_heads
        at_T = np.arange(self.longest)
        first_G1, tokens_G1 = (
            np.array(each)[:, None]
            for each in ([row * length + first for row, first, _ in spans], [span[2] for span in spans])
        )
        token_GT = first_G1 + np.minimum(at_T, tokens_G1 - 1)
        beyond_GT = at_T >= tokens_G1
        self.rows: dict[int, Rows] = {}
        self.beyond: dict[int, Rows] = {}
        for count in {heads, kv_heads}:
            head_KR = np.arange(count).reshape(kv_heads, -1)
            rows_GKRT = token_GT[:, None, None, :] * count + head_KR[None, :, :, None]
            self.rows[count] = rows_GKRT.ravel()
            self.beyond[count] = np.flatnonzero(np.broadcast_to(beyond_GT[:, None, None, :], rows_GKRT.shape))

    def of(self, lying_BSHD: torch.Tensor, filled: bool = False) -> torch.Tensor:
        """(G * K, R * T, D), R = 1 for keys and values; zeros where a span was filled up, if wanted so."""
        heads, channels = lying_BSHD.shape[2:]
        gathered = lying_BSHD.view(-1, channels).index_select(0, torch.from_numpy(self.rows[heads]))
        if filled and len(self.beyond[heads]):
            gathered.index_fill_(0, torch.from_numpy(self.beyond[heads]), 0)
        return gathered.view(self.batch, -1, channels)


class _Together:
    """The spans of a block at most, in groups of about the same length."""

    def __init__(self, spans: tuple[Span, ...], rows: int, length: int, heads: int, kv_heads: int):
        self.shape, self.repeated = (rows, length), heads // kv_heads
        grouped = _grouped([span for span in spans if span[2] <= BLOCK], heads)
        self.groups = [_Group(group, length, heads, kv_heads) for group in grouped]
        self.back = {count: self._back(count, rows * length * count) for count in {heads, kv_heads}}

    def _back(self, count: int, total: int) -> Rows:
        """Where each row of (B * S * heads, D) is among those gathered; behind them all if nowhere."""
        gathered = sum(len(group.rows[count]) for group in self.groups)
        back, at = np.full(total, gathered), 0
        for group in self.groups:
            rows = group.rows[count]
            own = np.ones(len(rows), bool)
            own[group.beyond[count]] = False
            back[rows[own]] = at + np.flatnonzero(own)
            at += len(rows)
        return back

    def put_back(self, parts: list[torch.Tensor], like_BHSD: torch.Tensor) -> torch.Tensor:
        """(B, S, H, D) of what was computed group by group; zeros where no group has been."""
        heads, channels = like_BHSD.shape[1], like_BHSD.shape[3]
        if not parts:
            return like_BHSD.new_zeros(*self.shape, heads, channels)
        back = torch.from_numpy(self.back[heads])
        rows = torch.cat([*(part.view(-1, channels) for part in parts), like_BHSD.new_zeros(1, channels)])
        return rows.index_select(0, back).view(*self.shape, heads, channels)


@lru_cache(maxsize=16)
def _together(spans: tuple[Span, ...], rows: int, length: int, heads: int, kv_heads: int) -> _Together:
    """The same for every layer."""
    return _Together(spans, rows, length, heads, kv_heads)


def _grouped(spans: list[Span], heads: int) -> list[list[Span]]:
    """The longest first, together as long as little is filled up."""
    groups: list[list[Span]] = []
    scores = 0
    for span in sorted(spans, key=lambda span: (-span[2], span)):
        whole = (len(groups[-1]) + 1) * groups[-1][0][2] ** 2 if groups else 0
        scores += span[2] ** 2
        if not groups or scores < FILLED * whole or heads * whole > GROUP:
            groups.append([])
            scores = span[2] ** 2
        groups[-1].append(span)
    return groups


def _lying(each_BHSD: torch.Tensor) -> torch.Tensor:
    """(B, S, H, D), its rows of D numbers one behind the other in memory."""
    return each_BHSD.transpose(1, 2).contiguous()


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
    """Of the spans that are longer than a block."""
    for row, first, tokens in spans:
        if tokens > BLOCK:
            for begin in range(first, first + tokens, BLOCK):
                seen_from = first if window is None else max(first, begin - window + 1)
                yield _Block(row, begin, min(begin + BLOCK, first + tokens), seen_from)


def _shares(
    query: torch.Tensor, key: torch.Tensor, block: _Block, scale: float, window: int | None
) -> torch.Tensor:
    """(K, R * Q, T) the softmax of the block's scores."""
    hidden_QT = _hidden(block.queries, block.keys, query.shape[1] // key.shape[1], window, query.dtype)
    queries = _queries(query, block, key.shape[1])
    return torch.baddbmm(hidden_QT, queries, block.seen(key).transpose(1, 2), alpha=scale).softmax(-1)


def _of_scores(of_shares: torch.Tensor, shares: torch.Tensor, scale: float) -> torch.Tensor:
    """The gradient of the scores before they were scaled."""
    return torch._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(scale)


def _hidden(queries: int, keys: int, repeated: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """(R * Q, T) minus infinity where a query must not look, else 0; the last query sees the last key."""
    reach = None if window is None or window >= keys else window
    return torch.from_numpy(_hidden_numbers(queries, keys, repeated, reach)).to(dtype)


@lru_cache(maxsize=256)
def _hidden_numbers(queries: int, keys: int, repeated: int, window: int | None) -> npt.NDArray[np.float32]:
    back = np.arange(queries)[:, None] + (keys - queries) - np.arange(keys)[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return np.tile(np.where(near, 0.0, -np.inf).astype(np.float32), (repeated, 1))


def _queries(each_BHSD: torch.Tensor, block: _Block, groups: int) -> torch.Tensor:
    """(K, R * Q, D) of a block, heads that share keys one behind the other."""
    part_HQD = each_BHSD[block.row, :, block.begin : block.end]
    return part_HQD.reshape(groups, -1, part_HQD.shape[-1])


def _put(into_BSHD: torch.Tensor, block: _Block, part: torch.Tensor) -> None:
    """Store (K, R * Q, D) where the block's queries lie."""
    place_HQD = into_BSHD[block.row, block.begin : block.end].transpose(0, 1)
    place_HQD.copy_(part.view(place_HQD.shape))
