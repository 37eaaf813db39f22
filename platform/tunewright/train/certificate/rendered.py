"""Entry 7: the ids in the training rows are those that serving makes of the same conversations.

Serving's side is the renderer of the tokenizer folder that the trained artifact ships. Training's side are
packed rows; the data stage keeps the evaluation rows' examples as they were before they were tokenized. Where
there are none, the text of training documents is tokenized again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.artifacts import MANIFEST, read_json
from tunewright.config import DataConfig
from tunewright.config.data import Loss, Pack
from tunewright.data.dataset import cipher_of
from tunewright.data.encode import Encoder
from tunewright.data.records import from_payload
from tunewright.data.rows import Document, Example
from tunewright.data.tables import read_table
from tunewright.errors import DataError
from tunewright.models.segments import SegmentEncoder
from tunewright.train.certificate.entry import Entry
from tunewright.train.certificate.sample import Subject, segments_of, spread
from tunewright.train.streams import RowSource

if TYPE_CHECKING:
    from tunewright.models.chat import ChatRenderer

CONVERSATIONS = 50
ROWS_AT_ONCE = 64
EDGE = 4
"""Tokens at the ends of a piece of text that may be others when the piece is tokenized alone."""
MOST_OTHERWISE = 0.5
"""Share of documents, tokenized again from their text, that may become other ids; another tokenizer changes
nearly all."""
CHANGED = ("truncated", "split")
"""Notes of examples whose prompt is not the whole of what was asked."""
Key = tuple[bytes, bytes]


@dataclass
class Compared:
    """Serving's ids against training's.

    Attributes:
        missing: examples of which a document is not among the rows.
        prompts: what serving would ask the model; `other_prompts` of them do not begin a document whose
            answer carries loss right behind them.
        again: no examples, but the text of training documents, `otherwise` of which become other ids.
        first: what is wrong with the first one that is.
    """

    examples: int = 0
    documents: int = 0
    missing: int = 0
    prompts: int = 0
    other_prompts: int = 0
    again: bool = False
    otherwise: int = 0
    first: str = ""

    def found(self, problem: str) -> None:
        self.first = self.first or problem


@dataclass
class Sought:
    """An example as serving renders it."""

    example: Example
    documents: list[Key]
    notes: Sequence[str]
    problem: str = ""


def rendered_entry(subjects: Sequence[Subject], renderer: ChatRenderer) -> Entry:
    """Whether serving's renderer makes the ids that are in the rows, for up to 50 examples of each task."""
    total = Compared()
    sentences = []
    for subject in subjects:
        examples = list(_examples(subject.folder))
        compared = _compare(subject, examples, renderer) if examples else _again(subject, renderer)
        for name in ("examples", "documents", "missing", "prompts", "other_prompts", "otherwise"):
            setattr(total, name, getattr(total, name) + getattr(compared, name))
        if compared.first:
            total.found(subject.told + compared.first)
        sentences.append(f"{subject.told}{_sentence(subject, compared)}")
    measured = {
        "examples": total.examples,
        "documents": total.documents,
        "examples_that_differ": total.missing,
        "prompts": total.prompts,
        "prompts_that_differ": total.other_prompts,
        "tokenized_otherwise": total.otherwise,
        "template": renderer.template_hash,
    }
    tolerance = {"examples_that_differ": 0.0, "prompts_that_differ": 0.0}
    if not total.examples:
        said = "the data set has no evaluation rows (data.split.eval), and its tokens do not keep their text"
        return Entry(7, None, said, measured)
    if total.first:
        said = (
            f"serving would not ask in the ids that were trained on: {total.first}. The tokenizer or chat "
            f"template is not the one that the data was prepared with; prepare it again"
        )
        return Entry(7, False, said, measured, tolerance)
    return Entry(7, True, "; ".join(sentences), measured, tolerance)


def _sentence(subject: Subject, compared: Compared) -> str:
    if compared.again:
        same = compared.examples - compared.otherwise
        return f"the text of {same} of {compared.examples} training documents becomes the same ids again"
    what = {"conversation": "conversations", "text": "texts"}.get(subject.rows_of, "examples")
    prompts = f", and its {compared.prompts} prompts begin them" if compared.prompts else ""
    return f"serving renders {compared.examples} {what} to the ids that are in the rows{prompts}"


def _examples(folder: Path) -> Iterator[Example]:
    """The first examples that the data stage kept."""
    cipher, left = cipher_of(folder), CONVERSATIONS
    for path in sorted((folder / "examples").glob("examples-*.parquet")):
        for text in read_table(path, cipher=cipher).column("example").to_pylist()[:left]:
            left -= 1
            yield from_payload(text)
        if not left:
            return


def _compare(subject: Subject, examples: Sequence[Example], renderer: ChatRenderer) -> Compared:
    settings = read_json(subject.folder / MANIFEST)["config"]
    config = DataConfig.model_construct(
        sources=(), pack=Pack.model_validate(settings["pack"]), loss=Loss.model_validate(settings["loss"])
    )
    compared = Compared()
    sought = []
    for example in examples:
        encoded = Encoder(renderer, config, example.task).encode([example])[0]
        if isinstance(encoded, DataError):
            sought.append(Sought(example, [], (), f"an example cannot be rendered: {encoded}"))
            continue
        keys = [key for document in encoded.documents for key in _keys(document)]
        sought.append(Sought(example, keys, encoded.notes))
        _check_prompts(example, encoded.documents, encoded.notes, config, renderer, compared)
    wanted = {key for one in sought for key in one.documents}
    there = _present(subject.stream.eval_rows, wanted)
    for one in sought:
        compared.examples += 1
        compared.documents += len(one.documents)
        if one.problem or not there.issuperset(one.documents):
            compared.missing += 1
            compared.found(one.problem or "an example becomes other ids, or has its loss elsewhere")
    return compared


def _again(subject: Subject, renderer: ChatRenderer) -> Compared:
    """The text of training documents, tokenized again stretch by stretch of loss and no loss.

    A tokenizer that does not give the text back, such as one that drops spaces, shows nothing.
    """
    encoder, compared = SegmentEncoder(renderer.tokenizer, ()), Compared(again=True)
    rows = subject.stream.rows
    for index in spread(len(rows), CONVERSATIONS):
        taken = rows.take([index])
        for at in segments_of(taken["segment_ids"][0])[:1]:
            ids, mask = taken["input_ids"][0, at].tolist(), taken["loss_mask"][0, at]
            bounds = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
            texts = [_text(renderer, ids[begin:end]) for begin, end in pairwise(bounds)]
            again = [token for part in encoder.encode(texts) for token in part]
            if _text(renderer, again) != "".join(texts):
                continue
            # A piece of a longer text may begin inside a word, and end there if it fills its row.
            inside = slice(EDGE, -EDGE) if subject.rows_of == "text" else slice(None)
            compared.examples += 1
            compared.documents += 1
            compared.otherwise += not _contains(again, ids[inside])
    # A few may be: some templates tokenize a stretch in smaller pieces than it is cut in here.
    if compared.otherwise > MOST_OTHERWISE * compared.examples:
        compared.missing = compared.otherwise
        compared.found("the text of training documents becomes other ids when it is tokenized again")
    return compared


def _text(renderer: ChatRenderer, ids: Sequence[int]) -> str:
    text = renderer.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def _contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether the part stands in the ids, give or take `EDGE` tokens of where it should."""
    return any(list(ids[at : at + len(part)]) == list(part) for at in range(2 * EDGE + 1))


def _keys(document: Document) -> Iterator[Key]:
    """Ids and loss of each part of a document that stands in rows as a segment of its own."""
    at = 0
    for length in document.segments or (len(document.ids),):
        part = slice(at, at + length)
        yield (
            document.ids[part].astype(np.int32).tobytes(),
            document.loss_mask[part].astype(np.int8).tobytes(),
        )
        at += length


def _present(rows: RowSource, wanted: set[Key]) -> set[Key]:
    """Those of the documents that are in the rows; looks no further once all are found."""
    found: set[Key] = set()
    for first in range(0, len(rows), ROWS_AT_ONCE):
        taken = rows.take(range(first, min(first + ROWS_AT_ONCE, len(rows))))
        for row, segments_S in enumerate(taken["segment_ids"]):
            for at in segments_of(segments_S):
                ids, mask = taken["input_ids"][row, at], taken["loss_mask"][row, at]
                key = ids.astype(np.int32).tobytes(), mask.astype(np.int8).tobytes()
                if key in wanted:
                    found.add(key)
        if found == wanted:
            break
    return found


def _check_prompts(
    example: Example,
    documents: Sequence[Document],
    notes: Sequence[str],
    config: DataConfig,
    renderer: ChatRenderer,
    compared: Compared,
) -> None:
    """What serving asks before each answer must be how a document begins, with loss right behind it."""
    if set(notes) & set(CHANGED):
        return
    segments = [key for document in documents for key in _keys(document)]
    for messages in _asked(example, config, renderer):
        compared.prompts += 1
        try:
            prompt = renderer.prompt(messages, example.content.get("tools"))
        except DataError as error:
            compared.other_prompts += 1
            compared.found(f"a prompt cannot be rendered: {error}")
            continue
        ids = np.array(prompt, np.int32).tobytes()
        if not any(
            known.startswith(ids) and mask[len(prompt) : len(prompt) + 1] == b"\1" for known, mask in segments
        ):
            compared.other_prompts += 1
            compared.found("a prompt becomes other ids than those in front of the answer that was learned")


def _asked(example: Example, config: DataConfig, renderer: ChatRenderer) -> Iterator[list[dict[str, Any]]]:
    """The messages in front of each answer that carries loss."""
    content = example.content
    if example.task == "preference":
        yield content["messages"]
    elif example.task == "kto":
        yield content["messages"][:-1]
    elif example.task == "conversation":
        for index in renderer.supervised(content["messages"], config.loss.turns):
            if content["messages"][index - 1]["role"] != "assistant":  # else it goes on, and was not asked
                yield content["messages"][:index]
