"""Folders -> tokenizers and weights. Reads safetensors only and never runs code from a model folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import DataError, ModelError
from tunewright.models.chat import ChatRenderer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def import_tokenizers() -> None:
    """Import what loading a tokenizer needs; the first time takes seconds."""
    import transformers

    _ = transformers.AutoTokenizer  # found, and with it imported, when it is first named


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in `folder`.

    Raises:
        ModelError: there is none, or it would need code from the folder.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json; a fast tokenizer is needed")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the parser of tokenizer.json raises nothing narrower
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def load_renderer(folder: Path, template: str | None = None) -> ChatRenderer:
    """The chat renderer of a tokenizer folder; stop tokens of its generation_config.json are heeded."""
    stops: Any = []
    config = folder / "generation_config.json"
    if config.is_file():
        try:
            stops = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id") or []
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{config} is not a JSON object: {error}") from None
    try:
        return ChatRenderer(load_tokenizer(folder), template, stops if isinstance(stops, list) else [stops])
    except DataError as error:
        raise ModelError(f"{folder}: {error}") from None


def save_tokenizer(renderer: ChatRenderer, folder: Path) -> None:
    """Write the tokenizer with the template and stop tokens actually used, to be loaded as above."""
    renderer.tokenizer.chat_template = renderer.template
    renderer.tokenizer.save_pretrained(folder)
    stops = {"eos_token_id": sorted(renderer.stop_ids), "pad_token_id": renderer.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(stops, indent=2), encoding="utf-8")


def load_model(base_folder: Path, adapter_folder: Path | None, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of `base_folder`, with the adapter on it, in evaluation mode.

    Raises:
        ModelError: the folder holds no safetensors weights that transformers can load, or a classifier.
    """
    from transformers import AutoModelForCausalLM

    from tunewright.models.heads import kind_of_folder

    kind = kind_of_folder(adapter_folder or base_folder)
    if kind is not None:
        raise ModelError(
            f"{adapter_folder or base_folder} holds a model for {kind} classification, which gives scores "
            f"and no text; a language model is needed here"
        )
    model = read_weights(AutoModelForCausalLM, base_folder, dtype)
    return with_adapter(model, adapter_folder, dtype)


def read_weights(auto: Any, folder: Path, dtype: torch.dtype, **more: Any) -> Any:
    """What a class of transformers makes of `folder`, from safetensors alone.

    Raises:
        ModelError: the folder holds no safetensors weights that transformers can load.
    """
    with _explained(folder):
        return auto.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            **more,
        )


def with_adapter(model: Any, folder: Path | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model with the adapter of `folder` on it, in evaluation mode."""
    if folder is not None:
        from peft import PeftModel

        from tunewright.models.new_rows import with_own_rows
        from tunewright.models.prompted import prompted
        from tunewright.models.quantize import quantize_nf4, was_quantized

        if was_quantized(folder):
            quantize_nf4(model, dtype)
        tuned = PeftModel.from_pretrained(
            model, str(folder), is_trainable=False, autocast_adapter_dtype=False
        )
        model = with_own_rows(prompted(tuned))
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {error}") from error
