"""Attention document by document: a packed row costs what its documents cost, and no mask is made.

The models of transformers are told where documents lie by a keyword argument of their forward pass,
which travels to every attention layer. Called without it, as by generation, they attend as ever.
What a token sees is what it sees under the masks of `packed.py`; padding sees nothing and costs nothing.

B rows, S tokens per row, H heads, K heads of keys and values, D channels of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunewright.models.blocks import block_attention

log = logging.getLogger(__name__)

PAIRS_PER_DOCUMENT = 8_192
"""Pairs of tokens in a masked row that cost a CPU as much as another document does."""
NAME = "tunewright_documents"
TESTED = {"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "phi", "gpt2"}
"""Architectures whose layers hand the keyword on, and whose attention is no more than this one."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Where the documents of packed rows lie.

    Attributes:
        spans: (row, first token, tokens) of each document; what no document covers is padding.
        rows, length: the shape of the rows.
    """

    spans: tuple[tuple[int, int, int], ...]
    rows: int
    length: int

    @classmethod
    def of(cls, segments_BS: npt.NDArray[np.int64]) -> Documents:
        """From the number of the segment that each token belongs to; 0 is padding.

        [[1, 1, 2, 2, 2, 0]]  ->  spans ((0, 0, 2), (0, 2, 3))
        """
        spans = []
        for row, segments_S in enumerate(segments_BS):
            edges = [0, *(np.flatnonzero(np.diff(segments_S)) + 1).tolist(), len(segments_S)]
            spans += [(row, begin, end - begin) for begin, end in pairwise(edges) if segments_S[begin] > 0]
        return cls(tuple(spans), *segments_BS.shape)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest stretch of a row that attends as one, padding included."""
        return int(np.diff(self.bounds).max())

    def worth_it(self, device: torch.device) -> bool:
        """Whether attention by documents is less work than by masks: on a CPU each document has a price."""
        saved = self.rows * self.length**2
        return device.type == "cuda" or saved >= PAIRS_PER_DOCUMENT * len(self.spans)

    @cached_property
    def bounds(self) -> npt.NDArray[np.int32]:
        """Where each stretch begins, of documents and of padding, over all rows one behind the other."""
        edges = {row * self.length for row in range(self.rows + 1)}
        for row, begin, tokens in self.spans:
            edges |= {row * self.length + begin, row * self.length + begin + tokens}
        return np.array(sorted(edges), np.int32)

    def bounds_on(self, device: torch.device) -> torch.Tensor:
        """`bounds` as a tensor; moved once, not once for each layer."""
        if "_moved" not in self.__dict__:
            self.__dict__["_moved"] = torch.from_numpy(self.bounds).to(device)
        moved: torch.Tensor = self.__dict__["_moved"]
        return moved


def attend_by_documents(model: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Let the model take `documents=`, if it can; else it needs masks, and a log line says why."""
    reason = why_masks(model, device, dtype)
    if reason is not None:
        log.info("attention by masks", extra={"reason": reason})
        return False
    register()
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    bare.set_attn_implementation(NAME)
    return True


def why_masks(model: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the model's packed rows need masks; None when it can be told its documents."""
    from tunewright.models.prompted import virtual_tokens

    config = model.config
    if virtual_tokens(model):
        return "virtual tokens are seen from every document"
    if config.model_type not in TESTED:
        return f"{config.model_type} models are not known to hand documents on to their attention"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"the model attends by {config._attn_implementation}"
    if getattr(config, "use_bidirectional_attention", False):
        return "tokens see those behind them"
    if device.type == "cuda" and varlen() is None:
        return "this torch has no attention of variable lengths, and flash-attn is not installed"
    if device.type == "cuda" and dtype == torch.float32:
        return "attention of variable lengths computes in 16 bits, the run in 32"
    return None


def register() -> None:
    """Make `NAME` known to transformers, whose masks are made as for its own attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def no_mask(like: torch.Tensor) -> torch.Tensor:
    """What to give a model as its mask beside `documents=`: transformers makes none if one of four
    dimensions is there, and the attention here does not look at it."""
    return torch.empty(1, 1, 1, 1, device=like.device)


def attend(
    module: Any,
    query_BHSD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """(B, S, H, D) what each token gathers from its document up to itself; called by transformers.

    Args:
        documents: where they lie; without it this is transformers' own attention, mask and all.
        sliding_window: tokens that a layer sees, the token itself included.
    """
    if documents is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        given = (module, query_BHSD, key_BKSD, value_BKSD, attention_mask)
        return sdpa_attention_forward(
            *given, dropout=dropout, scaling=scaling, sliding_window=sliding_window, **rest
        )
    rows, _, length, channels = query_BHSD.shape
    assert (rows, length) == (documents.rows, documents.length), "the documents are of other rows"
    scale = channels**-0.5 if scaling is None else scaling
    if query_BHSD.is_cuda:
        return _on_cuda(query_BHSD, key_BKSD, value_BKSD, documents, scale, sliding_window, dropout), None
    if dropout:
        return _with_dropout(
            query_BHSD, key_BKSD, value_BKSD, documents, scale, sliding_window, dropout
        ), None
    return block_attention(query_BHSD, key_BKSD, value_BKSD, documents.spans, scale, sliding_window), None


def _with_dropout(
    query_BHSD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    documents: Documents,
    scale: float,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """Torch's own attention for each stretch of the rows, one after the other; it drops weights itself."""
    lengths: Sequence[int] = np.diff(documents.bounds).tolist()
    parts = [each.transpose(1, 2).flatten(0, 1).split(lengths) for each in (query_BHSD, key_BKSD, value_BKSD)]
    outs: list[torch.Tensor] = []
    for query, key, value in zip(*parts, strict=True):
        near = None
        if window is not None and window < len(query):
            at = torch.arange(len(query))
            back = at[:, None] - at[None, :]
            near = (back >= 0) & (back < window)
        out = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=near,
            dropout_p=dropout,
            is_causal=near is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs).view(documents.rows, documents.length, *outs[0].shape[1:])


def varlen() -> str | None:
    """Which attention of variable lengths is at hand: torch's (2.10 and later), or flash-attn's."""
    from importlib.util import find_spec

    if find_spec("torch.nn.attention.varlen") is not None:
        return "torch"
    return "flash-attn" if find_spec("flash_attn") is not None else None


def _on_cuda(
    query_BHSD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    documents: Documents,
    scale: float,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """Every stretch of all rows in one call; padding is a stretch too, which nothing else sees."""
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query_BHSD, key_BKSD, value_BKSD))
    bounds, longest = documents.bounds_on(query.device), documents.longest
    back = -1 if window is None or window >= longest else window - 1
    if varlen() == "torch" and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        out: Any = varlen_attn(
            query, key, value, bounds, bounds, longest, longest,
            scale=scale, window_size=(back, 0), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    else:
        from flash_attn import flash_attn_varlen_func

        out = flash_attn_varlen_func(
            query, key, value, bounds, bounds, longest, longest,
            dropout_p=dropout, softmax_scale=scale, causal=True, window_size=(back, 0),
        )  # fmt: skip
    answer: torch.Tensor = out
    return answer.view(documents.rows, documents.length, *answer.shape[1:])
