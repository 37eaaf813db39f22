"""A document as text: what the tokens say is exact, and so is which of them carry loss."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.decoded import described, token_lines
from tunewright.data.rows import NO_LABEL, Document

SHARED_MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@cache
def byte_tokenizer() -> Any:
    """Byte-level: most letters beyond ASCII are two tokens or more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "he", "ll", "hell", "Ġw"])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w")]
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@cache
def piece_tokenizer() -> Any:
    """As SentencePiece writes: `▁` for a space, bytes for unknown letters, the first space taken off."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehlorw.", "▁w", "or", "▁wor"]
    merges = [("▁", "w"), ("o", "r"), ("▁w", "or")]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", unk_token="<unk>")


TOKENIZERS = {"bytes": byte_tokenizer, "pieces": piece_tokenizer}


def document(ids: list[int], mask: list[int] | None = None, **more: Any) -> Document:
    values = np.array(mask if mask is not None else [0] * len(ids), np.int8)
    return Document(np.array(ids, np.int32), values, **more)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80)
@given(parts=st.lists(texts, max_size=4))
def test_token_texts_put_together_are_the_decoded_document(name: str, parts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = [token for part in parts for token in [*ids_of(tokenizer, part), tokenizer.eos_token_id]]
    lines = token_lines(tokenizer, document(ids))
    assert "".join(text for text, _ in lines) == decoded(tokenizer, ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80)
@given(data=st.data())
def test_any_ids_are_shown_exactly(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    lines = token_lines(tokenizer, document(ids))
    assert "".join(text for text, _ in lines) == decoded(tokenizer, ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80)
@given(question=texts, answer=texts.filter(bool))
def test_what_carries_loss_is_the_answer_and_nothing_else(name: str, question: str, answer: str) -> None:
    tokenizer = TOKENIZERS[name]()
    end = tokenizer.eos_token_id
    asked, answered = [*ids_of(tokenizer, question), end], [*ids_of(tokenizer, answer), end]
    mask = [0] * len(asked) + [1] * len(answered)
    lines = token_lines(tokenizer, document(asked + answered, mask))
    whole = decoded(tokenizer, asked + answered)
    learned = "".join(text for text, loss in lines if loss)
    assert learned == whole[len(decoded(tokenizer, asked)) :]
    assert learned.endswith("<|end|>")


def test_letters_of_several_tokens_stand_together_and_others_alone() -> None:
    tokenizer = byte_tokenizer()
    ids = ids_of(tokenizer, "hello wé 😀!")
    assert [text for text, _ in token_lines(tokenizer, document(ids))] == [
        *("hell", "o", " w", "é", " ", "😀", "!")
    ]
    tokenizer = piece_tokenizer()
    ids = ids_of(tokenizer, "world é")
    assert [text for text, _ in token_lines(tokenizer, document(ids))] == ["wor", "l", "d", " ", "é"]


def test_a_letter_cut_in_half_is_shown_as_the_decoder_shows_it() -> None:
    tokenizer = byte_tokenizer()
    half = ids_of(tokenizer, "é")[:1]
    ids = [*half, tokenizer.eos_token_id, *half]
    lines = token_lines(tokenizer, document(ids))
    assert "".join(text for text, _ in lines) == "\ufffd<|end|>\ufffd"


def test_an_empty_document_has_no_tokens() -> None:
    assert token_lines(byte_tokenizer(), document([])) == []


@pytest.mark.parametrize("folder", ["gpt2-tokenizer-hf", "stories260k-hf", "babyllama105-hf"])
def test_token_texts_of_real_tokenizers_are_exact(folder: str) -> None:
    if not (SHARED_MODELS / folder).is_dir():
        pytest.skip(f"no shared model {folder}")
    from tunewright.models.load import load_tokenizer

    tokenizer = load_tokenizer(SHARED_MODELS / folder)
    text = "Hello, wörld!\n\n  12 naïve 😀😀 日本語 \t<s> don't  "
    ids = [*ids_of(tokenizer, text), *(i for i in [tokenizer.eos_token_id] if i is not None)]
    lines = token_lines(tokenizer, document(ids * 2))
    assert "".join(text for text, _ in lines) == decoded(tokenizer, ids * 2)
    assert len(lines) > len(ids), "tokens are told apart"


def test_answers_that_teach_an_end_are_counted() -> None:
    tokenizer = byte_tokenizer()
    end, a = tokenizer.eos_token_id, ids_of(tokenizer, "a")[0]
    ids = [a, a, end, a, a, a, end]
    shown = described(tokenizer, document(ids, [0, 1, 1, 0, 1, 1, 0]), "conversation", {end})
    assert (shown["tokens"], shown["supervised"], shown["answers"], shown["ended"]) == (7, 4, 2, 1)
    assert shown["end_token"] == "<|end|>"
    never = described(tokenizer, document([a, a], [0, 1]), "conversation", {end})
    assert (never["answers"], never["ended"], never["end_token"]) == (1, 0, None)


def test_a_pair_is_shown_as_chosen_and_rejected() -> None:
    tokenizer = byte_tokenizer()
    end, (a, b) = tokenizer.eos_token_id, ids_of(tokenizer, "ab")
    pair = document([a, b, end, a, end], [0, 1, 1, 1, 1], segments=(3, 2))
    shown = described(tokenizer, pair, "preference", {end})
    assert [part["name"] for part in shown["parts"]] == ["chosen", "rejected"]
    assert ["".join(t["text"] for t in part["tokens"]) for part in shown["parts"]] == [
        "ab<|end|>",
        "a<|end|>",
    ]
    assert (shown["answers"], shown["ended"]) == (2, 2), "one part's answer does not go on into the next"


@pytest.mark.parametrize(
    ("task", "said"), [("kto", "undesirable"), ("tags", "B-person"), ("classification", "B-person")]
)
def test_labels_stand_at_their_tokens_by_name(task: Any, said: str) -> None:
    tokenizer = byte_tokenizer()
    ids = ids_of(tokenizer, "aé")
    labels = np.array([NO_LABEL, 0, NO_LABEL], np.int32)
    shown = described(tokenizer, document(ids, [0, 1, 0], labels=labels), task, set(), ["B-person", "O"])
    assert shown["parts"][0]["tokens"] == [
        {"text": "a", "loss": False},
        {"text": "é", "loss": True, "label": said},
    ]
    assert shown["answers"] == (1 if task == "kto" else 0)
