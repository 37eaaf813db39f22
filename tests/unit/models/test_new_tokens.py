"""New tokens: added to tokenizer and embeddings, the same every time, read back with an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from doubles import tiny_model_folder
from loops import small_model
from tiny_runs import newborn_base, small_run
from tunewright.artifacts import Store, file_sha256
from tunewright.config import BaseModelConfig, LoraConfig, RunConfig
from tunewright.config.methods import DoraConfig
from tunewright.errors import DataError, ModelError, TrainError
from tunewright.models.base import model_folder, register_folder
from tunewright.models.load import load_model, load_renderer, load_tokenizer
from tunewright.models.new_rows import OwnRowsLayer
from tunewright.models.new_tokens import add_tokens, make_new_tokens, new_tokens_plan
from tunewright.preflight import check_model
from tunewright.train.methods import apply_method, export, trainable_names

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NEW = ["<|tool|>", "<|call|>"]
FP32 = torch.float32
LOGITS_TOLERANCE = 1e-6
ARCHITECTURES = ["llama", "gpt2", "qwen3", "gemma", "gemma3", "phi"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_model_folder(tmp_path_factory.mktemp("tokenizer") / "model"))


def base_of(kind: str, tokenizer: Path, folder: Path, unused: int = 0) -> tuple[Path, int]:
    """A small model of an architecture, and the number of its tokenizer's tokens."""
    words = len(load_tokenizer(tokenizer))
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    small_model(kind, vocab_size=words + unused).save_pretrained(folder)
    return folder, words


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    out: torch.Tensor = model.eval()(input_ids=torch.tensor([ids])).logits
    return out


def taught(model: Any) -> dict[str, torch.Tensor]:
    """Other weights in place of the trainable ones, as training would leave them; a copy of them."""
    generator = torch.Generator().manual_seed(3)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in weights.values():
        weight.data.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_known_tokens_are_answered_as_before_and_new_ones_begin_as_their_mean(
    kind: str, tokenizer: Path, tmp_path: Path
) -> None:
    folder, words = base_of(kind, tokenizer, tmp_path / "base")
    added = add_tokens(folder, [*NEW, "<|end|>"], tmp_path / "new")
    assert added.ids == {"<|tool|>": words, "<|call|>": words + 1, "<|end|>": 6}
    assert added.told() == (
        f"2 new tokens: <|tool|>, <|call|>; embeddings from {words} to {words + 2} rows; "
        "there already: <|end|>"
    )
    before, after = load_model(folder, None, FP32), load_model(tmp_path / "new", None, FP32)
    known = list(range(9))
    assert torch.equal(logits(after, known)[..., :words], logits(before, known))
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, layer)().weight, getattr(after, layer)().weight
        torch.testing.assert_close(new[words:], old.mean(0).expand(2, -1), rtol=0, atol=1e-7)
    bias = getattr(after.get_output_embeddings(), "bias", None)
    assert bias is None or (len(bias) == words + 2 and kind == "phi")
    assert after.config.vocab_size == words + 2
    assert after.config.new_token_ids == sorted(added.ids.values())


def test_unused_rows_of_the_embeddings_are_taken_first(tokenizer: Path, tmp_path: Path) -> None:
    folder, words = base_of("llama", tokenizer, tmp_path / "base", unused=2)
    added = add_tokens(folder, NEW, tmp_path / "new")
    assert added.told() == (
        f"2 new tokens: <|tool|>, <|call|>; in unused rows of the {words + 2} that the embeddings have"
    )
    old = load_model(folder, None, FP32).get_input_embeddings().weight
    new = load_model(tmp_path / "new", None, FP32).get_input_embeddings().weight
    assert new.shape == old.shape
    torch.testing.assert_close(new[words:], old[:words].mean(0).expand(2, -1), rtol=0, atol=1e-7)
    more = add_tokens(folder, [*NEW, "<|more|>"], tmp_path / "more")
    assert (more.before, more.rows) == (words + 2, words + 3)


def test_the_same_tokens_give_the_same_files_and_one_more_gives_another_base(
    tokenizer: Path, tmp_path: Path
) -> None:
    folder, _ = base_of("gemma", tokenizer, tmp_path / "base")
    store = Store(tmp_path / "store")
    source, _ = register_folder(store, BaseModelConfig(model=str(folder)))
    plan = new_tokens_plan(source, NEW)
    base = make_new_tokens(store, source, plan)
    assert base.manifest.parents == {"source": source.ref}
    assert base.facts["new_tokens"].keys() == set(NEW)
    assert model_folder(base) == base.path / "model"
    add_tokens(folder, NEW, tmp_path / "again")
    for path in (base.path / "model").iterdir():
        assert file_sha256(path) == file_sha256(tmp_path / "again" / path.name), path.name
    assert new_tokens_plan(source, [*NEW, "<|more|>"]).id != plan.id
    assert new_tokens_plan(source, NEW[::-1]).id != plan.id  # their ids are others


def test_weights_in_several_bf16_files_stay_what_they_are(tokenizer: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder, _ = base_of("llama", tokenizer, tmp_path / "base")
    load_model(folder, None, torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    add_tokens(folder, NEW, tmp_path / "new")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    changed = 0
    for path in files:
        old, new = load_file(path), load_file(tmp_path / "new" / path.name)
        assert old.keys() == new.keys()
        for name, tensor in old.items():
            assert new[name].dtype == torch.bfloat16
            assert torch.equal(new[name][: len(tensor)], tensor)
            changed += len(new[name]) == len(tensor) + 2
    assert changed == 2  # embeddings and output layer


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["the"], "'the' is an ordinary token in the vocabulary of .*, such as <|the|>"),
        (["<|a|>", "t"], "'t' is an ordinary token in the vocabulary"),
    ],
)
def test_an_ordinary_token_is_refused(tokenizer: Path, tmp_path: Path, tokens: list[str], words: str) -> None:
    folder, _ = base_of("llama", tokenizer, tmp_path / "base")
    with pytest.raises(ModelError, match=words.replace("|", r"\|")):
        add_tokens(folder, tokens, tmp_path / "new")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["<|a|>", "<|a|>"], r"new_tokens: <\|a\|> is named twice"),
        ([""], "new_tokens: '' is empty or has blanks around it"),
        ([" <|a|>"], r"' <\|a\|>' is empty or has blanks around it"),
    ],
    ids=["twice", "empty", "blank"],
)
def test_tokens_without_sense_are_refused_by_the_configuration(tokens: list[str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        BaseModelConfig(model="tiny", new_tokens=tuple(tokens))


@pytest.mark.parametrize(
    ("train", "stages", "words"),
    [
        ({"method": {"type": "prompt_tuning"}}, None, "train.method.type=prompt_tuning trains no embedding"),
        ({"method": {"type": "prefix_tuning"}}, None, "train.method.type=prefix_tuning trains no embedding"),
        ({"method": {"type": "ia3"}}, None, "ia3 trains no embedding, so <.tool.> would stay the mean"),
        ({}, "stack", "with stages.0.then=stack two adapters would have rows for <.tool.>"),
    ],
    ids=["prompt", "prefix", "ia3", "stack"],
)
def test_a_method_that_could_not_learn_them_is_refused(
    tmp_path: Path, train: dict[str, Any], stages: str | None, words: str
) -> None:
    run = small_run(tmp_path, tmp_path / "store", sweep=None)
    run["base"]["new_tokens"] = NEW
    if stages:
        run["stages"] = [{"name": "before", "data": run["data"], "train": run["train"], "then": stages}]
    run["train"] = run["train"] | train
    with pytest.raises(ValidationError, match=words):
        RunConfig.model_validate(run)


def test_freeze_must_name_the_embeddings(tmp_path: Path) -> None:
    run = small_run(newborn_base(tmp_path / "base"), tmp_path / "store", sweep=None)
    run["base"]["new_tokens"] = NEW
    run["train"]["method"] = {"type": "freeze", "last_blocks": 1}
    with pytest.raises(TrainError, match=r"freeze would leave .*: add embed_tokens to train.method.modules"):
        check_model(RunConfig.model_validate(run))
    run["train"]["method"]["modules"] = ["embed_tokens"]
    check_model(RunConfig.model_validate(run))


@pytest.mark.parametrize(
    "method", [LoraConfig(rank=4), DoraConfig(rank=4), LoraConfig(rank=4, modules_to_save=("lm_head",))],
    ids=["lora", "dora", "head saved"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")  # PEFT, of GPT-2
def test_an_adapter_with_rows_of_its_own_opens_on_the_new_base_and_merges(
    kind: str, method: LoraConfig, tokenizer: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    folder, words = base_of(kind, tokenizer, tmp_path / "base")
    add_tokens(folder, NEW, tmp_path / "new")
    ids = [3, words, 5, words + 1, 4, words]
    model = apply_method(load_model(tmp_path / "new", None, FP32), method, seed=1)
    weights = taught(model)
    assert set(weights) == trainable_names(model, method)
    expected = logits(model, ids)
    export(model, weights, method, tmp_path / "adapter")
    ours = load_model(tmp_path / "new", tmp_path / "adapter", FP32)
    torch.testing.assert_close(logits(ours, ids), expected, rtol=0, atol=LOGITS_TOLERANCE)
    plain = PeftModel.from_pretrained(load_model(tmp_path / "new", None, FP32), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(plain, ids), expected, rtol=0, atol=LOGITS_TOLERANCE)
    merged = ours.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    torch.testing.assert_close(logits(merged, ids), expected, rtol=0, atol=1e-5)
    if not method.modules_to_save:
        rows = [weight for name, weight in weights.items() if "trainable_tokens" in name]
        assert {len(row) for row in rows} == {2}
        assert len(rows) == (2 if kind in ("llama", "qwen3") else 1)  # tied, or Phi's output with its bias
        assert any(isinstance(module, OwnRowsLayer) for module in model.modules())


def test_the_endpoints_renderer_writes_and_reads_them(tokenizer: Path, tmp_path: Path) -> None:
    folder, words = base_of("llama", tokenizer, tmp_path / "base")
    add_tokens(folder, NEW, tmp_path / "new")
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}<|tool|>{% endif %}"
        "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    renderer = load_renderer(tmp_path / "new", template)
    prompt = renderer.prompt([{"role": "user", "content": "the fox"}])
    assert prompt[0] == words
    assert renderer.text([*prompt[2:-2], words, words + 1]) == "the fox"  # control tokens are no text
    assert load_tokenizer(tmp_path / "new").decode([words, words + 1]) == "<|tool|><|call|>"
    with pytest.raises(DataError, match=r"contains the special token <\|tool\|>"):
        renderer.prompt([{"role": "user", "content": "the <|tool|> fox"}])
