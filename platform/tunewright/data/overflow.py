"""What becomes of a conversation with more tokens than a row holds. An answer is never cut."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tunewright.errors import DataError

if TYPE_CHECKING:
    from tunewright.models.chat import ChatRenderer, History, Rendered, Tools
    from tunewright.models.messages import Turns

Message = Mapping[str, Any]
Overflow = Literal["drop", "truncate_prompt", "split", "error"]
Render = Callable[[Sequence[Message]], "list[Rendered]"]


def fit(
    renderer: ChatRenderer,
    messages: Sequence[Message],
    tools: Tools,
    limit: int,
    policy: Overflow,
    turns: Turns = "all",
    history: History = "refuse",
) -> tuple[list[Rendered], str]:
    """Documents of at most `limit` tokens each, and what was done for it.

    An exchange is what stands between one question and the next: [user, assistant], or with tools
    [user, assistant, tool, assistant].

        drop, error       the conversation is refused; whether the run stops is the caller's affair
        truncate_prompt   the oldest exchanges go, answers included; if the last one alone is too long,
                          its question loses words from its start. The system message stays
        split             one document for as many consecutive exchanges as fit, from the last one
                          backwards, each with the system message; all of them or none

    A conversation of several documents (`history="expand"`) is truncated document by document.

    Args:
        limit: tokens of a row.
        turns: which of the assistant's turns carry loss. With `last`, `split` has one document.
    Returns:
        the documents, and "" | "expanded" | "truncated" | "split".
    Raises:
        DataError: it cannot be rendered, or cannot be made to fit.
    """

    def render(part: Sequence[Message]) -> list[Rendered]:
        return renderer.render(part, tools, turns, history)

    documents = render(messages)
    if _fits(documents, limit):
        return documents, "expanded" if len(documents) > 1 else ""
    if policy not in ("truncate_prompt", "split"):
        raise _too_long(documents, limit)
    learned = renderer.supervised(messages, turns)
    messages = messages[: learned[-1] + 1]  # nothing is learned of what follows
    if policy == "split":
        return _split(messages, render, limit, learned), "split"
    if len(documents) == 1:
        return _truncate(renderer, messages, render, limit), "truncated"

    def render_last(part: Sequence[Message]) -> list[Rendered]:
        return renderer.render(part, tools, "last", history)

    for number, index in enumerate(learned):
        if not _fits(documents[number : number + 1], limit):
            (documents[number],) = _truncate(renderer, messages[: index + 1], render_last, limit)
    return documents, "truncated"


def _fits(documents: Sequence[Rendered], limit: int) -> bool:
    return all(len(document.ids) <= limit for document in documents)


def _too_long(documents: Sequence[Rendered], limit: int, what: str = "") -> DataError:
    longest = max(len(document.ids) for document in documents)
    return DataError(f"{longest} tokens{what} do not fit a row of seq_len={limit}")


def _starts(messages: Sequence[Message]) -> tuple[list[Message], list[int]]:
    """The system message, if there is one, and where each exchange begins.

    A user's message begins one unless it follows another of the user.
    """
    system = [m for m in messages[:1] if m.get("role") in ("system", "developer")]
    roles = [message.get("role") for message in messages]
    return system, [
        index
        for index in range(len(system), len(roles))
        if roles[index] == "user" and (index == 0 or roles[index - 1] != "user")
    ]


def _truncate(
    renderer: ChatRenderer, messages: Sequence[Message], render: Render, limit: int
) -> list[Rendered]:
    """The conversation without its oldest exchanges; at the last, without the start of its question."""
    system, starts = _starts(messages)
    if not starts:
        raise _too_long(render(messages), limit, ", of which none is a question that could be shortened,")
    at = _first_that_fits(starts, lambda start: render([*system, *messages[start:]]), limit)
    if at < len(starts):
        return render([*system, *messages[starts[at] :]])
    last = list(messages[starts[-1] :])
    while len(last) > 1 and last[1].get("role") == "user":  # the question's earlier messages go first
        last = last[1:]
        documents = render([*system, *last])
        if _fits(documents, limit):
            return documents
    return _shorten(renderer, system, last, render, limit)


def _shorten(
    renderer: ChatRenderer, system: list[Message], exchange: list[Message], render: Render, limit: int
) -> list[Rendered]:
    """The exchange with as much of its question's end as fits, cut where a token begins."""
    question = str(exchange[0]["content"])
    offsets = renderer.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    cuts = sorted({int(start) for start, _ in offsets["offset_mapping"] if question[int(start) :].strip()})

    def render_from(cut: int) -> list[Rendered]:
        return render([*system, {**exchange[0], "content": question[cut:]}, *exchange[1:]])

    at = _first_that_fits(cuts, render_from, limit)
    if at == len(cuts):
        raise _too_long(
            render_from(cuts[-1]) if cuts else render([*system, *exchange]),
            limit,
            " of an answer and the last word of its question",
        )
    return render_from(cuts[at])


def _split(messages: Sequence[Message], render: Render, limit: int, learned: Sequence[int]) -> list[Rendered]:
    """Documents of consecutive exchanges, the earliest first; the last one reaches back farthest.

    Each ends with an exchange of which something is learned; those of which nothing is are context.
    """
    system, starts = _starts(messages)
    if not starts or starts[0] > len(system):
        starts = [len(system), *starts]  # what the assistant says before it is asked
    pieces: list[list[Rendered]] = []
    end = len(messages)
    while starts and learned[0] < end:
        stop = end
        if not any(starts[-1] <= index < end for index in learned):
            end = starts.pop()
            continue
        at = _first_that_fits(starts, lambda start: render([*system, *messages[start:stop]]), limit)  # noqa: B023
        if at == len(starts):
            raise _too_long(render([*system, *messages[starts[-1] : end]]), limit, " of a single exchange")
        pieces.append(render([*system, *messages[starts[at] : end]]))
        end, starts = starts[at], starts[:at]
    return [document for piece in reversed(pieces) for document in piece]


def _first_that_fits(starts: Sequence[int], render_from: Callable[[int], list[Rendered]], limit: int) -> int:
    """Index of the earliest start from which the rest fits; `len(starts)` if none does.

    A later start means fewer tokens, so half of the starts are ruled out by each look.
    """
    return bisect_left(starts, True, key=lambda start: _fits(render_from(start), limit))
