"""The embedded base `tiny`: a Llama of a few million parameters and its tokenizer, made from text.

Here it is only born (tokenizer trained, weights drawn from a seed); the `pretrain` objective then
teaches it. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.config.base import Config

if TYPE_CHECKING:
    from transformers import LlamaConfig

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


class TinyShape(Config):
    """Size of the model: about two million parameters."""

    vocab_limit: int = 1536
    """Upper bound; the tokenizer stops earlier when the text has no more pairs to merge."""
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    intermediate_size: int = 512
    context: int = 512
    initializer_range: float = 0.06
    """Wider than usual: a shallow, narrow model learns to copy in fewer steps from it."""


def write_newborn(folder: Path, texts: Iterable[str], shape: TinyShape, seed: int) -> int:
    """Write an untrained model with a tokenizer learned from `texts`; returns its parameter count.

    The same texts, shape and seed give the same bytes.
    """
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    tokenizer = _train_tokenizer(texts, shape.vocab_limit)
    config = tiny_config(shape, len(tokenizer))
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, end], pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def tiny_config(shape: TinyShape, vocab_size: int) -> LlamaConfig:
    """The settings of the model, but for its tokenizer's."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.context,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=True,
    )


def _train_tokenizer(texts: Iterable[str], vocab_size: int):  # type: ignore[no-untyped-def]
    """Byte-level BPE that reads numbers in pairs of digits, so that codes are copied in few tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",  # noqa: S106 - a token of the vocabulary
        bos_token="<|bos|>",  # noqa: S106
        eos_token="<|eos|>",  # noqa: S106
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
