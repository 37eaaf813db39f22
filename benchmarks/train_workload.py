"""The training workload that `train_step.py` measures: a random 49M-parameter Llama and 800 conversations.

GSM8K's training questions where they are at hand (`--data`, or `TUNEWRIGHT_GSM8K`), else sums in words
made up here, of the same form and about the same length; GPT-2's tokenizer where it is at hand
(`--tokenizer`, or `TUNEWRIGHT_GPT2_TOKENIZER`), else one made here with as many entries.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from tunewright.artifacts import MANIFEST, write_json

SHARED = Path(__file__).parents[2] / "shared"
GSM8K = SHARED / "data" / "gsm8k" / "train.jsonl"
TOKENIZER = SHARED / "models" / "gpt2-tokenizer-hf"
CONVERSATIONS = 800
EVALUATED = 16
SEQ_LEN = 1024
VOCABULARY = 50_257
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}Assistant: {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": VOCABULARY - 1,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": VOCABULARY - 1,
}
RANK = 16


@dataclass(frozen=True)
class Workload:
    """Where the workload lies, and what it is.

    Attributes:
        model: a Hugging Face folder with the tokenizer and the chat template in it.
        conversations: JSON lines of `messages`, for the peers.
        data: the same ones as a folder of packed rows, for Tunewright.
        stand_in: what was made up because the real thing is not at hand.
        pairs: how often a token meets one before it in its document, or itself.
    """

    model: Path
    conversations: Path
    data: Path
    stand_in: tuple[str, ...]
    rows: int
    tokens: int
    supervised: int
    pairs: int


def make_workload(folder: Path, data: Path = GSM8K, tokenizer: Path = TOKENIZER) -> Workload:
    """Write model, conversations and packed rows; the same bytes each time."""
    stand_in = []
    if data.is_file():
        with data.open(encoding="utf-8") as file:
            pairs = [(row["question"], row["answer"]) for row in map(json.loads, file)]
    else:
        stand_in.append("sums in words instead of GSM8K")
        pairs = made_up(CONVERSATIONS + EVALUATED)
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in pairs[: CONVERSATIONS + EVALUATED]
    ]
    model = folder / "model"
    _write_model(model)
    if (tokenizer / "tokenizer.json").is_file():
        _copy_tokenizer(tokenizer, model)
    else:
        stand_in.append("a byte-level tokenizer made from the conversations instead of GPT-2's")
        _make_tokenizer([text for pair in pairs for text in pair], model)
    conversations = folder / "conversations.jsonl"
    lines = (json.dumps({"messages": chat}, ensure_ascii=False) for chat in chats[:CONVERSATIONS])
    conversations.write_text("\n".join(lines) + "\n", encoding="utf-8")
    counted = _write_rows(model, folder / "data", chats)
    return Workload(model, conversations, folder / "data", tuple(stand_in), *counted)


def made_up(count: int) -> list[tuple[str, str]]:
    """Questions and answers of the form of GSM8K's: a clearly named stand-in."""
    numbers = random.Random(0)
    names, things = ("Anna", "Ben", "Chidi", "Dana"), ("apples", "pencils", "stamps", "marbles")
    pairs = []
    for _ in range(count):
        name, thing, have = numbers.choice(names), numbers.choice(things), numbers.randint(2, 99)
        question, steps = f"{name} has {have} {thing}.", []
        for _ in range(numbers.randint(2, 6)):
            more, box = numbers.randint(2, 40), numbers.randint(2, 9)
            question += f" Then {name} buys {box} boxes that hold {more} {thing} each."
            steps.append(f"{box} boxes of {more} are {box}*{more} = {box * more} {thing}, ")
            steps[-1] += f"so now there are {have}+{box * more} = {have + box * more}."
            have += box * more
        pairs.append((f"{question} How many {thing} are there?", "\n".join([*steps, f"#### {have}"])))
    return pairs


def _write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    assert len(tokenizer) == VOCABULARY, f"{source} has {len(tokenizer)} entries"
    tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _make_tokenizer(texts: list[str], folder: Path) -> None:
    """Byte-level BPE of the texts, filled up with tokens that never occur."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    )
    unused = VOCABULARY - 1 - backend.get_vocab_size()
    backend.add_tokens([f"<unused-{number}>" for number in range(unused)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _write_rows(model: Path, folder: Path, chats: list) -> tuple[int, int, int, int]:
    """Pack and write the rows; returns (rows, tokens, supervised, pairs) of the training ones."""
    import numpy as np

    from tunewright.data.pack import pack_best_fit
    from tunewright.data.rows import Document
    from tunewright.data.shards import write_shard
    from tunewright.models.load import load_renderer

    renderer = load_renderer(model)
    rendered = [renderer.conversation(chat) for chat in chats]
    documents = [Document(np.array(r.ids, np.int32), np.array(r.loss_mask, np.int8)) for r in rendered]
    counted = (0, 0, 0, 0)
    for name, part in (("eval", documents[CONVERSATIONS:]), ("train", documents[:CONVERSATIONS])):
        rows = pack_best_fit([len(d.ids) for d in part], SEQ_LEN)
        (folder / name).mkdir(parents=True)
        write_shard(folder / name / "shard-00000.parquet", part, rows, SEQ_LEN)
        tokens = sum(len(d.ids) for d in part)
        pairs = sum(len(d.ids) * (len(d.ids) + 1) // 2 for d in part)
        counted = (len(rows), tokens, int(sum(d.loss_mask.sum() for d in part)), pairs)
    write_json(folder / MANIFEST, {"config": {}})
    return counted
