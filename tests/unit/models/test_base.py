"""A base that cannot be used is refused with the reason; one that changed is another artifact."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from doubles import tiny_model_folder
from tunewright.artifacts import Store
from tunewright.config import BaseModelConfig
from tunewright.errors import ModelError
from tunewright.models.base import check_folder, describe, is_hub_id, locate, model_folder, register_folder
from tunewright.models.load import load_model, load_renderer

SHARED_MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"
ALIEN = "custom--modeling.Alien"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("whole"), context=64)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A good model folder of this test's own."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def test_a_folder_becomes_a_base_and_is_known_the_next_time(folder: Path, tmp_store: Store) -> None:
    config = BaseModelConfig(model=str(folder))
    base, known = register_folder(tmp_store, config)
    assert not known
    assert model_folder(base) == folder
    assert base.facts["architecture"] == "LlamaForCausalLM"
    assert base.facts["context"] == 64
    assert base.facts["parameters"] == sum(
        p.numel() for p in load_model(folder, None, torch.float32).parameters()
    )
    again, known = register_folder(tmp_store, config)
    assert known
    assert again.ref == base.ref


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_base_of_which_one_file_changed_is_another_artifact(
    folder: Path, tmp_store: Store, name: str
) -> None:
    config = BaseModelConfig(model=str(folder))
    before, _ = register_folder(tmp_store, config)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        content[:-1] + bytes([content[-1] ^ 1]) if name[0] == "m" else content + b"\n"
    )
    after, known = register_folder(tmp_store, config)
    assert not known
    assert after.ref != before.ref


def test_a_base_that_moved_is_the_same_artifact_in_its_new_place(folder: Path, tmp_store: Store) -> None:
    before, _ = register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    moved = folder.rename(folder.with_name("moved"))
    with pytest.raises(ModelError, match=r"its folder .*model is gone"):
        model_folder(before)
    after, _ = register_folder(tmp_store, BaseModelConfig(model=str(moved)))
    assert after.ref == before.ref
    assert model_folder(after) == moved


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "is not a model folder: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json holds a list, not the settings"),
        (pickle_weights, r"only pickled weights \(pytorch_model.bin\), which can run code; safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights; safetensors are needed"),
        (lambda f: os.truncate(f / "model.safetensors", 2000), "model.safetensors is damaged or is not"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK\3\4" * 100), "model.safetensors is damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: edit_config(f, auto_map={"AutoModel": ALIEN}), "wants to run its own code"),
        (lambda f: edit_config(f, architectures=["BertForMaskedLM"]), "is not a causal language model"),
        (lambda f: edit_config(f, architectures=None), r"is not a causal language model: .* is \[\]"),
    ],
    ids=["no config", "cut config", "UTF-16", "list", "pickled", "no weights", "cut weights",
         "other weights", "no tokenizer", "own code", "not causal", "no architecture"],
)  # fmt: skip
def test_a_folder_that_cannot_be_a_base_is_refused_with_the_reason(
    folder: Path, tmp_store: Store, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=words) as caught:
        register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    assert str(folder) in str(caught.value)
    assert tmp_store.list("base") == []


@pytest.mark.parametrize("model", ["./not/there", "/not/there", "~/not-there", "gpt2", "a/b/c"])
def test_a_folder_that_is_not_there_is_told_apart_from_a_hub_id(model: str) -> None:
    assert not is_hub_id(model)
    with pytest.raises(ModelError, match="no such folder. Give `tiny`, a folder .* or a Hugging Face id"):
        locate(BaseModelConfig(model=model))


def test_a_hub_id_needs_a_revision() -> None:
    with pytest.raises(ModelError, match=r"a Hugging Face id needs base\.revision \(a commit or tag\)"):
        locate(BaseModelConfig(model="acme/chat-1b"))


def test_a_hub_id_without_a_network_is_refused_and_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        locate(BaseModelConfig(model="acme/chat-1b", revision="v1"))
    told = str(caught.value)
    assert told.startswith("base model acme/chat-1b@v1 is not a local folder and cannot be fetched from the")
    assert "\n" not in told


def test_a_hub_that_does_not_answer_is_a_sentence(tmp_path: Path) -> None:
    code = (
        "from tunewright.models.base import *\n"
        "try: locate(BaseModelConfig(model='acme/chat-1b', revision='v1'))\n"
        "except ModelError as error: print(error)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert told.stdout.startswith("base model acme/chat-1b@v1 is not a local folder and cannot be fetched")
    assert "Connection refused" in told.stdout


def test_weights_that_do_not_load_are_a_model_error(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 2000)
    with pytest.raises(ModelError, match="the model in .* cannot be loaded"):
        load_model(folder, None, torch.float32)
    pickle_weights(folder)
    with pytest.raises(ModelError, match="the model in .* cannot be loaded"):
        load_model(folder, None, torch.float32)


@pytest.mark.parametrize(
    ("name", "parameters", "context"), [("stories260k-hf", 260_032, 512), ("babyllama105-hf", None, 256)]
)
def test_real_models_are_bases(tmp_store: Store, name: str, parameters: int | None, context: int) -> None:
    folder = SHARED_MODELS / name
    if not folder.is_dir():
        pytest.skip("needs the real models in ../shared")
    base, _ = register_folder(tmp_store, BaseModelConfig(model=str(folder)))
    assert base.facts["context"] == context
    model = load_model(folder, None, torch.float32)
    assert base.facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert parameters in (None, base.facts["parameters"])
    renderer = load_renderer(folder)
    ids = torch.tensor([renderer.prompt([{"role": "user", "content": "Once upon a time"}])])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert torch.isfinite(logits).all()
    assert logits.shape[:2] == ids.shape


def test_a_tokenizer_alone_is_not_a_base() -> None:
    folder = SHARED_MODELS / "gpt2-tokenizer-hf"
    if not folder.is_dir():
        pytest.skip("needs the real models in ../shared")
    with pytest.raises(ModelError, match="is not a model folder: it has no config.json"):
        check_folder(folder)


def test_a_description_counts_the_weights_of_every_file(folder: Path) -> None:
    once = describe(folder)["parameters"]
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    assert describe(folder)["parameters"] == 2 * int(str(once))
