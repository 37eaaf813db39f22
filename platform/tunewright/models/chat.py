"""Messages -> token ids and loss mask: the only renderer.

Data preparation, evaluation and serving all call this, so that the ids a model was trained on are
the ids it is asked with. A conversation is tokenized segment by segment, cut where an assistant's
turn begins and ends: no token spans a boundary, so a prompt's ids are always a prefix of the
training ids. Knows nothing of files, weights or Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunewright.errors import DataError
from tunewright.models.messages import Message, MessageRules, Turns, refuse_losses, supervised
from tunewright.models.probes import (
    check_generation_blocks,
    check_tokens,
    end_of_turn,
    own_template,
    wants_text_arguments,
)
from tunewright.models.sandbox import Template
from tunewright.models.segments import SegmentEncoder
from tunewright.models.turns import NotCut, TurnCutter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, Any]] | None
History = Literal["expand", "refuse"]


@dataclass(frozen=True)
class Rendered:
    """One conversation as a model sees it; `loss_mask[i]` is 1 where `ids[i]` is to be learned."""

    ids: list[int]
    loss_mask: list[int]


class Segments(NamedTuple):
    """A document before it is tokenized; each text is tokenized by itself."""

    texts: list[str]
    kinds: str
    """For each text: `c`ontext, an `a`nswer without loss, or one that is `l`earned."""

    def learned(self) -> list[str]:
        return [text for text, kind in zip(self.texts, self.kinds, strict=True) if kind == "l"]


class ChatRenderer:
    """Renders conversations with one tokenizer and one template.

    `stop_ids` are the end-of-sequence token, those of the generation config, and the token with
    which the template ends an assistant's turn.

    Args:
        tokenizer: a fast Hugging Face tokenizer with an end-of-sequence token.
        template: Jinja text used instead of the tokenizer's own.
        extra_stop_ids: end-of-turn tokens that the model's generation config adds.
    Raises:
        DataError: the tokenizer has no end-of-sequence token, so no answer could ever end, or lacks a
            token that the template needs; or the template is no Jinja text, or marks other words as the
            assistant's than those that the model is asked for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        extra_stop_ids: Iterable[int] = (),
    ):
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token: answers could not be taught to end")
        self.tokenizer = tokenizer
        self.template: str = template or own_template(tokenizer)
        self.template_hash = hashlib.sha256(self.template.encode()).hexdigest()[:12]
        """12 hexadecimal digits that identify the template."""
        check_tokens(self.template, tokenizer)
        self._compiled = Template(self.template, tokenizer.special_tokens_map)
        self._cutter = TurnCutter(self._compiled)
        ending = end_of_turn(self._cutter, tokenizer)
        stops = {int(tokenizer.eos_token_id), *map(int, extra_stop_ids)}
        self.stop_ids = frozenset(stops if ending is None else {*stops, ending})
        pad = tokenizer.pad_token_id
        self.pad_id = int(tokenizer.eos_token_id if pad is None else pad)
        # Llama 3 names its end of turn among the added tokens alone.
        added = [
            token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or number == ending
        ]
        specials = [t for t in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if t.strip()]
        check_generation_blocks(self._cutter, specials)
        self._rules = MessageRules(
            specials, self._compiled.names("developer"), wants_text_arguments(self._compiled)
        )
        self._encoder = SegmentEncoder(tokenizer, specials)

    def conversation(
        self, messages: Sequence[Message], tools: Tools = None, turns: Turns = "all"
    ) -> Rendered:
        """Ids and loss mask of a conversation that ends with the assistant, as one document.

        Loss is on each assistant turn (`turns="last"`: the last alone; a message's `weight: 0` excludes
        it), its end-of-turn token included, and on nothing else.

        Raises:
            DataError: not a conversation, or one that the template cannot render with a mask.
        """
        return self.render(messages, tools, turns, "refuse")[0]

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools = None,
        turns: Turns = "all",
        history: History = "refuse",
    ) -> list[Rendered]:
        """The documents of a conversation: one, unless the template rewrites earlier turns.

        In that case and with `history="expand"`, one for each turn that carries loss: the prompt as it is
        served at that turn, and that answer, with loss on the answer alone.

        Raises:
            DataError: as for `conversation`.
        """
        (result,) = self.render_batch([(messages, tools)], turns, history)
        if isinstance(result, DataError):
            raise result
        return result

    def render_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Tools]],
        turns: Turns = "all",
        history: History = "refuse",
    ) -> list[list[Rendered] | DataError]:
        """`render` for many, tokenized together; a conversation that cannot be rendered gives its error."""
        planned: list[list[Segments] | DataError] = []
        texts: list[str] = []
        for messages, tools in conversations:
            try:
                documents = self._documents(messages, tools, turns, history)
            except DataError as error:
                planned.append(error)
                continue
            planned.append(documents)
            for document in documents:
                texts += document.texts
        tokens = iter(self._encoder.encode(texts))
        return [
            documents
            if isinstance(documents, DataError)
            else [self._assemble(document.kinds, tokens) for document in documents]
            for documents in planned
        ]

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Ids up to and with the words that open the assistant's next turn.

        Raises:
            DataError: not a conversation, nothing to answer, or the template refuses it.
        """
        if not messages or messages[-1].get("role") == "assistant":
            raise DataError("the last message must not be the assistant's: there is nothing to answer")
        seen, known = self._checked(messages, tools)
        texts, kinds = self._prompt(seen, known)
        refuse_losses(seen, known, "".join(texts), {})
        return self._assemble(kinds, iter(self._encoder.encode(texts))).ids

    def supervised(self, messages: Sequence[Message], turns: Turns = "all") -> list[int]:
        """Indexes of the messages that carry loss, in the order of `render`'s documents if it gives several.

        Raises:
            DataError: none does.
        """
        return supervised(messages, turns)

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, up to the first stop token."""
        kept = list(ids)
        for index, token in enumerate(kept):
            if token in self.stop_ids:
                kept = kept[:index]
                break
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def _documents(
        self, messages: Sequence[Message], tools: Tools, turns: Turns, history: History
    ) -> list[Segments]:
        """A conversation as documents that are not yet tokenized."""
        if not messages or messages[-1].get("role") != "assistant":
            raise DataError("the conversation does not end with an assistant message")
        seen, known = self._checked(messages, tools)
        learned = supervised(seen, turns)
        try:
            documents = [self._whole(seen, known, learned)]
            answers = documents[0].learned()
        except NotCut:
            if history == "refuse" and len(learned) > 1:
                raise
            seen = seen[: learned[-1] + 1]
            documents = [self._alone(seen[: index + 1], known) for index in learned]
            answers = [document.texts[-1] for document in documents]
        text = "".join(documents[-1].texts)
        refuse_losses(seen, known, text, dict(zip(learned, answers, strict=True)))
        return documents

    def _checked(self, messages: Sequence[Message], tools: Tools) -> tuple[list[Message], list[Any] | None]:
        """Messages and tools as the template gets them, if it knows what they are."""
        if messages[0].get("role") == "assistant":
            raise DataError("the conversation begins with the assistant: nothing was asked that it answers")
        seen, known = self._rules.seen(messages), self._rules.seen_tools(tools)
        if known and not self._compiled.names("tools"):
            raise DataError(
                f"the chat template shows no tools, but the row has {len(known)}; choose one that does"
            )
        if not self._compiled.names("tool_calls") and any("tool_calls" in message for message in seen):
            raise DataError("the chat template leaves out tool calls; choose one that knows tools")
        return seen, known

    def _whole(self, seen: Sequence[Message], tools: Any, learned: Sequence[int]) -> Segments:
        """The conversation as one document."""
        texts = self._cutter.cut(seen, tools)
        if 2 * len(learned) == len(texts):
            return Segments(texts, "cl" * len(learned))
        spoken = [index for index, message in enumerate(seen) if message["role"] == "assistant"]
        return Segments(texts, "".join("cl" if index in learned else "ca" for index in spoken))

    def _alone(self, seen: Sequence[Message], tools: Any) -> Segments:
        """The last answer after its prompt, as one document."""
        answer = self._cutter.answer_alone(seen, tools)
        texts, kinds = self._prompt(seen[:-1], tools)
        return Segments([*texts, answer], f"{kinds}l")

    def _prompt(self, seen: Sequence[Message], tools: Any) -> Segments:
        try:
            texts = self._cutter.cut(seen, tools, open_turn=True)
        except NotCut:
            # Training on this prompt's answer cuts nothing either: see `_alone`.
            return Segments([self._compiled.text(seen, tools, open_turn=True)], "c")
        return Segments(texts, "ca" * (len(texts) // 2) + "c")

    def _assemble(self, kinds: str, tokens: Iterator[list[int]]) -> Rendered:
        ids: list[int] = []
        mask: list[int] = []
        for kind, part in zip(kinds, tokens, strict=False):
            if kind == "c":
                ids += part
                mask += [0] * len(part)
                continue
            length = self._turn_length(part)
            if not length:  # a template that never ends a turn would never teach it
                part = [*part, int(self.tokenizer.eos_token_id)]
                length = len(part)
            assert part[length - 1] in self.stop_ids, "the end of a turn carries loss"
            ids += part
            mask += [int(kind == "l")] * length
            if length < len(part):
                mask += [0] * (len(part) - length)
        return Rendered(ids, mask)

    def _turn_length(self, answer: list[int]) -> int:
        """Tokens up to and with the first stop token; 0 if there is none."""
        stops, last = self.stop_ids, len(answer) - 1
        while last >= 0 and answer[last] not in stops:
            last -= 1
        if stops.isdisjoint(answer[:last]):  # the usual case, and quicker to see than the first to find
            return last + 1
        return next(index + 1 for index, token in enumerate(answer) if token in stops)
