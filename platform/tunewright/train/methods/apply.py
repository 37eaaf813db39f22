"""A method put on a model, so that exactly its weights are trained."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tunewright.config.methods import (
    FreezeConfig,
    FullConfig,
    Ia3Config,
    LowRankMethod,
    Method,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from tunewright.errors import ModelError, TrainError
from tunewright.models.heads import TASK_TYPES, head_name, kind_of
from tunewright.train.methods.names import (
    architecture,
    check_trainable,
    ia3_targets,
    is_linear,
    named,
    output_name,
    saved_whole,
    trainable_names,
)
from tunewright.train.methods.tokens import rows_and_saved

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def apply_method(model: PreTrainedModel, method: Method, seed: int) -> torch.nn.Module:
    """The model with exactly the method's weights trainable.

    New weights are drawn from `seed`, so that every worker holds the same ones.

    Raises:
        TrainError: a module that matches nothing, or a method that the architecture has no place for.
        ModelError: packed rows or the method are not for this architecture.
    """
    import torch

    from tunewright.models.packed import check_packable

    check_packable(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        applied = _applied(model, method)
    check_trainable(applied, method)
    return applied


def context_left(model: Any, row_length: int) -> None:
    """Ensure that rows fit into the model's context, virtual tokens included.

    Raises:
        TrainError: they do not; says how long they may be.
    """
    from tunewright.models.prompted import virtual_tokens

    context = getattr(model.config, "max_position_embeddings", None)
    own = virtual_tokens(model)
    if context is not None and row_length + own > context:
        also = f" and {own} virtual tokens" if own else ""
        raise TrainError(
            f"rows of {row_length} tokens{also} do not fit into the model's context of {context}; "
            f"set data.pack.seq_len to at most {context - own}"
        )


def _applied(model: PreTrainedModel, method: Method) -> torch.nn.Module:
    if isinstance(method, FullConfig):
        model.requires_grad_(True)
        return model
    if isinstance(method, FreezeConfig):
        wanted = trainable_names(model, method)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in wanted)
        return model
    if isinstance(method, PromptTuningConfig | PrefixTuningConfig):
        return _with_virtual_tokens(model, method)
    if isinstance(method, Ia3Config):
        return _with_peft(model, _ia3(model, method))
    if method.type == "qlora":
        from tunewright.models.quantize import quantize_nf4

        quantize_nf4(model, model.dtype)
    from tunewright.models.new_rows import with_own_rows

    return with_own_rows(_with_peft(model, _low_rank(model, method)))


def _low_rank(model: PreTrainedModel, method: LowRankMethod) -> Any:
    from peft import LoraConfig

    modules = architecture(model)
    rows, saved = rows_and_saved(model, modules, method, saved_whole(model, method.modules_to_save))
    tied = _shares_weights(model, modules, named(modules, saved, "modules_to_save"))
    if method.target_modules == ("all-linear",):
        output = output_name(model, modules)
        layers = [name for name, module in modules.items() if is_linear(module) and name != output]
    else:
        layers = _adaptable(modules, named(modules, method.target_modules, "target_modules"))
        _check_not_head(model, layers)
    if not layers:
        raise TrainError(
            f"train.method.type={method.type}: a {model.config.model_type} model has no linear layer"
        )
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.effective_alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules="all-linear"
        if method.target_modules == ("all-linear",)
        else list(method.target_modules),
        modules_to_save=saved or None,
        trainable_token_indices=rows or None,
        use_rslora=method.type == "rslora",
        use_dora=method.type == "dora",
        fan_in_fan_out=_is_transposed(modules, layers),
        # Else a tied head would be trained apart from the embeddings that it shares its weights with.
        ensure_weight_tying=tied,
        task_type=_task_type(model),
    )


def _shares_weights(model: PreTrainedModel, modules: dict[str, torch.nn.Module], chosen: list[str]) -> bool:
    """Whether a weight of the chosen modules is also another module's."""
    times = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return any(times[id(weight)] > 1 for name in chosen for weight in modules[name].parameters())


def _ia3(model: PreTrainedModel, method: Ia3Config) -> Any:
    from peft import IA3Config

    targets, feedforward = ia3_targets(model, method)
    modules = architecture(model)
    layers = _adaptable(modules, named(modules, targets, "target_modules"))
    _check_not_head(model, layers)
    return IA3Config(
        target_modules=list(targets),
        feedforward_modules=list(feedforward),
        fan_in_fan_out=_is_transposed(modules, layers),
        modules_to_save=saved_whole(model, ()) or None,
        task_type=_task_type(model),
    )


def _task_type(model: PreTrainedModel) -> Any:
    kind = kind_of(model)
    return "CAUSAL_LM" if kind is None else TASK_TYPES[kind]


def _check_not_head(model: PreTrainedModel, layers: list[str]) -> None:
    """Raises `TrainError` when an adapter would go on the head of a classifier."""
    if kind_of(model) is not None and head_name(model) in layers:
        raise TrainError(
            f"train.method.target_modules: {head_name(model)} is the head of the classes, which is trained "
            f"whole by every method; leave it out"
        )


def _adaptable(modules: dict[str, torch.nn.Module], layers: list[str]) -> list[str]:
    """The layers, which an adapter can be put on. Raises `TrainError` if one is a module of several."""
    import torch

    for name in layers:
        module = modules[name]
        if not is_linear(module) and not isinstance(module, torch.nn.Embedding):
            parts = ", ".join(part for part, _ in module.named_children()) or "none"
            raise TrainError(
                f"train.method.target_modules: {name} is a {type(module).__name__}, and adapters go on "
                f"linear layers and embeddings; its parts: {parts}"
            )
    return layers


def _is_transposed(modules: dict[str, torch.nn.Module], layers: list[str]) -> bool:
    """Whether the layers keep their weights as GPT-2 does, inputs first.

    Raises:
        TrainError: some do and some do not; PEFT takes one answer for all.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = {isinstance(modules[name], Conv1D) for name in layers if is_linear(modules[name])}
    if len(kinds) > 1:
        raise TrainError(
            f"train.method.target_modules: {', '.join(sorted(layers)[:3])}... keep their weights in two "
            f"ways (Conv1D and Linear); name those of one kind"
        )
    return kinds == {True}


def _with_peft(model: PreTrainedModel, config: Any) -> torch.nn.Module:
    from peft import get_peft_model

    try:
        wrapped: torch.nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise TrainError(
            f"PEFT refuses train.method for a {model.config.model_type} model: {error}"
        ) from None
    return wrapped


def _with_virtual_tokens(
    model: PreTrainedModel, method: PromptTuningConfig | PrefixTuningConfig
) -> torch.nn.Module:
    import torch
    from peft import PeftModel
    from peft import PrefixTuningConfig as PeftPrefix
    from peft import PromptTuningConfig as PeftPrompt

    from tunewright.models.prompted import check_prompted, prompted

    check_prompted(model)
    words_1P = torch.randint(model.config.vocab_size, (1, method.tokens))
    if isinstance(method, PromptTuningConfig):
        config: Any = PeftPrompt(num_virtual_tokens=method.tokens, task_type="CAUSAL_LM")
        with torch.no_grad():
            begin = model.get_input_embeddings()(words_1P)[0]
    else:
        pairs_LHPD = _keys_and_values(model, words_1P)
        layers, heads, _, channels = pairs_LHPD.shape
        config = PeftPrefix(
            num_virtual_tokens=method.tokens,
            num_layers=layers // 2,
            num_attention_heads=heads,
            token_dim=heads * channels,
            task_type="CAUSAL_LM",
        )
        begin = pairs_LHPD.permute(2, 0, 1, 3).reshape(method.tokens, -1)
    wrapped: PeftModel = prompted(_with_peft(model, config))
    encoder: Any = wrapped.prompt_encoder["default"]
    encoder.embedding.weight = torch.nn.Parameter(begin.detach().clone().to(model.dtype))
    return wrapped


def _keys_and_values(model: PreTrainedModel, ids_1P: torch.Tensor) -> torch.Tensor:
    """(2 * layers, H, P, D) keys and values of tokens, layer after layer.

    Raises:
        ModelError: the layers' keys have different shapes.
    """
    import torch
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    training = model.training
    with torch.no_grad():
        model.eval()(input_ids=ids_1P, past_key_values=cache, use_cache=True)
    model.train(training)
    pairs = [pair[0] for layer in cache.layers for pair in (layer.keys, layer.values)]
    if len({pair.shape for pair in pairs}) != 1:
        raise ModelError(
            f"the layers of {model.config.model_type} models keep keys of different shapes, which "
            f"prefix_tuning cannot put its own before; choose prompt_tuning"
        )
    return torch.stack(pairs)
