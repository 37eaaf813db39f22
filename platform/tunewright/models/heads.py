"""Models with a head of classes on the transformer: of documents (`sequence`) or of tokens (`token`).

A head is one linear layer over the last hidden states. Packed rows ask it at places of their own
choice; what transformers answer for one text by itself is the score at its last token, the same number.

H hidden size, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunewright.errors import ModelError
from tunewright.models.load import read_weights, with_adapter
from tunewright.models.skeleton import quiet_transformers, read_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Kind = Literal["sequence", "token"]
LABELS = "labels.json"
"""Beside a classifier's weights: the names of its classes, by number."""
CLASS_ENDINGS: Mapping[Kind, str] = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
}
"""How the names of transformers' classes with the head end."""
TASK_TYPES: Mapping[Kind, str] = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
"""What PEFT calls a model with the head."""
HEAD_NAMES = ("score", "classifier")
"""Of the head in transformers' classes; PEFT trains and saves modules of these names by itself."""


def load_headed(
    folder: Path, kind: Kind, labels: Sequence[str], dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """The model of `folder` with a head for `labels`, in evaluation mode.

    The head is drawn from `seed`, so that every worker has the same one; unless the folder has one for
    the same labels already.

    Raises:
        ModelError: the architecture has no such head, or the folder's weights cannot be loaded.
    """
    import transformers

    autos: dict[Kind, Any] = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
    }
    config = read_config(folder)
    if type(config) not in autos[kind]._model_mapping:
        raise ModelError(
            f"transformers has no {CLASS_ENDINGS[kind]} class for {config.model_type} models; choose a base "
            f"such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"
        )
    written = kind_of_name((config.architectures or [""])[0]), tuple((config.id2label or {}).values())
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    with quiet_transformers():
        model, found = read_weights(
            autos[kind], folder, dtype, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    name = head_name(model)
    wanting = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    other = sorted(key for key in wanting if not key.startswith(f"{name}."))
    if other:
        raise ModelError(f"the model in {folder} has no weights for {len(other)} places, first {other[0]}")
    if wanting or written != (kind, tuple(labels)):
        _draw(model, name, seed)
    settings = model.config.get_text_config()
    settings.pad_token_id = pad_that_ends_no_text(settings)
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_classifier(
    base: Path, adapter: Path | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A trained classifier or reward model in evaluation mode, and the names of its classes.

    `model(input_ids=one text's ids).logits` are its scores: at the last token, or at each one.

    Args:
        base: folder of the base model; or of the whole trained model, without an adapter.
    Raises:
        ModelError: it is of another kind, or cannot be loaded.
    """
    kind = kind_of_folder(adapter or base)
    path = (adapter or base) / LABELS
    if kind is None or not path.is_file():
        raise ModelError(f"{adapter or base} holds no classifier: it has no {LABELS}, or is a language model")
    labels = tuple(json.loads(path.read_text(encoding="utf-8")))
    model = load_headed(base, kind, labels, dtype, seed=0)
    return with_adapter(model, adapter, dtype), labels


def kind_of_folder(folder: Path) -> Kind | None:
    """What the head of the adapter or model in `folder` is asked about; None of a language model."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        told = json.loads(adapter.read_text(encoding="utf-8")).get("task_type")
        return next((kind for kind, task in TASK_TYPES.items() if task == told), None)
    return kind_of_name((read_config(folder).architectures or [""])[0])


def kind_of_name(name: str) -> Kind | None:
    """What the head of a class of transformers is asked about; None of a language model's."""
    return next((kind for kind, ending in CLASS_ENDINGS.items() if name.endswith(ending)), None)


def kind_of(model: Any) -> Kind | None:
    """What the model's head is asked about, whatever is around the model; None of a language model."""
    return kind_of_name(type(_inner(model)).__name__)


def head_name(model: Any) -> str:
    """The name of the head in the base model."""
    inner = _inner(model)
    return next(name for name in HEAD_NAMES if hasattr(inner, name))


def head_of(model: Any) -> torch.nn.Module:
    """The head as the model calls it: PEFT's wrapper, where there is one around it."""
    inner = _inner(model)
    head: torch.nn.Module = getattr(inner, head_name(inner))
    return head


def write_labels(model: Any, folder: Path) -> None:
    """Write the names of the model's classes beside its weights."""
    names = [str(name) for _, name in sorted(_inner(model).config.id2label.items())]
    (folder / LABELS).write_text(json.dumps(names, indent=2, ensure_ascii=False), encoding="utf-8")


def pad_that_ends_no_text(config: Any) -> int:
    """A token for padding that is no end token, the configuration's if it is none.

    Of padded rows, transformers ask the last token that is not padding. Texts end with an end token:
    if that counted as padding, the token before it would be asked, which nobody trained.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    choices = (config.pad_token_id, getattr(config, "bos_token_id", None), *range(len(ends) + 1))
    return next(int(token) for token in choices if token is not None and token not in ends)


def _inner(model: Any) -> Any:
    """The transformers model inside DeepSpeed's engine and PEFT's."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _draw(model: Any, name: str, seed: int) -> None:
    """In fp32 whatever the model computes in: a run in bf16 begins with the same head."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    head = getattr(model, name)
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    drawn_CH = torch.empty(head.weight.shape).normal_(0.0, std, generator=generator)
    with torch.no_grad():
        head.weight.copy_(drawn_CH)
        if head.bias is not None:
            head.bias.zero_()
