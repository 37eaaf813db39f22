"""What training could not do with a base is told before anything is prepared, from its files alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_runs import newborn_base, small_run, write_run
from tunewright.artifacts import Store
from tunewright.config import BaseModelConfig, RunConfig, load_run
from tunewright.errors import ConfigError, ModelError, TrainError
from tunewright.models import weights
from tunewright.models.base import changed_since, check_base, register_folder
from tunewright.models.skeleton import parameters_of, skeleton
from tunewright.pipeline import main
from tunewright.preflight import check_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newborn_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A good base of this test's own."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def run_with(base: Path | str, tmp_path: Path, method: Any = None, **changes: Any) -> RunConfig:
    given = small_run(Path(base), tmp_path / "store", **changes)
    given["base"] = {"model": str(base), **(changes.get("base") or {})}
    given["train"] |= {"method": method or {"type": "lora", "rank": 4}}
    return load_run(write_run(tmp_path / "run.yaml", given))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def split_in_two(folder: Path) -> None:
    """The weights in two files with an index, as large models have them."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def without_the_first_file(folder: Path) -> None:
    split_in_two(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()


def with_a_wrong_index(folder: Path) -> None:
    split_in_two(folder)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(places, "model-00001-of-00002.safetensors")}))


def only_pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def in_eight_bits(folder: Path) -> None:
    edit_weights(
        folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)})
    )


def only_an_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/chat-1b"}')


def like_t5(folder: Path) -> None:
    edit(folder / "config.json", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)


def only_gguf(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.gguf")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (only_pickled, r"only pickled weights \(pytorch_model.bin\).* If you trust whoever made it: py"),
        (only_gguf, "has weights only in model.gguf; safetensors are needed"),
        (only_an_adapter, "it has no config.json, but an adapter; its base is acme/chat-1b"),
        (lambda f: edit(f / "config.json", auto_map={"AutoModel": "m.M"}), "run its own code .* is refused"),
        (lambda f: os.truncate(f / WEIGHTS, 50_000), f"{WEIGHTS} is damaged or is not a safetensors file"),
        (without_the_first_file, "has 1 of 2 weights files and needs all; it has no model-00001-of-00002"),
        (with_a_wrong_index, "model-00001-of-00002.safetensors does not hold model.*, as model.safetensors"),
        (in_eight_bits, "model.norm.weight is F8_E4M3, and training starts from weights in F64, F32, BF16"),
        (lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq"}), r"\(gptq\)"),
        (lambda f: edit(f / "config.json", architectures=["BertForMaskedLM"]), "not a causal language model"),
        (like_t5, "not a causal language model: .*T5ForConditionalGeneration.*, an encoder with a decoder"),
    ],
    ids=["pickled", "gguf", "adapter", "code", "cut", "shard", "index", "float8", "quantized", "BERT", "T5"],
)  # fmt: skip
def test_a_base_whose_files_cannot_be_trained_from_is_refused_without_importing_a_library(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    check_base(BaseModelConfig(model=str(folder)))
    damage(folder)
    with pytest.raises(ModelError, match=words) as caught:
        check_base(BaseModelConfig(model=str(folder)))
    assert str(folder) in str(caught.value)


def other_tokenizer(folder: Path) -> None:
    """One of another model, larger than the embeddings."""
    told = json.loads((folder / "tokenizer.json").read_text())
    told["added_tokens"].append({**told["added_tokens"][0], "id": 5000, "content": "<|other|>"})
    (folder / "tokenizer.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_tokenizer, r"tokenizer is not this model's: its ids go up to \d+, and the model has"),
        (lambda f: edit(f / "config.json", eos_token_id=77), "eos_token_id=77 in config.json is the ord"),
        (lambda f: edit(f / "config.json", bos_token_id=128000), "above the tokenizer's highest id"),
        (lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")),
         "1 weights of config.json are in no file, and would be random: model.norm.weight"),
        (lambda f: edit(f / "config.json", intermediate_size=96), r"other shapes than config.json says, .*"
         r"\[64, 128\] instead of \[64, 96\]"),
        (lambda f: edit(f / "config.json", model_type="alien"), "model in .* cannot be loaded: .*alien"),
    ],
    ids=["vocabulary", "eos", "bos", "missing weight", "other shape", "unknown kind"],
)  # fmt: skip
def test_a_base_whose_parts_do_not_fit_each_other_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    check_model(run_with(folder, tmp_path))
    damage(folder)
    with pytest.raises(ModelError, match=words):
        check_model(run_with(folder, tmp_path))
    with pytest.raises(ModelError, match=words):
        register_folder(Store(tmp_path / "store"), BaseModelConfig(model=str(folder)))


def test_an_encoder_that_calls_itself_causal_is_refused(tmp_path: Path, whole: Path) -> None:
    from transformers import RobertaConfig, RobertaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaForCausalLM(RobertaConfig(vocab_size=600, **size)).save_pretrained(tmp_path / "roberta")
    shutil.copy(whole / "tokenizer.json", tmp_path / "roberta")
    with pytest.raises(ModelError, match=r"roberta is an encoder: in .*, tokens see those behind them"):
        check_model(run_with(tmp_path / "roberta", tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(
    folder: Path, tmp_store: Store, dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PIECE", 1000)
    edit_weights(folder, lambda t: t.update({name: tensor.to(dtype) for name, tensor in t.items()}))
    largest = torch.finfo(dtype).max
    edit_weights(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[-1:].fill_(largest))
    weights.check_finite(folder)
    edit_weights(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[-1:].fill_(value))
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight holds NaN or infinity"):
        register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    assert tmp_store.list("base") == []


def test_the_weights_of_a_registered_base_are_not_read_again(
    folder: Path, tmp_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("tunewright.models.base.check_finite", read.append)
    for _ in range(3):
        register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    assert read == [folder]


def test_a_base_that_changed_is_named_with_its_files_and_what_it_was(folder: Path, tmp_store: Store) -> None:
    before, _ = register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    assert changed_since(tmp_store, before) is None
    edit_weights(folder, lambda t: t["model.norm.weight"].mul_(2))
    after, known = register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    assert not known
    told = changed_since(tmp_store, after)
    assert told == f"{WEIGHTS} changed in {folder} since {before.ref}, which is not used any more"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            {"type": "lora", "target_modules": ["q_prj"]},
            r"target_modules=\['q_prj'\]: the model has no layer q_prj. Its linear layers: down_proj, g",
        ),
        ({"type": "dora", "target_modules": ["mlp"]}, "mlp is a LlamaMLP, and adapters go on linear layers"),
        ({"type": "freeze", "last_blocks": 9}, r"last_blocks=9: the model has \d blocks"),
        ({"type": "ia3", "target_modules": ["nothing"]}, "the model has no layer nothing"),
        ({"type": "prefix_tuning", "tokens": 200}, "rows of 192 tokens and 200 virtual tokens do not fit"),
    ],
    ids=["target", "kind", "blocks", "ia3", "context"],
)
@pytest.mark.parametrize("base", ["folder", "tiny"])
def test_a_method_that_has_no_place_in_the_model_is_refused_before_data_is_prepared(
    whole: Path, tmp_path: Path, base: str, method: dict[str, Any], words: str
) -> None:
    if (base, method["type"]) == ("tiny", "prefix_tuning"):
        method, words = {**method, "tokens": 400}, "rows of 192 tokens and 400 virtual tokens do not fit"
    run = run_with(whole if base == "folder" else "tiny", tmp_path, method)
    with pytest.raises(TrainError, match=words):
        check_model(run)


def test_a_method_that_only_a_trial_or_an_earlier_stage_has_is_tried_too(whole: Path, tmp_path: Path) -> None:
    run = run_with(whole, tmp_path, {"type": "lora", "rank": 4, "target_modules": ["q_proj"]})
    assert run.sweep is not None
    Path(run.sweep.space).write_text("train.method.target_modules: {choice: [[k_prj], [v_prj]]}\n")
    with pytest.raises(TrainError, match="the model has no layer [kv]_prj"):
        check_model(run)
    given = small_run(whole, tmp_path / "store", sweep=None)
    bad = {**given["train"], "method": {"type": "freeze", "last_blocks": 50}}
    given["stages"] = [{"name": "domain", "data": given["data"], "train": bad}]
    with pytest.raises(TrainError, match=r"^stages\.0\.train\.method\.last_blocks=50"):
        check_model(load_run(write_run(tmp_path / "run.yaml", given)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"type": "lora", "rank": 0}}, "train.method.rank.*greater than or equal to 1"),
        ({"global_batch_size": 6}, r"global_batch_size=6 is not a multiple of .*=4; nearest valid: 4 and 8"),
        ({"method": {"type": "qlora"}, "zero": {"stage": 3}}, "those of qlora are packed in 4 bits; choose"),
        ({"method": {"type": "adapters"}}, "'full', 'freeze', 'lora'"),
    ],
    ids=["rank", "batch", "engine", "method"],
)
def test_settings_that_training_cannot_have_are_refused_with_the_file(
    whole: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    given = small_run(whole, tmp_path / "store")
    given["train"] |= changes
    with pytest.raises(ConfigError, match=words):
        load_run(write_run(tmp_path / "run.yaml", given))


def test_data_without_a_supervised_token_is_refused() -> None:
    from tunewright.data.funnel import check_rules
    from tunewright.errors import DataError

    config: Any = SimpleNamespace(pack=SimpleNamespace(overflow="drop"))
    report = {"gates": [], "splits": {"train": {"rows": 3, "supervised_tokens": 0}}}
    with pytest.raises(DataError, match="no token of the data set carries loss"):
        check_rules(config, report, Path("work"))


def test_the_terminal_tells_it_in_one_line_and_nothing_is_started(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "config.json", eos_token_id=77)
    started = "ray" in sys.modules
    path = write_run(tmp_path / "run.yaml", small_run(folder, tmp_path / "store"))
    assert main([str(path)]) == 1
    told = capfd.readouterr()
    assert told.err.startswith(f"error: {folder}: the tokenizer is not this model's")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert ("ray" in sys.modules) == started
    assert not any((tmp_path / "store" / "artifacts").rglob("*"))


def test_parameters_are_counted_by_kind_and_a_shared_weight_once(whole: Path) -> None:
    from tunewright.config.methods import LoraConfig
    from tunewright.train.methods.fitting import fit_method

    model = skeleton(whole)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    counted = parameters_of(model)
    assert counted.total == counted.trainable == sum(t.numel() for t in load_file(whole / WEIGHTS).values())
    assert counted.held["embeddings"] == 64 * model.config.vocab_size
    assert set(counted.held) == {"embeddings", "attention", "mlp", "norms"}
    fitted = fit_method(model, LoraConfig(rank=4), 128)
    ends = 4 * (64 + 64) + 3 * (64 + 128)  # inputs and outputs of the seven linear layers of a block
    assert fitted.trained == {"adapter": 2 * 4 * ends}
    assert fitted.total == counted.total + fitted.trainable
