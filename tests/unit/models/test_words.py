"""Word by word gives the tokenizer's own ids, for every kind of byte-level tokenizer that is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunewright.models import words as module
from tunewright.models.segments import SegmentEncoder
from tunewright.models.words import GPT2, LLAMA3, QWEN2, words_of

SHARED = Path(__file__).resolve().parents[4] / "shared" / "models"
TEXTS = [
    "I'll see, we've SAID: it's 12345 o'clock's\n\n  and\tso on... x=y;\r\n\r\n   end  ",
    "def f(a, b):\n    return {'k': [1, 22, 333, 4444]}  # done\n",
    "<|start|>user\nhello<|end|>\n<|start|>assistant\n !<|end|>",
    "",
    " ",
    "\x00\x1c\x1d\x1e\x1f \x0b\x0c\x7f",
]
ASCII = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=60)
PIECES = st.lists(st.one_of(ASCII, st.sampled_from(["<|start|>", "<|end|>", "<|", "'LL", "'s", "  \n "])))


def tokenizer_of(pattern: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    if pattern == GPT2:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TEXTS, *TEXTS, "the user said hello to the assistant " * 20], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    return tokenizer


TOKENIZERS = {name: tokenizer_of(p) for name, p in (("gpt2", GPT2), ("llama3", LLAMA3), ("qwen2", QWEN2))}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(pieces=PIECES)
def test_words_give_the_tokenizers_own_ids(name: str, pieces: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    words = words_of(tokenizer)
    assert words is not None
    for text in ("".join(pieces), *TEXTS):
        expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert words.encode(text) == expected, text


@given(st.lists(st.text(max_size=30), max_size=8))
def test_texts_of_any_script_come_back_in_their_order(texts: list[str]) -> None:
    tokenizer = TOKENIZERS["llama3"]
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    expected = [tokenizer.backend_tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    assert SegmentEncoder(tokenizer, ("<|end|>",)).encode(texts) == expected


def test_a_table_that_is_full_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 3)
    words = words_of(TOKENIZERS["gpt2"])
    assert words is not None
    text = "one two three four five one two"
    expected = TOKENIZERS["gpt2"].backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert words.encode(text) == expected


def _with(change: Any) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of(GPT2)
    change(tokenizer)
    return tokenizer


def test_what_is_not_exact_is_left_to_the_tokenizer() -> None:
    def prefix(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    def metaspace(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()

    def greedy(tokenizer: Any) -> None:
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])

    for change in (prefix, metaspace, greedy):
        assert words_of(_with(change)) is None
    unknown = tokenizer_of(r"\p{L}+|\P{L}+")
    assert words_of(unknown) is None


def test_real_gpt2_text_is_encoded_the_same() -> None:
    folder = SHARED / "gpt2-tokenizer-hf"
    rows = SHARED.parent / "data" / "gsm8k" / "test.jsonl"
    if not folder.is_dir() or not rows.is_file():
        pytest.skip("needs the real tokenizer and data in ../shared")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = words_of(tokenizer)
    assert words is not None
    texts = [line for line in rows.read_text(encoding="utf-8").splitlines() if line.isascii()][:800]
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    assert [words.encode(text) for text in texts] == [one.ids for one in encoded]
    assert len(texts) == 800
