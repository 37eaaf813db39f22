"""Token by token to text, of which nothing has to be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""


class TextStream:
    """The text of a growing answer: only what later tokens and stop strings cannot change.

    Args:
        decode: token ids -> text.
        stop: strings that end the answer; they and what follows are never given.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._known = 0  # ids before this one have been turned into text
        self._known_text = ""
        self._held = ""
        self.stopped = False
        """Whether a stop string has come."""

    def add(self, token: int) -> str:
        """The text that has become certain with one more token."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT):  # perhaps the first bytes of a character
            return ""
        return self._release(self._advance(text), final=False)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come; half a character is dropped."""
        text = self._decode(self._ids).rstrip(REPLACEMENT) if self._ids else ""
        return self._release(text[len(self._known_text) :], final=True)

    def _advance(self, text: str) -> str:
        """What `text` adds; then keep only the newest ids, as context for those to come.

        Some decoders strip the space before the first word of a text, so that the next ids alone
        could not be decoded; nor after ids that have no text, such as special tokens.
        """
        new = text[len(self._known_text) :]
        newest = self._ids[self._known :]
        newest_text = self._decode(newest)
        if newest_text:
            self._ids, text = newest, newest_text
        self._known, self._known_text = len(self._ids), text
        return new

    def _release(self, new: str, final: bool) -> str:
        """`new` after what is held, up to a stop string or what could become one."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`: ("abc", "bcd") -> 2."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
