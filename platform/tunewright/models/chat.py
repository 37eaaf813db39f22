"""Messages -> token ids and loss mask: the only renderer.

Data preparation, evaluation and serving all call this, so that the ids a model was trained on are
the ids it is asked with. A conversation is tokenized segment by segment, cut where an assistant's
turn begins and ends: no token spans a boundary, so a prompt's ids are always a prefix of the
training ids. Knows nothing of files, weights or Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant")

PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}Assistant: {{ message['content'] }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""Used for a tokenizer that brings no chat template: base models that were never taught one."""


@dataclass(frozen=True)
class Rendered:
    """One conversation as a model sees it; `loss_mask[i]` is 1 where `ids[i]` is to be learned."""

    ids: list[int]
    loss_mask: list[int]


class ChatRenderer:
    """Renders conversations with one tokenizer and one template.

    Args:
        tokenizer: a fast Hugging Face tokenizer with an end-of-sequence token.
        template: Jinja text used instead of the tokenizer's own.
        extra_stop_ids: end-of-turn tokens that the model's generation config adds.
    Raises:
        DataError: the tokenizer has no end-of-sequence token, so no answer could ever end.
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
        own = tokenizer.chat_template
        self.template: str = template or (own if isinstance(own, str) else None) or PLAIN_TEMPLATE
        self.stop_ids = frozenset({int(tokenizer.eos_token_id), *map(int, extra_stop_ids)})
        pad = tokenizer.pad_token_id
        self.pad_id = int(tokenizer.eos_token_id if pad is None else pad)
        # Llama 3 names its end of turn among the added tokens alone.
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        specials = dict.fromkeys([*tokenizer.all_special_tokens, *added])
        self._specials = tuple(token for token in specials if token.strip())

    @property
    def template_hash(self) -> str:
        """12 hexadecimal digits that identify the template."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:12]

    def conversation(self, messages: Sequence[Message]) -> Rendered:
        """Ids and loss mask of a conversation that ends with the assistant.

        Loss is on each assistant turn, its end-of-turn token included, and on nothing else.

        Raises:
            DataError: not a conversation, or one that the template cannot render with a mask.
        """
        if not messages or messages[-1].get("role") != "assistant":
            raise DataError("the conversation does not end with an assistant message")
        ids, mask, _ = self._segments(messages)
        return Rendered(ids, mask)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to and with the words that open the assistant's next turn."""
        if not messages or messages[-1].get("role") == "assistant":
            raise DataError("the last message must not be the assistant's: there is nothing to answer")
        ids, _, text = self._segments(messages)
        head = self._text(messages, open_turn=True)
        return ids + self._encode(self._after(head, text))

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, up to the first stop token."""
        kept = list(ids)
        for index, token in enumerate(kept):
            if token in self.stop_ids:
                kept = kept[:index]
                break
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def _segments(self, messages: Sequence[Message]) -> tuple[list[int], list[int], str]:
        """Ids and mask up to the end of the last assistant turn, and the text they stand for."""
        self._check(messages)
        ids: list[int] = []
        mask: list[int] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            head = self._text(messages[:index], open_turn=True)
            full = self._text(messages[: index + 1], open_turn=False)
            prompt = self._encode(self._after(head, done))
            answer = self._encode(self._after(full, head))
            learned = next((i + 1 for i, t in enumerate(answer) if t in self.stop_ids), None)
            if learned is None:  # a template that never ends a turn would never teach it
                answer.append(int(self.tokenizer.eos_token_id))
                learned = len(answer)
            ids += prompt + answer
            mask += [0] * len(prompt) + [1] * learned + [0] * (len(answer) - learned)
            done = full
        return ids, mask, done

    def _check(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in ROLES:
                raise DataError(f"message {index} has role {role!r}; expected one of {', '.join(ROLES)}")
            if not isinstance(content, str) or not content.strip():
                raise DataError(f"message {index} ({role}) has no text")
            if index and role == "system":
                raise DataError(f"message {index} is a system message; only the first may be")
            for token in self._specials:
                if token in content:
                    raise DataError(f"message {index} ({role}) contains the special token {token}")

    def _text(self, messages: Sequence[Message], open_turn: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=open_turn,
                )
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error

    @staticmethod
    def _after(text: str, start: str) -> str:
        if not text.startswith(start):
            raise DataError(
                "the chat template rewrites earlier turns when later ones follow; "
                "no exact loss mask can be made for this conversation"
            )
        return text[len(start) :]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
