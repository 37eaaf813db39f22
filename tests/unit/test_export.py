"""What is exported opens without Tunewright and answers as what was trained; what does not is not kept."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from doubles import publish
from tiny_runs import newborn_base
from tunewright.artifacts import Artifact, Store
from tunewright.config import BaseModelConfig
from tunewright.config.methods import (
    DoraConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    Method,
    PrefixTuningConfig,
    PromptTuningConfig,
    QloraConfig,
    RsloraConfig,
)
from tunewright.data.rows import Document
from tunewright.data.shards import write_shard
from tunewright.errors import ConfigError, ModelError, RegistryError, StoreError
from tunewright.export import EQUIVALENCE, export_version
from tunewright.models import merge
from tunewright.models.adapter_config import name_base, read_adapter_config
from tunewright.models.base import register_folder
from tunewright.models.load import load_model, load_renderer, load_tokenizer, save_tokenizer
from tunewright.registry import Registry
from tunewright.train.methods import apply_method, export

ADAPTERS: list[Method] = [
    LoraConfig(rank=4),
    RsloraConfig(rank=4),
    DoraConfig(rank=4),
    Ia3Config(),
    PromptTuningConfig(tokens=4),
    PrefixTuningConfig(tokens=4),
]
MERGEABLE = [*ADAPTERS[:4], LoraConfig(rank=4, target_modules=("q_proj",), modules_to_save=("lm_head",))]
LOGITS_TOLERANCE = 1e-4
"""fp32: base and adapter are multiplied in another order than their sum."""


def by_type(method: Method) -> str:
    return method.type + (", head" if getattr(method, "modules_to_save", ()) else "")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newborn_base(tmp_path_factory.mktemp("base") / "small-llama")


@pytest.fixture
def base(tmp_store: Store, base_folder: Path) -> Artifact:
    return register_folder(tmp_store, BaseModelConfig(model=str(base_folder)))[0]


def rows_in(folder: Path, count: int) -> None:
    numbers = np.random.default_rng(2)
    documents = [
        Document(numbers.integers(8, 300, 30).astype(np.int32), np.ones(30, np.int8)) for _ in range(count)
    ]
    folder.mkdir(parents=True)
    if documents:
        packed = [[i, i + 1] for i in range(0, count, 2)]
        write_shard(folder / "part-0.parquet", documents, packed, seq_len=64)


def data_of(store: Store, base: Artifact, held_out: int = 12) -> Artifact:
    def fill(folder: Path) -> None:
        rows_in(folder / "train", 4)
        rows_in(folder / "eval", held_out)

    return publish(store, "data", {}, {"base": base.ref}, fill, n=held_out)


def tuned(base_folder: Path, method: Method, by: float = 0.02) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model whose trained weights moved, and those weights."""
    model: Any = apply_method(load_model(base_folder, None, torch.float32), method, seed=1).eval()
    weights = {}
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight += by * torch.randn_like(weight)
                weights[name] = weight.detach().clone()
    return model, weights


def train_artifact(
    store: Store, base: Artifact, method: Method, by: float = 0.02, held_out: int = 12
) -> tuple[Artifact, Any]:
    folder = Path(base.facts["folder"])
    model, weights = tuned(folder, method, by)

    def fill(into: Path) -> None:
        export(model, weights, method, into / method.result)
        (into / "tokenizer").mkdir()
        save_tokenizer(load_renderer(folder), into / "tokenizer")

    parents = {"base": base.ref, "data": data_of(store, base, held_out).ref}
    settings = {**method.model_dump(mode="json"), "by": by}
    return publish(store, "train", {"method": method.type}, parents, fill, method=settings), model


def register(store: Store, trained: Artifact) -> None:
    evaluation = publish(store, "evaluation", {"gates": []}, {"train": trained.ref}, n=trained.ref)
    Registry(store).register("desk", trained, evaluation, run="r")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(8, 60)[None]
    out: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return out[:, -52:]


@pytest.mark.parametrize("method", MERGEABLE, ids=by_type)
def test_a_merged_folder_is_a_plain_model_that_answers_as_the_adapter_did(
    tmp_store: Store, base: Artifact, tmp_path: Path, method: Method
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained, model = train_artifact(tmp_store, base, method)
    made = export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert plain.dtype is torch.float32 and not hasattr(plain, "peft_config")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=LOGITS_TOLERANCE)
    untouched = logits(load_model(Path(base.facts["folder"]), None, torch.float32))
    assert (logits(plain) - untouched).abs().max() > 10 * LOGITS_TOLERANCE
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == load_renderer(Path(base.facts["folder"])).template
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert stops["eos_token_id"] == sorted(load_renderer(trained.path / "tokenizer").stop_ids)
    proof = json.loads((tmp_path / "out" / EQUIVALENCE).read_text(encoding="utf-8"))
    assert (proof["rows"], proof["documents"], proof["merged"]["tokens"]) == ("held-out", 12, 12 * 29)
    assert proof["merged"]["kl"] < 1e-6 < proof["tuning"]["kl"] and proof["merged"]["top1"] == 1.0
    assert {k: v for k, v in proof.items() if k != "version"} == made.equivalence
    assert str(tmp_store.root) not in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ADAPTERS, ids=by_type)
def test_an_exported_adapter_opens_with_peft_alone(
    tmp_store: Store, base: Artifact, tmp_path: Path, method: Method
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained, model = train_artifact(tmp_store, base, method)
    made = export_version(tmp_store, trained.ref, tmp_path / "out")
    assert made.equivalence is None and "adapter copied to" in made.told()
    plain = AutoModelForCausalLM.from_pretrained(base.facts["folder"], dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=LOGITS_TOLERANCE)
    load_tokenizer(tmp_path / "out")
    assert read_adapter_config(tmp_path / "out")["base_model_name_or_path"] == "small-llama"
    texts = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    for place in (Path(base.facts["folder"]).parent, tmp_store.root):
        assert len(texts) > 3 and not any(str(place).encode() in text for text in texts)


@pytest.mark.parametrize(
    ("model", "revision", "named"),
    [
        ("Qwen/Qwen3-0.6B", "c1899de", ("Qwen/Qwen3-0.6B", "c1899de")),
        ("models/mine", None, ("mine", None)),
        ("/home/ann/mine", None, ("mine", None)),
        ("tiny", None, ("tiny", None)),
    ],
)
def test_a_base_is_named_as_somebody_elsewhere_would_find_it(
    tmp_store: Store, base_folder: Path, tmp_path: Path, model: str, revision: str | None, named: Any
) -> None:
    tuned_model, weights = tuned(base_folder, LoraConfig(rank=2))
    export(tuned_model, weights, LoraConfig(rank=2), tmp_path / "adapter")
    before = read_adapter_config(tmp_path / "adapter")
    base = publish(tmp_store, "base", {"model": model}, revision=revision)
    name_base(tmp_path / "adapter", base)
    after = read_adapter_config(tmp_path / "adapter")
    assert (after["base_model_name_or_path"], after["revision"]) == named
    assert {**after, "base_model_name_or_path": "", "revision": ""} == {
        **before, "base_model_name_or_path": "", "revision": "",
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_weights_are_in_the_precision_asked_for_and_the_loss_is_told(
    tmp_store: Store, base: Artifact, tmp_path: Path, precision: Any
) -> None:
    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=4), by=0.1)
    made = export_version(tmp_store, trained.ref, tmp_path / "out", merge=True, precision=precision)
    assert merge.stored_precision(tmp_path / "out") == precision
    assert made.equivalence is not None
    found = made.equivalence["merged"]
    assert 1e-9 < found["kl"] < merge.TOLERANCES[precision].kl
    for words in (
        f"whole model in {precision}",
        "On 348 held-out tokens: mean KL",
        "the tuning itself is KL",
    ):
        assert words in made.told()


def test_a_trained_whole_model_is_written_in_the_precision_of_its_base(
    tmp_store: Store, base: Artifact, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    whole = load_model(Path(base.facts["folder"]), None, torch.bfloat16)
    whole.save_pretrained(half)
    load_tokenizer(Path(base.facts["folder"])).save_pretrained(half)
    low, _ = register_folder(tmp_store, BaseModelConfig(model=str(half)))
    trained, _ = train_artifact(tmp_store, low, FullConfig())
    assert merge.stored_precision(trained.path / "model") == "fp32"
    made = export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    assert merge.stored_precision(tmp_path / "out") == "bf16"
    assert made.equivalence is not None and made.equivalence["tuning"] is None


def test_a_base_in_four_bits_is_merged_as_training_saw_it(tmp_store: Store, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [qlora] is not installed")
    base, _ = register_folder(tmp_store, BaseModelConfig(model=str(newborn_base(tmp_path / "small-llama"))))
    trained, model = train_artifact(tmp_store, base, QloraConfig(rank=4))
    export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    plain = load_model(tmp_path / "out", None, torch.float32)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=LOGITS_TOLERANCE)
    exact = load_model(Path(base.facts["folder"]), None, torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (plain.get_parameter(name) - exact.get_parameter(name)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ADAPTERS[4:], ids=by_type)
def test_virtual_tokens_are_not_merged_and_the_reason_is_told(
    tmp_store: Store, base: Artifact, tmp_path: Path, method: Method
) -> None:
    trained, _ = train_artifact(tmp_store, base, method)
    with pytest.raises(ModelError, match=f"{method.type} cannot be merged: it puts 4 virtual tokens before"):
        export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    assert list(tmp_path.glob("*out*")) == []


def test_an_adapter_of_a_classifier_is_exported_and_not_merged(
    tmp_store: Store, base: Artifact, tmp_path: Path
) -> None:
    def fill(into: Path) -> None:
        (into / "adapter").mkdir()
        settings = {"peft_type": "LORA", "task_type": "SEQ_CLS"}
        (into / "adapter" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        (into / "tokenizer").mkdir()

    parents = {"base": base.ref, "data": data_of(tmp_store, base).ref}
    trained = publish(tmp_store, "train", {"method": "lora"}, parents, fill)
    with pytest.raises(ModelError, match="for sequence classification, .* without --merge"):
        export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    export_version(tmp_store, trained.ref, tmp_path / "out")
    assert read_adapter_config(tmp_path / "out")["task_type"] == "SEQ_CLS"


def lose_the_adapter(base: Path, adapter: Path | None, folder: Path, precision: Any) -> None:
    load_model(base, None, torch.float32).save_pretrained(folder)


def move_one_row(base: Path, adapter: Path | None, folder: Path, precision: Any) -> None:
    model = load_model(base, adapter, torch.float32).merge_and_unload()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[:8] += 0.5
    model.save_pretrained(folder)


def drop_a_layer(base: Path, adapter: Path | None, folder: Path, precision: Any) -> None:
    model: Any = load_model(base, adapter, torch.float32)
    for name, module in model.named_modules():
        if name.endswith("layers.0.self_attn.q_proj"):
            module.lora_B["default"].weight.data.zero_()
    model.merge_and_unload().save_pretrained(folder)


@pytest.mark.parametrize("defect", [lose_the_adapter, move_one_row, drop_a_layer])
def test_a_merge_that_went_wrong_is_refused_and_leaves_nothing(
    tmp_store: Store,
    base: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    defect: Callable[..., None],
) -> None:
    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=4), by=0.1)
    monkeypatch.setattr(merge, "write_merged", defect)
    with pytest.raises(ModelError, match="not what was trained, and was not kept: its mean KL divergence"):
        export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    assert list(tmp_path.glob("*out*")) == []


def test_rounding_that_undoes_the_tuning_is_refused(tmp_store: Store, tmp_path: Path) -> None:
    newborn_base(tmp_path / "small-llama")
    model: Any = load_model(tmp_path / "small-llama", None, torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 3 if weight.dim() == 2 else 1  # a newborn's answers hardly depend on its weights
    model.save_pretrained(tmp_path / "small-llama")
    base, _ = register_folder(tmp_store, BaseModelConfig(model=str(tmp_path / "small-llama")))
    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=4), by=0.0005)
    with pytest.raises(ModelError, match="rounding to bf16 undoes the tuning: .* write it with --dtype fp32"):
        export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    export_version(tmp_store, trained.ref, tmp_path / "out", merge=True, precision="fp32")


def test_without_held_out_rows_the_training_rows_prove_it_and_that_is_told(
    tmp_store: Store, base: Artifact, tmp_path: Path
) -> None:
    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=4), held_out=0)
    assert "training tokens" in export_version(tmp_store, trained.ref, tmp_path / "out", merge=True).told()


def test_a_name_alone_is_its_prod_or_else_its_newest_version(
    tmp_store: Store, base: Artifact, tmp_path: Path
) -> None:
    for method in (LoraConfig(rank=2), Ia3Config()):
        register(tmp_store, train_artifact(tmp_store, base, method)[0])
    assert export_version(tmp_store, "desk", tmp_path / "newest").name == "desk@v2"
    Registry(tmp_store).promote("desk", "prod", 1, "ann", "")
    assert export_version(tmp_store, "desk", tmp_path / "prod").name == "desk@v1"
    assert export_version(tmp_store, "desk@v2", tmp_path / "second").name == "desk@v2"
    with pytest.raises(RegistryError, match="desk@v9 does not exist; versions: desk@v1, desk@v2"):
        export_version(tmp_store, "desk@v9", tmp_path / "out")
    with pytest.raises(RegistryError, match="there is no model chat; registered models: desk"):
        export_version(tmp_store, "chat@v1", tmp_path / "out")
    with pytest.raises(StoreError, match="artifact train/nothing is not in"):
        export_version(tmp_store, "train/nothing", tmp_path / "out")


def test_a_folder_in_the_way_is_left_alone(tmp_store: Store, base: Artifact, tmp_path: Path) -> None:
    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match="full is not empty; name another folder"):
        export_version(tmp_store, trained.ref, tmp_path / "full")
    with pytest.raises(StoreError, match=r"mine.txt is a file; name a folder"):
        export_version(tmp_store, trained.ref, tmp_path / "full" / "mine.txt")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export_version(tmp_store, trained.ref, tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_config.json").is_file()


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_store: Store, base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=2))

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(merge, "write_merged", full)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        export_version(tmp_store, trained.ref, tmp_path / "out", merge=True)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.glob("*out*")) == []


def test_a_base_that_changed_since_is_refused(tmp_store: Store, tmp_path: Path) -> None:
    folder = newborn_base(tmp_path / "small-llama")
    base, _ = register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    trained, _ = train_artifact(tmp_store, base, LoraConfig(rank=2))
    model = load_model(folder, None, torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] += 1
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="model.safetensors has changed since"):
        export_version(tmp_store, trained.ref, tmp_path / "out")


def test_the_command_line_exports_and_refuses(tmp_store: Store, base: Artifact, tmp_path: Path) -> None:
    from tunewright.cli import app

    register(tmp_store, train_artifact(tmp_store, base, LoraConfig(rank=2))[0])
    where = ["--store", str(tmp_store.root)]
    told = CliRunner().invoke(app, ["export", "desk", "--merge", "--out", str(tmp_path / "m"), *where])
    assert told.exit_code == 0 and told.output.startswith("desk@v1: whole model in fp32 in")
    again = CliRunner().invoke(app, ["export", "desk", "--out", str(tmp_path / "m"), *where])
    assert isinstance(again.exception, StoreError)
    odd = CliRunner().invoke(app, ["export", "desk", "--dtype", "int4", "--out", str(tmp_path / "o"), *where])
    assert isinstance(odd.exception, ConfigError) and "choose fp32, bf16 or fp16" in str(odd.exception)
    idle = CliRunner().invoke(
        app, ["export", "desk", "--dtype", "bf16", "--out", str(tmp_path / "o"), *where]
    )
    assert isinstance(idle.exception, ConfigError) and "--dtype is for --merge" in str(idle.exception)
