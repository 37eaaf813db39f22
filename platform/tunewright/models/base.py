"""Base models: what `base:` in a run's file stands for.

A base is a Hugging Face folder (config.json, *.safetensors, tokenizer.json). Its artifact either
holds the folder (`model/`) or names one outside the store together with the SHA-256 of each file,
so that a base that changed is another artifact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash, file_sha256, write_json
from tunewright.config import BaseModelConfig
from tunewright.errors import ModelError
from tunewright.models.weights import check_finite, check_weights, first_of, headers

CAUSAL = ("ForCausalLM", "GPT2LMHeadModel")
"""How the names of causal language models end."""
KEPT = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def model_folder(base: Artifact) -> Path:
    """The Hugging Face folder of a base artifact.

    Raises:
        ModelError: the folder lies outside the store and is gone.
    """
    inside = base.path / "model"
    folder = inside if inside.is_dir() else Path(base.facts["folder"])
    if not (folder / "config.json").is_file():
        raise ModelError(f"base {base.ref}: its folder {folder} is gone")
    return folder


def register_folder(store: Store, config: BaseModelConfig) -> tuple[Artifact, bool]:
    """The base artifact of a local folder or a Hugging Face id, and whether it was already known.

    Raises:
        ModelError: not there, not a causal language model, pickled weights, or code of its own.
    """
    folder = locate(config)
    check_folder(folder)
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for pattern in KEPT
        for path in sorted(folder.glob(pattern))
    }
    code = code_hash("models/base", "models/weights", "models/vocabulary")
    plan = Plan("base", {}, {"files": files, "revision": config.revision}, code)
    found = store.find(plan)
    if found is not None and Path(found.facts["folder"]) == folder:
        return found, True
    if found is not None:  # the same files in another place: the newer place counts
        store.quarantine(found.path, f"the base moved to {folder}")
    else:
        check_whole(folder)
    work = clear_dir(store.work_dir(plan))
    write_json(work / "source.json", {"model": config.model, "folder": str(folder), "files": files})
    facts = {"model": config.model, "folder": str(folder), **describe(folder)}
    return store.publish(plan, work, facts), False


def check_whole(folder: Path) -> None:
    """Raises `ModelError` unless weights and tokenizer are those of the model, and each number is finite.

    Reads every weight once; a base is registered for good, so that this is paid once.
    """
    check_fits(folder)
    check_finite(folder)


def check_fits(folder: Path) -> None:
    """Raises `ModelError` unless weights and tokenizer are those of the model; reads no weight."""
    from tunewright.models.skeleton import whole_skeleton
    from tunewright.models.vocabulary import check_tokenizer

    check_tokenizer(folder, whole_skeleton(folder))


def changed_since(store: Store, base: Artifact) -> str | None:
    """What changed in the base's folder since the store last knew it, or None.

    Models that were trained from what the folder held before are right on that alone.
    """
    folder, files = base.facts["folder"], base.manifest.config["files"]
    for before in reversed(store.list("base")):
        known = before.manifest.config.get("files")
        if before.ref == base.ref or before.facts.get("folder") != folder or known in (None, files):
            continue
        names = sorted(n for n in {*known, *files} if known.get(n) != files.get(n))
        return f"{first_of(names)} changed in {folder} since {before.ref}, which is not used any more"
    return None


def check_base(config: BaseModelConfig) -> None:
    """Raises `ModelError` for what can be told without fetching anything from a hub."""
    if Path(config.model).expanduser().is_dir() or not is_hub_id(config.model):
        check_folder(locate(config))
    else:
        _require_revision(config)


def _require_revision(config: BaseModelConfig) -> None:
    if config.revision is None:
        raise ModelError(
            f"base model {config.model}: a Hugging Face id needs base.revision (a commit or tag)"
        )


def check_folder(folder: Path) -> None:
    """Raises `ModelError` with the reason when `folder` cannot be a base."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json{_adapter(folder)}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{config_file} holds a {type(config).__name__}, not the settings of a model")
    _check_settings(folder, config)
    _check_format(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    check_weights(folder)


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    if config.get("auto_map"):
        raise ModelError(
            f"{folder} wants to run its own code (auto_map in config.json); that is refused: it could "
            f"do anything here. If transformers has {config.get('model_type')} models of its own, delete "
            f"auto_map from a copy of the folder; else choose another base"
        )
    names = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith(CAUSAL) for name in names) or config.get("is_encoder_decoder"):
        kind = "an encoder with a decoder" if config.get("is_encoder_decoder") else "another kind of model"
        raise ModelError(
            f"{folder} is not a causal language model: architectures is {names}, {kind}; choose one whose "
            f"architecture ends with ForCausalLM, such as Llama, Qwen, Mistral, Gemma or Phi, or GPT-2"
        )
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "some way") if isinstance(quantized, dict) else "some way"
        raise ModelError(
            f"{folder} is quantized already ({method}); training needs the unquantized model, which "
            f"train.method.type=qlora can hold in 4 bits"
        )


def _check_format(folder: Path) -> None:
    """Raises `ModelError` unless there are safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for end in ("*.bin", "*.pt", "*.pth") for p in folder.glob(end))
    if pickled:
        raise ModelError(
            f"{folder} has only pickled weights ({', '.join(pickled)}), which can run code; safetensors are "
            f'needed. If you trust whoever made it: python -c "from transformers import AutoModelForCausalLM '
            f"as A; A.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\", and copy the "
            f"tokenizer's files"
        )
    other = sorted(p.name for end in ("*.gguf", "*.h5", "*.msgpack", "*.onnx") for p in folder.glob(end))
    raise ModelError(
        f"{folder} has {'weights only in ' + first_of(other) if other else 'no weights'}; "
        f"safetensors are needed"
    )


def _adapter(folder: Path) -> str:
    """What to say of a folder that holds an adapter."""
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return f", but an adapter; its base is {told.get('base_model_name_or_path')}"
    except (OSError, ValueError, AttributeError):
        return ""


def describe(folder: Path) -> dict[str, object]:
    """Architecture and parameter count, from the files' headers alone.

    Raises:
        ModelError: a weights file that is cut short or is not safetensors.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "architecture": config["architectures"][0],
        "parameters": count_parameters(folder),
        "context": config.get("max_position_embeddings") or config.get("n_positions"),
    }


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a folder; no weight is read.

    Raises:
        ModelError: a weights file that is cut short or is not safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    return sum(tensor.count for path in files for tensor in headers(path).values())


def locate(config: BaseModelConfig) -> Path:
    """The folder that `base:` names; a hub id is fetched.

    Raises:
        ModelError: no such folder, or a hub id that cannot be fetched.
    """
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not is_hub_id(config.model):
        raise ModelError(
            f"base model {config.model}: no such folder. Give `tiny`, a folder with config.json and "
            f"*.safetensors, or a Hugging Face id such as Qwen/Qwen3-0.6B with a revision"
        )
    _require_revision(config)
    assert config.revision is not None
    return _download(config.model, config.revision)


def is_hub_id(model: str) -> bool:
    """Whether the text reads as OWNER/NAME rather than as a path."""
    return not model.startswith((".", "/", "~")) and model.count("/") == 1


def _download(model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(KEPT))).resolve()
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"base model {model}@{revision} is not a local folder and cannot be fetched from the "
            f"Hugging Face hub: {reason}"
        ) from error
