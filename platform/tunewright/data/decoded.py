"""A document as people read it: the text of each token, and whether the token carries loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.data.rows import KTO_LABELS, NO_LABEL, Document, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
PREFERENCE_PARTS = ("chosen", "rejected")


def token_lines(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[tuple[str, bool]]:
    """Text of each token and whether it carries loss; put together, the texts are the decoded document.

    Tokens that are parts of one character stand together: an `é` of two tokens is one entry.
    """
    mask, ids = document.loss_mask, document.ids.tolist()
    return [(text, bool(mask[start:end].any())) for text, start, end in _pieces(tokenizer, ids)]


def described(
    tokenizer: PreTrainedTokenizerBase,
    document: Document,
    task: Task,
    stop_ids: Collection[int],
    label_names: Sequence[str] = (),
) -> dict[str, Any]:
    """The tokens of a document by its parts, and how many of its answers teach an end, as plain values.

    parts      [{"name": "chosen", "tokens": [{"text": "Hi", "loss": true, "label": "place"}]}]
    tokens     number of tokens; `supervised` of them carry loss
    answers    stretches of tokens with loss; `ended` of them end with a stop token, such as `end_token`

    Classes and tags have no answers.
    """
    ids, mask = document.ids.tolist(), document.loss_mask
    bounds = [0]
    for length in document.segments or (len(ids),):
        bounds.append(bounds[-1] + length)
    names = PREFERENCE_PARTS if document.segments and task == "preference" else ("",) * len(bounds)
    shown: list[list[dict[str, Any]]] = [[] for _ in bounds[1:]]
    for text, start, end in _pieces(tokenizer, ids):
        part = next((i for i, bound in enumerate(bounds[1:]) if start < bound), len(shown) - 1)
        token: dict[str, Any] = {"text": text, "loss": bool(mask[start:end].any())}
        label = _label(document, start, end, task, label_names)
        shown[part].append(token if label is None else {**token, "label": label})
    answers = list(_answers(mask.tolist(), bounds)) if task not in ("classification", "tags") else []
    ends = [ids[end - 1] for _, end in answers if ids[end - 1] in stop_ids]
    return {
        "parts": [{"name": name, "tokens": part} for name, part in zip(names, shown, strict=False)],
        "tokens": len(ids),
        "supervised": int(mask.sum()),
        "answers": len(answers),
        "ended": len(ends),
        "end_token": _decoded(tokenizer, ends[:1]) if ends else None,
    }


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """(text, start, end): the text that the tokens start..end stand for.

    Tokens are decoded together with those of the piece before: some decoders strip the space that
    begins a text. A piece counts only if the decoded document goes on with it, so that whatever a
    decoder does, the pieces together are the document.
    """
    whole = _decoded(tokenizer, ids)
    context = start = at = 0
    known = ""
    for end in range(1, len(ids)):
        text = _decoded(tokenizer, ids[context:end])
        piece = text[len(known) :]
        cut = piece.endswith(REPLACEMENT)  # perhaps the first bytes of a character
        if cut or not text.startswith(known) or not whole.startswith(piece, at):
            continue
        yield piece, start, end
        context, start, at = start, end, at + len(piece)
        known = _decoded(tokenizer, ids[context:end])
    if len(ids):
        yield whole[at:], start, len(ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def _label(document: Document, start: int, end: int, task: Task, names: Sequence[str]) -> str | None:
    """The class at one of the positions by its name, if there is one."""
    if document.labels is None:
        return None
    numbers = [number for number in document.labels[start:end].tolist() if number != NO_LABEL]
    if not numbers:
        return None
    return KTO_LABELS[numbers[0]] if task == "kto" else names[numbers[0]]


def _answers(mask: Sequence[int], bounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of ones; none goes on from one part into the next."""
    start = None
    for at, carries in enumerate([*mask, 0]):
        if start is not None and (not carries or at in bounds):
            yield start, at
            start = None
        if carries and start is None:
            start = at
