"""Texts, texts with a class and words with tags -> documents. Knows a tokenizer and nothing of chats.

All stand between the tokenizer's begin and end tokens.

    text            every token carries loss; a long text becomes pieces of `seq_len` tokens
    classification  the class stands at the last token, which has seen the whole text
    tags            a word's tag stands at the word's first token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.config.data import Pack
from tunewright.data.rows import NO_LABEL, Document, Encoded
from tunewright.errors import DataError
from tunewright.models.segments import SegmentEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Content = dict[str, Any]
Offsets = Sequence[tuple[int, int]]
"""First character and last character + 1 of each token."""


def too_long(tokens: int, seq_len: int) -> str:
    return f"{tokens} tokens do not fit a row of seq_len={seq_len}"


class TextEncoder:
    """Encodes texts with one tokenizer; `label_names` grows with the classes that are met."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pack: Pack):
        self.tokenizer, self.pack = tokenizer, pack
        self.label_names: list[str] = []
        self._numbers: dict[str, int] = {}
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._begin: list[int] = [] if begin in (None, end) else [int(begin)]
        self._end: list[int] = [int(end)]
        self._segments = SegmentEncoder(tokenizer, ())
        self._room = pack.seq_len - len(self._begin) - len(self._end)

    def texts(self, contents: Sequence[Content]) -> list[Encoded | DataError]:
        size = self.pack.seq_len

        def encode(content: Content, ids: list[int], _: Offsets) -> Encoded:
            ids = [*self._begin, *ids, *self._end]
            pieces = [np.array(ids[at : at + size], np.int32) for at in range(0, len(ids), size)]
            documents = [Document(piece, np.ones(len(piece), np.int8)) for piece in pieces]
            return Encoded(documents, ("split",) if len(documents) > 1 else ())

        return self._each(contents, _texts(contents), encode)

    def classified(self, contents: Sequence[Content]) -> list[Encoded | DataError]:
        """Under `truncate_prompt` a long text keeps its beginning."""

        def encode(content: Content, ids: list[int], _: Offsets) -> Encoded:
            notes: tuple[str, ...] = ()
            if len(ids) > self._room:
                if self.pack.overflow != "truncate_prompt":
                    raise self._too_long(len(ids), split="a text with one class is not split")
                ids, notes = ids[: self._room], ("truncated",)
            whole = np.array([*self._begin, *ids, *self._end], np.int32)
            labels = np.full(len(whole), NO_LABEL, np.int32)
            labels[-1] = self._number(content["label"])
            mask = np.zeros(len(whole), np.int8)
            mask[-1] = 1
            return Encoded([Document(whole, mask, labels)], notes)

        return self._each(contents, _texts(contents), encode)

    def tagged(self, contents: Sequence[Content]) -> list[Encoded | DataError]:
        """Words are tokenized as the text that they make with single spaces between them.

        Under `split` a long text becomes several documents, cut between words and inside no entity.
        """

        def encode(content: Content, ids: list[int], offsets: Offsets) -> Encoded:
            return self._tagged(ids, first_tokens(offsets, content["tokens"]), content["tags"])

        texts = [" ".join(content["tokens"]) for content in contents]
        return self._each(contents, texts, encode, offsets=True)

    def _tagged(self, ids: list[int], starts: list[int], tags: list[str]) -> Encoded:
        if len(ids) <= self._room:
            return Encoded([self._words(ids, starts, tags)])
        if self.pack.overflow != "split":
            raise self._too_long(len(ids), truncate_prompt="words with tags are not cut off")
        documents = []
        ranges = split_words(starts, len(ids), tags, self._room)
        if not ranges:
            raise self._too_long(len(ids), split="an entity alone is longer than that")
        for first, last in ranges:
            begin = starts[first] if first else 0
            end = starts[last] if last < len(starts) else len(ids)
            own = [start - begin for start in starts[first:last]]
            documents.append(self._words(ids[begin:end], own, tags[first:last]))
        return Encoded(documents, ("split",))

    def _words(self, ids: list[int], starts: list[int], tags: list[str]) -> Document:
        whole = np.array([*self._begin, *ids, *self._end], np.int32)
        labels = np.full(len(whole), NO_LABEL, np.int32)
        labels[np.array(starts) + len(self._begin)] = [self._number(tag) for tag in tags]
        return Document(whole, (labels != NO_LABEL).astype(np.int8), labels)

    def _each(
        self,
        contents: Sequence[Content],
        texts: Sequence[str],
        encode: Callable[[Content, list[int], Offsets], Encoded],
        offsets: bool = False,
    ) -> list[Encoded | DataError]:
        """`encode` of each content and the ids of its text, tokenized together."""
        if not contents:
            return []
        problems = [_problem(text) for text in texts]
        usable = ["" if problem else text for text, problem in zip(texts, problems, strict=True)]
        all_ids, places = self._with_offsets(usable) if offsets else (self._segments.encode(usable), None)
        out: list[Encoded | DataError] = []
        rows = zip(contents, problems, all_ids, places or [()] * len(texts), strict=True)
        for content, problem, ids, own in rows:
            try:
                if problem or not ids:
                    raise DataError(problem or "the text has no token with this tokenizer")
                out.append(encode(content, ids, own))
            except DataError as error:
                out.append(error)
        return out

    def _with_offsets(self, texts: list[str]) -> tuple[list[list[int]], list[Offsets]]:
        found = self.tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return found["input_ids"], found["offset_mapping"]

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.label_names)
            self.label_names.append(name)
        return number

    def _too_long(self, tokens: int, **why_not: str) -> DataError:
        """The refusal of a text; `why_not` says of a policy why it is no help here."""
        more = why_not.get(self.pack.overflow)
        problem = too_long(tokens + self.pack.seq_len - self._room, self.pack.seq_len)
        return DataError(f"{problem}; {more}" if more else problem)


def first_tokens(offsets: Offsets, words: Sequence[str]) -> list[int]:
    """Index of the token in which each word of `" ".join(words)` begins.

    "my cats" as my| ca|ts: offsets [(0, 2), (2, 5), (5, 7)], words ["my", "cats"]  ->  [0, 1]

    Raises:
        DataError: a word is blank, or has no token of its own: the tokenizer drops it, or joins it to
            the word before it, so its tag would have no place.
    """
    starts: list[int] = []
    at = index = 0
    for number, word in enumerate(words):
        text = word.lstrip()
        if not text:
            raise DataError(f"word {number} is blank after normalising")
        begin = at + len(word) - len(text)
        while index < len(offsets) and offsets[index][1] <= begin:
            index += 1
        if index == len(offsets) or offsets[index][0] > begin or starts[-1:] == [index]:
            raise DataError(f"word {number} has no token of its own with this tokenizer")
        starts.append(index)
        at += len(word) + 1
    return starts


def split_words(starts: Sequence[int], tokens: int, tags: Sequence[str], room: int) -> list[tuple[int, int]]:
    """Ranges of words (first, last + 1), each of at most `room` tokens, the fewest that there can be.

    No range begins with an `I-` tag: an entity stays whole. Empty if one alone is longer than `room`.
    """
    ends = [*starts[1:], tokens]
    cuts = [number for number in range(1, len(tags)) if not tags[number].startswith("I-")] + [len(tags)]
    ranges: list[tuple[int, int]] = []
    first, last = 0, None
    for cut in cuts:
        begin = starts[first] if first else 0
        if ends[cut - 1] - begin > room:
            if last is None or ends[cut - 1] - starts[last] > room:
                return []
            ranges.append((first, last))
            first = last
        last = cut
    return [*ranges, (first, len(tags))]


def _texts(contents: Sequence[Content]) -> list[str]:
    return [content["text"] for content in contents]


def _problem(text: str) -> str:
    """Why a text cannot be tokenized; empty if it can."""
    if not text or text.isspace():
        return "nothing is left of the text after normalising"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "the text holds half of a surrogate pair, which is no character"
    return ""
