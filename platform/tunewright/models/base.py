"""Base models: what `base:` in a run's file stands for.

A base is a Hugging Face folder (config.json, *.safetensors, tokenizer.json). Its artifact either
holds the folder (`model/`) or names one outside the store together with the SHA-256 of each file,
so that a base that changed is another artifact.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash, file_sha256, write_json
from tunewright.config import BaseModelConfig
from tunewright.errors import ModelError

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
    plan = Plan("base", {}, {"files": files, "revision": config.revision}, code_hash("models/base"))
    found = store.find(plan)
    if found is not None and Path(found.facts["folder"]) == folder:
        return found, True
    if found is not None:  # the same files in another place: the newer place counts
        store.quarantine(found.path, f"the base moved to {folder}")
    work = clear_dir(store.work_dir(plan))
    write_json(work / "source.json", {"model": config.model, "folder": str(folder), "files": files})
    facts = {"model": config.model, "folder": str(folder), **describe(folder)}
    return store.publish(plan, work, facts), False


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
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{config_file} holds a {type(config).__name__}, not the settings of a model")
    if config.get("auto_map"):
        raise ModelError(f"{folder} wants to run its own code (auto_map in config.json); that is refused")
    names = config.get("architectures") or []
    if not any(str(name).endswith("ForCausalLM") for name in names):
        raise ModelError(f"{folder} is not a causal language model: architectures is {names}")
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        found = (
            f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else "no weights"
        )
        raise ModelError(f"{folder} has {found}; safetensors are needed")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json")


def describe(folder: Path) -> dict[str, object]:
    """Architecture and parameter count, from the files' headers alone.

    Raises:
        ModelError: a weights file that is cut short or is not safetensors.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "architecture": config["architectures"][0],
        "parameters": count_parameters(folder),
        "context": config.get("max_position_embeddings"),
    }


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a folder; no weight is read.

    Raises:
        ModelError: a weights file that is cut short or is not safetensors.
    """
    return sum(_count(path) for path in sorted(folder.glob("*.safetensors")))


def _count(weights: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np") as file:
            names = file.keys()
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise ModelError(f"{weights} is damaged or is not a safetensors file: {error}") from None


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
