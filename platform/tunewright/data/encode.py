"""Examples -> documents of token ids with loss mask and labels. Knows nothing of files or Ray.

conversation    loss on the assistant's turns (models/chat.py)
preference      one document: the chosen conversation, then the rejected one, as two segments that
                must not see one another; loss on the answers alone, not on earlier turns
kto             loss on the last answer; its last token has the label, 1 good or 0 bad
text, classification, tags    see encode_texts.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tunewright.config import DataConfig
from tunewright.data.encode_texts import TextEncoder, too_long
from tunewright.data.formats.turns import INSTRUCTING
from tunewright.data.overflow import fit
from tunewright.data.rows import NO_LABEL, Document, Encoded, Example, Task
from tunewright.errors import DataError
from tunewright.models.chat import ChatRenderer, Rendered

Message = dict[str, Any]
Conversation = tuple[list[Message], list[dict[str, Any]] | None]


class Encoder:
    """Encodes examples of one task with one renderer.

    Args:
        config: `pack` and `loss` are heeded.
    Attributes:
        label_names: name of each class, in the order in which this encoder first met them; the numbers
            in `Document.labels` are indices of it.
    """

    def __init__(self, renderer: ChatRenderer, config: DataConfig, task: Task):
        self.renderer, self.task = renderer, task
        self.pack, self.loss = config.pack, config.loss
        self._texts = TextEncoder(renderer.tokenizer, config.pack)
        self._encode = {
            "conversation": self._conversations,
            "preference": self._preferences,
            "kto": self._rated,
            "text": self._texts.texts,
            "classification": self._texts.classified,
            "tags": self._texts.tagged,
        }[task]

    @property
    def label_names(self) -> list[str]:
        return self._texts.label_names

    def encode(self, examples: Sequence[Example]) -> list[Encoded | DataError]:
        """Each example as documents of at most `pack.seq_len` tokens, or why it cannot be.

        One bad example costs itself alone. An answer is never cut.
        """
        assert all(example.task == self.task for example in examples), "one encoder, one task"
        return self._encode([example.content for example in examples])

    def _conversations(self, contents: Sequence[dict[str, Any]]) -> list[Encoded | DataError]:
        batch = [(content["messages"], content.get("tools")) for content in contents]
        turns, history = self.loss.turns, self.loss.history
        out: list[Encoded | DataError] = []
        for conversation, rendered in zip(
            batch, self.renderer.render_batch(batch, turns, history), strict=True
        ):
            note = ""
            if isinstance(rendered, DataError):
                out.append(rendered)
                continue
            if len(rendered) > 1:
                note = "expanded"
            if any(len(one.ids) > self.pack.seq_len for one in rendered):
                fitted = self._fit(conversation, turns, history)
                if isinstance(fitted, DataError):
                    out.append(fitted)
                    continue
                rendered, note = fitted
            out.append(_encoded(rendered, note))
        return out

    def _preferences(self, contents: Sequence[dict[str, Any]]) -> list[Encoded | DataError]:
        batch = [pair for content in contents for pair in _pair(content, _unlearned(content["messages"]))]
        rendered = self.renderer.render_batch(batch, "all", "expand")
        pairs = zip(rendered[::2], rendered[1::2], strict=True)
        out: list[Encoded | DataError] = []
        for content, (chosen, rejected) in zip(contents, pairs, strict=True):
            try:
                out.append(self._preference(content, chosen, rejected))
            except DataError as error:
                out.append(error)
        return out

    def _preference(
        self,
        content: dict[str, Any],
        chosen: list[Rendered] | DataError,
        rejected: list[Rendered] | DataError,
    ) -> Encoded:
        if content["chosen"] == content["rejected"]:
            raise DataError("chosen and rejected are the same after normalising and redacting")
        pair = _answer_of(chosen, "chosen"), _answer_of(rejected, "rejected")
        tokens = len(pair[0].ids) + len(pair[1].ids)
        if tokens <= self.pack.seq_len:
            return Encoded([_paired(*pair)])
        if self.pack.overflow == "split":
            raise DataError(f"{too_long(tokens, self.pack.seq_len)}; a pair of answers is not split")
        if self.pack.overflow != "truncate_prompt":
            raise DataError(f"{too_long(tokens, self.pack.seq_len)} as a pair of answers")
        for messages in _without_oldest(content["messages"]):
            both = self.renderer.render_batch(_pair(content, _unlearned(messages)), "all", "expand")
            pair = _answer_of(both[0], "chosen"), _answer_of(both[1], "rejected")
            if len(pair[0].ids) + len(pair[1].ids) <= self.pack.seq_len:
                return Encoded([_paired(*pair)], ("truncated",))
        raise DataError(f"{too_long(tokens, self.pack.seq_len)}, nor does the last question with its answers")

    def _rated(self, contents: Sequence[dict[str, Any]]) -> list[Encoded | DataError]:
        batch: list[Conversation] = []
        for content in contents:
            messages = content["messages"]
            batch.append(([*_unlearned(messages[:-1]), messages[-1]], content.get("tools")))
        rendered = self.renderer.render_batch(batch, "all", "expand")
        out: list[Encoded | DataError] = []
        for content, conversation, one in zip(contents, batch, rendered, strict=True):
            try:
                answer, note = _answer_of(one, "the answer"), ""
                if len(answer.ids) > self.pack.seq_len:
                    if self.pack.overflow == "split":
                        problem = too_long(len(answer.ids), self.pack.seq_len)
                        raise DataError(f"{problem}; a conversation with one label is not split")
                    fitted = self._fit(conversation, "all", "expand")
                    if isinstance(fitted, DataError):
                        raise fitted
                    answer, note = _answer_of(fitted[0], "the answer"), fitted[1]
                out.append(Encoded([_labelled(answer, content["label"])], (note,) if note else ()))
            except DataError as error:
                out.append(error)
        return out

    def _fit(
        self, conversation: Conversation, turns: Any, history: Any
    ) -> tuple[list[Rendered], str] | DataError:
        messages, tools = conversation
        limit, policy = self.pack.seq_len, self.pack.overflow
        try:
            return fit(self.renderer, messages, tools, limit, policy, turns, history)
        except DataError as error:
            return error


def _encoded(rendered: Sequence[Rendered], note: str) -> Encoded | DataError:
    if not any(1 in one.loss_mask for one in rendered):
        return DataError("no token carries loss: data.loss and the messages' weights leave nothing to learn")
    return Encoded([_document(one) for one in rendered], (note,) if note else ())


def _document(rendered: Rendered) -> Document:
    # From bytes: numpy reads a list of small numbers three times slower.
    return Document(np.array(rendered.ids, np.int32), np.frombuffer(bytes(rendered.loss_mask), np.int8))


def _paired(chosen: Rendered, rejected: Rendered) -> Document:
    both = Rendered([*chosen.ids, *rejected.ids], [*chosen.loss_mask, *rejected.loss_mask])
    document = _document(both)
    return Document(document.ids, document.loss_mask, None, (len(chosen.ids), len(rejected.ids)))


def _labelled(answer: Rendered, good: bool) -> Document:
    document = _document(answer)
    labels = np.full(len(answer.ids), NO_LABEL, np.int32)
    labels[np.flatnonzero(document.loss_mask)[-1]] = int(good)
    return Document(document.ids, document.loss_mask, labels)


def _answer_of(rendered: list[Rendered] | DataError, name: str) -> Rendered:
    """The one document of a conversation with one answer to be learned."""
    if isinstance(rendered, DataError):
        raise DataError(f"{name}: {rendered}")
    if len(rendered) != 1:
        raise DataError(
            f"{name}: the chat template rewrites earlier turns, so an answer of several turns "
            f"is not one document"
        )
    if 1 not in rendered[0].loss_mask:
        raise DataError(f"{name}: no token carries loss")
    return rendered[0]


def _pair(content: dict[str, Any], question: list[Message]) -> list[Conversation]:
    tools = content.get("tools")
    return [([*question, *content["chosen"]], tools), ([*question, *content["rejected"]], tools)]


def _unlearned(messages: Sequence[Message]) -> list[Message]:
    """The messages with no loss on any of them."""
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages]


def _without_oldest(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages without their oldest exchange, without the two oldest...; instructions stay."""
    head = 1 if messages and messages[0]["role"] in INSTRUCTING else 0
    for index in range(head + 1, len(messages)):
        if messages[index]["role"] == "user":
            yield messages[:head] + messages[index:]
