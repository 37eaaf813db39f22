"""What a template and a tokenizer are like, found out once by trying them on small conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.errors import DataError
from tunewright.models.sandbox import MARKS, Message, Template
from tunewright.models.templates import named_template, needed_tokens
from tunewright.models.turns import TurnCutter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION: Message = {"role": "user", "content": "Where is Oslo?"}
ANSWER: Message = {"role": "assistant", "content": "In Norway, of course."}


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own chat template; `plain` where it was never given one.

    Raises:
        DataError: it has several, and none is the default.
    """
    own: Any = tokenizer.chat_template
    if isinstance(own, dict):
        if "default" not in own:
            raise DataError(
                f"the tokenizer has the chat templates {', '.join(own)} and none named `default`; "
                "choose one as data.chat_template"
            )
        own = own["default"]
    return own or named_template("plain")


def check_tokens(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `DataError` when the tokenizer lacks tokens that the template says it writes."""
    missing = [
        token
        for token in needed_tokens(template)
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1
    ]
    if missing:
        raise DataError(
            f"the chat template needs the tokens {' '.join(missing)}, which the tokenizer does not have; "
            "choose a template without them (plain, zephyr, mistral), or a base that knows them"
        )


def end_of_turn(cutter: TurnCutter, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The added token with which the template ends an answer; None if it uses words or nothing."""
    for messages, answers in _cut_probes(cutter):
        after = answers[-1].partition(str(messages[-1]["content"]))[2]
        ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after.strip() else []
        return next((int(i) for i in ids if int(i) in tokenizer.added_tokens_decoder), None)
    return None


def check_generation_blocks(cutter: TurnCutter, special_tokens: Sequence[str]) -> None:
    """Raises `DataError` when `{% generation %}` marks other words than those the model is asked for.

    Blanks and special tokens may differ: the end of a turn always carries loss here, whatever is marked.
    """
    if not cutter.template.marks_answers:
        return
    ignored = re.compile("|".join([r"\s", *map(re.escape, special_tokens)]))
    for messages, answers in _cut_probes(cutter):
        text = cutter.template.text(messages, None, open_turn=False, marks=True)
        marked = re.findall(f"{MARKS[0]}(.*?){MARKS[1]}", text, re.DOTALL)
        if [ignored.sub("", m) for m in marked] != [ignored.sub("", a) for a in answers]:
            raise DataError(
                f"the chat template marks {marked!r} as the assistant's words ({{% generation %}}), but "
                f"those that follow its generation prompt are {answers!r}; correct the template or "
                "remove the marks"
            )


def wants_text_arguments(template: Template) -> bool:
    """Whether the template takes a tool call's arguments as JSON text and not as an object."""
    return (
        template.names("tool_calls")
        and not _shows_json(template, {"city": "Oslo"})
        and _shows_json(template, '{"city": "Oslo"}')
    )


def _shows_json(template: Template, arguments: Any) -> bool:
    call = {"id": "call00001", "type": "function", "function": {"name": "find", "arguments": arguments}}
    messages: list[Message] = [QUESTION, {"role": "assistant", "tool_calls": [call]}]
    messages += [{"role": "tool", "name": "find", "tool_call_id": "call00001", "content": "north"}, ANSWER]
    try:
        return '"city"' in template.text(messages, None, open_turn=False)
    except DataError:
        return False


def _cut_probes(cutter: TurnCutter) -> Iterator[tuple[list[Message], list[str]]]:
    """Conversations of one and of two turns with their answers, as far as the template renders them."""
    for messages in ([QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION, ANSWER]):
        try:
            pieces = cutter.cut(messages, None)
        except DataError:
            continue
        yield messages, pieces[1::2]
