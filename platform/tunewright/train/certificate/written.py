"""Entries 4 and 5: what was written answers as the live model did, and as base and adapter in one.

V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tunewright.config.methods import Method
from tunewright.errors import ModelError
from tunewright.models.compare import Agreement, Probe, compare_models, probes_of
from tunewright.models.heads import kind_of, load_classifier
from tunewright.models.load import load_model
from tunewright.models.merge import check_mergeable, merged_model
from tunewright.train.certificate.entry import Entry, within
from tunewright.train.certificate.packed import name_of
from tunewright.train.certificate.sample import some_documents
from tunewright.train.engine import Engine
from tunewright.train.forward import quicken
from tunewright.train.streams import Stream

if TYPE_CHECKING:
    import torch

MOST_TOKENS, LEAST_TOKENS, LONGEST = 512, 64, 512
NUMBERS_KEPT = 32_000_000
"""Logits that are held at a time: 128 MB."""
PRODUCTS = 1e13
"""Multiplications that a forward pass may take; tokens of a large model are fewer."""
SAME = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""Largest difference of two logits, relative to the largest logit. Nearly always the bits are the same,
in any precision. On CPUs a product's last bit may depend on where in memory its weights lie; and under
ZeRO-3 in bf16 an adapter's products are added in another order."""
OTHER_DEVICE = 1e-3
"""The same, in fp32, of a model that fits beside the live one on the CPU only."""
MERGED = {"kl": 1e-6, "other_favourites": 0.01}
"""In fp32: mean divergence in nats, and the share of tokens with another likeliest one. Near ties may fall
otherwise."""
ROOM = 1.25
"""Memory free, in copies of the model that is read again."""


@dataclass(frozen=True)
class Live:
    """What the trained model answered before it was written.

    Attributes:
        head: what its head is asked about; None of a language model.
        answers: logits by probe; or a classifier's by document.
        quick: LoRA layers computed as `quicken` lets them; ZeRO-3's do not.
    """

    documents: list[list[int]]
    head: str | None
    answers: list[torch.Tensor]
    device: torch.device
    dtype: torch.dtype
    quick: bool

    def probes(self) -> Iterator[Probe]:
        return probes_of(self.documents, pad_id=0)


class Recorded:
    """A model that is gone, in the place of one: gives the answers that it gave, in their order."""

    training = False

    def __init__(self, answers: Sequence[torch.Tensor]):
        self.answers = list(answers)

    def __call__(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.answers.pop(0))

    def parameters(self) -> Iterator[torch.Tensor]:
        yield self.answers[0]

    def eval(self) -> Recorded:
        return self

    def train(self, mode: bool = True) -> Recorded:
        return self


def ask_live(engine: Engine, stream: Stream) -> Live:
    """The trained model's answers to held-out documents; collective: ZeRO-3 has parts of it everywhere."""
    model = engine.deepspeed.module
    rows = stream.eval_rows if len(stream.eval_rows) else stream.rows
    documents = some_documents(rows, _tokens(model), LONGEST)
    head = kind_of(model)
    was_training = model.training
    model.eval()
    answers = _classified(model, documents) if head else record(model, probes_of(documents, pad_id=0))
    model.train(was_training)
    return Live(documents, head, answers, engine.device, engine.dtype, engine.stage < 3)


def _tokens(model: Any) -> int:
    numbers = sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in model.parameters())
    vocabulary = int(model.config.get_text_config().vocab_size)
    return max(LEAST_TOKENS, min(MOST_TOKENS, NUMBERS_KEPT // vocabulary, int(PRODUCTS / max(1, numbers))))


def record(model: Any, probes: Iterator[Probe]) -> list[torch.Tensor]:
    """The model's logits, as `compare_models` asks for them."""
    import torch

    device = next(model.parameters()).device
    out = []
    with torch.no_grad():
        for probe in probes:
            inputs = {name: value.to(device) for name, value in probe.inputs.items()}
            at_K = probe.counted_BS.any(dim=0).nonzero()[:, 0].to(device)
            out.append(model(**inputs, logits_to_keep=at_K, use_cache=False).logits.cpu())
    return out


def _classified(model: Any, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([document], device=device), use_cache=False).logits.cpu()
            for document in documents
        ]


def written_entries(live: Live, base: Path, folder: Path, method: Method) -> tuple[Entry, Entry]:
    """Entries 4 and 5, on what was written to `folder`; for one worker."""
    precision = name_of(live.dtype)
    bytes_ = _bytes(base, 4 if precision == "fp32" else 2)
    if not _room(bytes_):
        said = f"reading it again takes {bytes_ / 2**30:.1f} GiB, more than this machine has free"
        return Entry(4, None, said), Entry(5, None, said)
    reopened, device = _reopened(live, base, folder, method)
    tolerance = {
        "relative_difference": max(SAME[precision], OTHER_DEVICE * (device.type != live.device.type))
    }
    if live.head is None:
        scale = max(float(answer.abs().max()) for answer in live.answers)
        found = compare_models(Recorded(live.answers), reopened, live.probes())
        measured = _figures(found, scale)
    else:
        measured = _scores_differ(live.answers, _classified(reopened, live.documents))
    kind = method.result
    said = f"the {kind} read again answers {measured['tokens']} held-out tokens as the trained model did"
    if not within(measured, tolerance):
        said = (
            f"the {kind} that was written, read again over a fresh base, is not what was trained: its "
            f"answers differ by up to {measured['relative_difference']:.2g} of the largest one"
        )
        return Entry(4, False, said, measured, tolerance), Entry(5, None, "what was written is not right")
    entry = Entry(4, True, said, measured, tolerance)
    return entry, _merged_entry(live, reopened, base, folder, method)


def _figures(found: Agreement, scale: float) -> dict[str, Any]:
    relative = found.max_logit_difference / max(scale, 1e-12)
    return {"relative_difference": relative, "equal_bits": found.max_logit_difference == 0, **asdict(found)}


def _scores_differ(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> dict[str, Any]:
    difference = max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    scale = max(float(a.abs().max()) for a in ours)
    measured = {"relative_difference": difference / max(scale, 1e-12), "equal_bits": difference == 0}
    return {**measured, "max_score_difference": difference, "tokens": sum(a[..., 0].numel() for a in ours)}


def _merged_entry(live: Live, reopened: Any, base: Path, folder: Path, method: Method) -> Entry:
    import torch

    if method.result == "model":
        return Entry(5, None, f"{method.type} changes the model itself: there is no adapter to merge")
    if live.head is not None:
        return Entry(5, None, "merging is for language models; a classifier keeps its adapter")
    try:
        check_mergeable(folder)
    except ModelError as error:
        return Entry(5, None, str(error))
    bytes_ = _bytes(base, 4)
    if not _room(bytes_):
        said = f"merging takes {bytes_ / 2**30:.1f} GiB, more than this machine has free"
        return Entry(5, None, said)
    if live.dtype != torch.float32 or live.device.type != "cpu":
        reopened = load_model(base, folder, torch.float32)
    separate = Recorded(record(reopened, live.probes()))
    del reopened
    found = compare_models(separate, merged_model(base, folder), live.probes())
    measured = {**asdict(found), "other_favourites": 1 - found.top1}
    if not within(measured, MERGED):
        said = (
            f"base and adapter merged are another model: mean KL divergence {found.kl:.2g}, the same "
            f"likeliest token at {found.top1:.2%} of {found.tokens} held-out tokens"
        )
        return Entry(5, False, said, measured, MERGED)
    said = (
        f"merged, the model says the same: KL {found.kl:.1g}, the same likeliest token at {found.top1:.1%} "
        f"of {found.tokens} held-out tokens"
    )
    return Entry(5, True, said, measured, MERGED)


def _reopened(live: Live, base: Path, folder: Path, method: Method) -> tuple[Any, torch.device]:
    """What was written, over a fresh base, where the live model is if there is room."""
    import torch

    whole, adapter = (base, folder) if method.result == "adapter" else (folder, None)
    if live.head is not None:
        model: Any = load_classifier(whole, adapter, live.dtype)[0]
    else:
        model = load_model(whole, adapter, live.dtype)
    if live.quick:  # the same order of sums, so that the bits are the same
        quicken(model)
    device = torch.device("cpu")
    if live.device.type == "cuda":
        bytes_ = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        if torch.cuda.mem_get_info()[0] > 2 * bytes_:
            model, device = model.to(live.device), live.device
    return model, device


def _bytes(base: Path, each: int) -> float:
    from tunewright.models.base import count_parameters

    return float(count_parameters(base)) * each


def _room(bytes_: float) -> bool:
    """Whether the machine has so much memory free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # what caches hold is free, too
            known = {line.split(":")[0]: line.split()[1] for line in file}
        free = int(known["MemAvailable"]) * 1024
    except (OSError, KeyError):
        pass
    return free > ROOM * bytes_
