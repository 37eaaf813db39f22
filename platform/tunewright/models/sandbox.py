"""Chat templates, compiled: Jinja in its sandbox, with what Hugging Face's templates expect to find.

The same template, messages and tools give the same text, on every day and machine: `strftime_now`
answers with one fixed date, and Jinja's random filter and text generator are not there. Knows
nothing of tokens or of what a conversation may hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tunewright.errors import DataError
from tunewright.models.online import why_not_online

Message = Mapping[str, Any]

PINNED_DATE = datetime(2024, 7, 26)
"""What `strftime_now` tells a template: the date that Llama 3.1's own falls back to. A template that
wrote today's date would make other data of the same rows every day."""

MARKS = ("\ue0f0", "\ue0f1")
"""Characters of the private area put around `{% generation %}` blocks when they are asked for."""

_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
_LOOKS_AHEAD = frozenset({"last", "nextitem", "length", "revindex", "revindex0"})
_DICT_ATTRIBUTES = frozenset(dir(dict))


@dataclass
class Walk:
    """Messages as a template's loop sees them, noting what had been written when each was fetched.

    What was written before message k was fetched cannot depend on it or on later ones, unless the
    template looked ahead: at the number of messages, or at one that the loop had not come to.
    """

    messages: Sequence[Message]
    parts: list[str]
    """What was written so far."""
    marks: list[int] = field(default_factory=list)
    """`len(parts)` when each message was fetched, and when there were no more."""
    notes: dict[str, int] = field(default_factory=lambda: {"ahead": 0, "start": 0})
    start: int = 0

    def __iter__(self) -> Iterator[Message]:
        self.notes["start"] = self.start
        marks, parts = self.marks, self.parts
        for message in self.messages[self.start :] if self.start else self.messages:
            marks.append(len(parts))
            yield message
        marks.append(len(parts))

    def __bool__(self) -> bool:
        # A conversation with an answer in it holds a message before the answer.
        return self.start == 0 or len(self) > 0

    def __len__(self) -> int:
        self.notes["ahead"] = 1
        return len(self.messages) - self.start

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            if index.stop is None and index.step is None and isinstance(index.start or 0, int):
                skipped = index.start or 0
                if skipped >= 0:
                    return Walk(self.messages, self.parts, self.marks, self.notes, self.start + skipped)
            self.notes["ahead"] = 1
            return list(self.messages[self.start :])[index]
        if not isinstance(index, int):
            self.notes["ahead"] = 1
            raise LookupError(index)
        # Message 0 is in every prompt; the others once the loop has come to them.
        if not 0 <= index + self.start <= max(0, self.notes["start"] + len(self.marks) - 1):
            self.notes["ahead"] = 1
        return self.messages[self.start :][index] if index < 0 else self.messages[self.start + index]


@dataclass(frozen=True)
class Walked:
    """A text in the pieces in which it was written."""

    parts: list[str]
    marks: list[int]
    """Where each message's pieces begin, from message `start` on, and where the last one's end."""
    start: int

    def said(self, index: int) -> str:
        """The text of message `index`, with the words around it."""
        at = index - self.start
        return "".join(self.parts[self.marks[at] : self.marks[at + 1]])

    @property
    def closing(self) -> str:
        """What follows the last message's text."""
        return "".join(self.parts[self.marks[-1] :])


class Template:
    """A compiled chat template.

    Args:
        source: Jinja text.
        variables: what it can name besides messages and tools: `bos_token`, `eos_token`...
    Raises:
        DataError: the text is not a template.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]):
        self.source, self.variables = source, dict(variables)
        environment = _Sandbox()
        try:
            self._compiled = environment.from_string(source)
            tree = environment.parse(source)
        except (*_FAILURES, AssertionError) as error:
            raise DataError(f"the chat template cannot be compiled: {error}") from error
        self.not_online = why_not_online(tree)
        """Why a conversation cannot be cut into turns while it is rendered once; empty if it can."""
        self._words = {
            str(word)
            for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Const))
            for word in [
                getattr(node, "name", None),
                getattr(node, "attr", None),
                getattr(node, "value", None),
            ]
        }
        self.marks_answers = any(
            call.name == "_generation_span" for call in tree.find_all(nodes.ExtensionAttribute)
        )

    def names(self, word: str) -> bool:
        """Whether the template speaks of a variable, field or text of this name."""
        return word in self._words

    def text(self, messages: Sequence[Message], tools: Any, open_turn: bool, marks: bool = False) -> str:
        """The text of a conversation; `open_turn`: with the words that open the assistant's next turn.

        Raises:
            DataError: the template refuses the conversation, with its reason.
        """
        return "".join(self._pieces(messages, tools, open_turn, marks))

    def walk(self, messages: Sequence[Message], tools: Any, open_turn: bool) -> Walked | None:
        """The same text in pieces; None if the template failed, or looked ahead so that nothing is proved."""
        parts: list[str] = []
        walk = Walk(messages, parts)
        try:
            for piece in self._pieces(walk, tools, open_turn):
                parts.append(piece)  # `walk` looks at the list while it grows
        except DataError:
            return None  # the reason is to speak of the messages themselves: `text` will tell it
        start = walk.notes["start"]
        if walk.notes["ahead"] or len(walk.marks) != len(messages) - start + 1:
            return None
        return Walked(parts, walk.marks, start)

    def _pieces(self, messages: Any, tools: Any, open_turn: bool, marks: bool = False) -> Iterator[str]:
        try:
            yield from self._compiled.generate(
                self.variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=open_turn,
                _generation_marks=marks,
            )
        except _FAILURES as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error


class _Sandbox(ImmutableSandboxedEnvironment):
    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols])
        self.filters["tojson"] = _tojson
        del self.filters["random"], self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=PINNED_DATE.strftime,
            dict=_Dict(),
            namespace=_Namespace,
        )

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            # As below, without an exception raised and caught for each field of each message.
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in _LOOKS_AHEAD and isinstance(obj, LoopContext):
            _ = obj.length  # asks a `Walk` for its length, so that it knows
        return super().getattr(obj, attribute)


class _GenerationBlocks(Extension):
    """`{% generation %}`: where a template says that the assistant speaks."""

    tags = {"generation"}  # noqa: RUF012 - as in jinja2

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_generation_span", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @staticmethod
    def _generation_span(context: Context, caller: Any) -> str:
        text = str(caller())
        return f"{MARKS[0]}{text}{MARKS[1]}" if context["_generation_marks"] else text


class _Dict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` that keeps no names of Python's own making."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _refuse_private(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise TemplateError(f"a namespace cannot keep {name!r}: the name begins with an underscore")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were taught it: without Jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
