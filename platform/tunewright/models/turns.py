"""A conversation's text, cut where each of the assistant's turns begins and ends.

The definition: turn i begins where the text of messages[:i] with the generation prompt ends, and
ends where the text of messages[:i+1] ends. Rendering every such prefix takes time that grows with
the square of the conversation's length, so templates that provably write as they go are rendered
once (see `online`). Both ways give the same turns; the first conversations are cut in both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tunewright.errors import DataError, ModelError
from tunewright.models.sandbox import Message, Template, Walked

CHECKED = 32
"""Conversations of a process that are cut in both ways."""

log = logging.getLogger(__name__)


class NotCut(DataError):
    """No one text holds every turn as the model is asked for it."""


class TurnCutter:
    """Cuts conversations with one template."""

    def __init__(self, template: Template):
        self.template = template
        self._opening: str | None = None
        self._unchecked = CHECKED
        if template.not_online:
            log.debug("chat template is rendered for each turn", extra={"reason": template.not_online})

    def cut(self, messages: Sequence[Message], tools: Any, open_turn: bool = False) -> list[str]:
        """The text in pieces: what comes before the first turn, the turn, what comes before the second...

        The words that open a turn are the last of what comes before it; what ends it belongs to it. With
        `open_turn` the last piece is what comes before the turn that is asked for.

        Raises:
            NotCut: the template changes earlier turns when later ones follow, or does not begin answers
                as it asks for them.
            DataError: the template refuses the conversation.
            ModelError: the two ways disagree, which would be an error of ours.
        """
        walked = None if self.template.not_online else self.template.walk(messages, tools, open_turn=False)
        fast = None if walked is None else self._from_walk(messages, tools, walked, open_turn)
        if walked is None or fast is None:
            return self.cut_by_prefixes(messages, tools, open_turn)
        if self._unchecked > 0:
            self._unchecked -= 1
            self._check(fast, messages, tools, open_turn, walked.closing)
        return fast

    def cut_by_prefixes(
        self, messages: Sequence[Message], tools: Any, open_turn: bool = False, closing: str = ""
    ) -> list[str]:
        """As `cut`, by rendering every prefix; `closing` is what any finished text ends with."""
        text, last = self.template.text, len(messages) - 1
        pieces: list[str] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            head = text(messages[:index], tools, open_turn=True)
            full = text(messages[: index + 1], tools, open_turn=False)
            if index != last or open_turn:
                full = full.removesuffix(closing)
            pieces += _after(done, head), _answer(head, full)
            done = full
        if open_turn:
            pieces.append(_after(done, text(messages, tools, open_turn=True)))
        return pieces

    def answer_alone(self, messages: Sequence[Message], tools: Any) -> str:
        """The text of the last message, the assistant's, after the words that open it.

        Raises:
            NotCut: the answer does not begin as the template asks for it.
        """
        head = self.template.text(messages[:-1], tools, open_turn=True)
        return _answer(head, self.template.text(messages, tools, open_turn=False))

    def _from_walk(
        self, messages: Sequence[Message], tools: Any, walked: Walked, open_turn: bool
    ) -> list[str] | None:
        """The same from a text whose parts are known; None where only prefixes can tell what is wrong."""
        parts, marks, start = walked.parts, walked.marks, walked.start
        opening = self._opening
        if opening is None:
            opened = self.template.walk(messages, tools, open_turn=True)
            assert opened is not None, "what is written before the loop ends does not see the flag"
            self._opening = opening = opened.closing
        pieces: list[str] = []
        done = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if index < start:
                return None
            begin, end = marks[index - start], marks[index - start + 1]
            said = "".join(parts[begin:end])
            if not said.startswith(opening):
                return None
            pieces += "".join(parts[done:begin]) + opening, said[len(opening) :]
            done = end
        if open_turn:
            pieces.append("".join(parts[done : marks[-1]]) + opening)
        elif pieces and walked.closing:
            pieces[-1] += walked.closing
        return pieces

    def _check(self, fast: list[str], *conversation: Any) -> None:
        try:
            if fast == self.cut_by_prefixes(*conversation):
                return
        except NotCut:
            pass
        raise ModelError(
            "the turns of a conversation were cut in two ways that disagree: Tunewright misjudges this "
            "chat template. Please report it with the template; another data.chat_template avoids it"
        )


def _after(done: str, head: str) -> str:
    if not head.startswith(done):
        raise NotCut(
            "the chat template rewrites earlier turns when later ones follow; "
            "no exact loss mask can be made for this conversation"
        )
    return head[len(done) :]


def _answer(head: str, full: str) -> str:
    if not full.startswith(head):
        raise NotCut(
            "the chat template does not go on, when it writes an answer, from the words with which it asks "
            f"for one (...{head[-40:]!r}); no exact loss mask can be made for this conversation"
        )
    return full[len(head) :]
