"""Measures a certificate as a run goes on: before its engine, before its first step, after its last one.

Worker 0 measures and all hear of it, so that all stop together; what is collective says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunewright.config import TrainConfig
from tunewright.errors import CertificateFailed, TunewrightError
from tunewright.train.certificate.entry import Certificate, Entry, Stopwatch
from tunewright.train.certificate.learned import learned_entry
from tunewright.train.certificate.packed import packed_entry
from tunewright.train.certificate.rendered import rendered_entry
from tunewright.train.certificate.sample import Subject
from tunewright.train.certificate.splits import Batch, Split, alone, by_all_workers, first_batch, splits_entry
from tunewright.train.certificate.weights import (
    Before,
    Hashes,
    changed_anywhere,
    differing_workers,
    hash_frozen,
    look_before,
    trainable_problem,
    weights_entry,
)
from tunewright.train.certificate.written import Live, ask_live, written_entries
from tunewright.train.engine import Engine
from tunewright.train.group import Group
from tunewright.train.loop import Loop

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Certifier:
    """One run's certificate. Every method is collective, and they are called in this order.

    Args:
        subjects: the run's tasks, the main one first.
        base: folder of the base model.
        out: where the trained artifact is written; the certificate too.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        subjects: Sequence[Subject],
        base: Path,
        out: Path,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.config, self.seed, self.subjects = config, seed, subjects
        self.base, self.out, self.device, self.dtype = base, out, device, dtype
        self.group = Group(device)
        self.certificate = Certificate()
        self._watches = {number: Stopwatch() for number in range(1, 8)}
        self._batch: Batch | None = None
        self._splits: list[Split] = []
        self._before: Before | None = None
        self._frozen: Hashes = {}
        self._changed = (0, "")
        self._after: dict[str, torch.Tensor] = {}
        self._live: Live | None = None

    def before_engine(self, model: Any) -> None:
        """Entries 1, 2 and 7, and what 3 and 6 need of a model that is whole.

        Raises:
            CertificateFailed: a claim does not hold; nothing has been trained.
        """
        from tunewright.models.load import load_renderer

        tokenizer = self.subjects[0].folder / "tokenizer"
        renderer = self._lead(7, lambda: load_renderer(tokenizer), share=False)
        self._measure(1, lambda: learned_entry(self.subjects, renderer.stop_ids))
        self._measure(7, lambda: rendered_entry(self.subjects, renderer))
        self._check_weights(model)
        device = self._placed(model)
        self._measure(2, lambda: packed_entry(self.subjects, model, device, self.dtype))
        self._batch = self._everyone(3, lambda: first_batch(self.subjects, self.config, self.seed))
        batch = self._batch
        self._splits = self._lead(3, lambda: alone(batch, model, device, self.dtype))

    def before_training(self, loop: Loop) -> None:
        """Entry 3.

        Raises:
            CertificateFailed: the loss or the gradient depends on how a batch is divided.
        """
        import torch

        assert self._batch is not None
        if self.dtype != torch.float16:  # whose loss scale would not be what it was
            batch = self._batch
            self._splits.append(self._everyone(3, lambda: by_all_workers(loop, batch)))
        splits, batch = self._splits, self._batch
        self._measure(3, lambda: splits_entry(splits, batch, self.dtype))
        self._batch = None
        if loop.engine.stage == 3:  # each worker holds a part of each weight now
            self._frozen = self._everyone(6, lambda: hash_frozen(loop.engine))

    def after_training(self, engine: Engine, weights: dict[str, torch.Tensor]) -> None:
        """Look at the trained model, before it is written.

        Args:
            weights: fp32 values of the trained weights.
        """
        self._after = weights
        frozen = self._everyone(6, lambda: hash_frozen(engine))
        self._changed = changed_anywhere(self._frozen, frozen, self.group)
        self._live = self._everyone(4, lambda: ask_live(engine, self.subjects[0].stream))

    def finish(self) -> None:
        """Entries 4, 5 and 6, and the file.

        Raises:
            CertificateFailed: a claim does not hold; what was written is not to be published.
        """
        method, before, live = self.config.method, self._before, self._live
        assert before is not None and live is not None
        changed, after, world = self._changed, self._after, self.group.world
        self._measure(6, lambda: weights_entry(before, after, changed, method, world))
        folder = self.out / method.result
        self._live = None
        pair = self._lead(4, lambda: written_entries(live, self.base, folder, method))
        for entry in pair:
            self._add(entry)
        if self.group.leads:
            self.certificate.write(self.out)

    def _check_weights(self, model: Any) -> None:
        """The first half of entry 6: what is trained, and that all workers hold the same."""
        method = self.config.method
        problem = self._everyone(6, lambda: trainable_problem(model, method))
        if problem:
            self._add(Entry(6, False, problem))
        before = self._before = self._everyone(6, lambda: look_before(model))
        self._frozen = before.frozen
        differing = differing_workers(before, self.group)
        if differing:
            named = ", ".join(map(str, differing))
            self._add(Entry(6, False, f"before training, workers {named} hold other weights than worker 0"))

    def _placed(self, model: Any) -> torch.device:
        """Where the whole model is measured: on the device if it fits there beside what is computed."""
        import torch

        if self.device.type != "cuda":
            return self.device
        bytes_ = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        if self.config.zero.stage == 3 and torch.cuda.mem_get_info()[0] < 2 * bytes_:
            return torch.device("cpu")
        model.to(self.device)
        return self.device

    def _measure(self, number: int, measured: Callable[[], Entry]) -> None:
        self._add(self._lead(number, measured))

    def _add(self, entry: Entry) -> None:
        try:
            self.certificate.add(self._watches[entry.number].on(entry))
        except CertificateFailed:
            if self.group.leads:
                self.certificate.write(self.out)
            raise

    def _everyone(self, number: int, work: Callable[[], T]) -> T:
        """What each worker finds for an entry."""
        with self._watches[number].running():
            return work()

    def _lead(self, number: int, work: Callable[[], T], share: bool = True) -> T:
        """What worker 0 finds for an entry, or the error that it meets, on all workers."""
        found: Any = None
        with self._watches[number].running():
            if self.group.leads:
                try:
                    found = work()
                except TunewrightError as error:
                    found = error
        told = self.group.told(found if share or isinstance(found, TunewrightError) else None)
        if isinstance(told, TunewrightError):
            raise told
        result: T = told if share else found
        return result
