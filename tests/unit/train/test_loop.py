"""The loop with a real DeepSpeed engine: exact resume with every feature on, and what it does unasked."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from loops import (
    MemoryRows,
    Trained,
    Training,
    on_two_workers,
    small_model,
    train,
)
from tunewright.config import TrainConfig
from tunewright.errors import NonFiniteLoss, TrainError
from tunewright.train import stopping
from tunewright.train.checkpoint import latest_checkpoint

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

OTHER_WORLD_TOLERANCE = 1e-6
"""Relative, fp32: sums over another number of workers are taken in another order."""
EVERYTHING = {
    "method": {"type": "lora", "rank": 4, "dropout": 0.3},
    "neftune_alpha": 5.0,
    "label_smoothing": 0.1,
    "weight_decay": 0.1,
    "lr_scheduler_type": "wsd",
    "warmup_fraction": 0.2,
    "min_lr_ratio": 0.1,
    "eval_steps": 2,
    "best": {},
    "early_stopping": {"patience": 50},
    "watchdog": {"window": 4},
}


def config(**values: Any) -> TrainConfig:
    shape = {
        "max_steps": 8,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 3,
    }
    return TrainConfig.model_validate({**shape, "learning_rate": 3e-3, **values})


def dropping_gpt2() -> Any:
    """A model with dropout of its own, inside fused attention too."""
    return small_model("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.2)


def figures(trained: Trained) -> list[dict[str, float]]:
    """What does not depend on the clock."""
    return [{k: v for k, v in f.items() if k not in ("tokens_per_s", "eta_s")} for f in trained.figures]


@pytest.mark.parametrize(
    ("zero", "dtype", "watched"),
    [
        (0, torch.float32, True),
        (0, torch.bfloat16, False),
        (2, torch.float32, False),
        (2, torch.bfloat16, True),
    ],
)
def test_with_every_feature_on_a_run_that_was_stopped_goes_on_bit_identically(
    tmp_path: Path, zero: int, dtype: torch.dtype, watched: bool
) -> None:
    # The watchdog writes a checkpoint at the beginning; without it the optimizer begins by itself.
    asked = config(**{**EVERYTHING, "zero": {"stage": zero}, "watchdog": {"window": 4} if watched else None})
    whole = train(Training(asked, tmp_path / "whole", model=dropping_gpt2, dtype=dtype))
    first = train(Training(asked, tmp_path / "halves", model=dropping_gpt2, dtype=dtype, stop_step=3))
    second = train(Training(asked, tmp_path / "halves", model=dropping_gpt2, dtype=dtype))
    assert (first.outcome.step, second.outcome.began_at, second.outcome.step) == (3, 3, 8)
    # Another last step of this time is another `total_steps`, and an evaluation more.
    mask = {"total_steps", "eval_loss"}
    stripped = [{k: v for k, v in f.items() if k not in mask} for f in figures(first) + figures(second)]
    assert stripped == [{k: v for k, v in f.items() if k not in mask} for f in figures(whole)]
    assert figures(second) == figures(whole)[3:]
    for name, weight in whole.outcome.weights.items():
        assert torch.equal(weight, second.outcome.weights[name]), name


def test_dropout_and_noise_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    noisy = {"method": {"type": "lora", "rank": 4, "dropout": 0.3}, "neftune_alpha": 5.0, "max_steps": 4}
    runs = [train(Training(config(**noisy, micro_batch_size=n), tmp_path / str(n))) for n in (1, 2, 4)]
    quiet = train(Training(config(max_steps=4), tmp_path / "quiet"))
    for run in runs[1:]:
        assert list(run.losses.values()) == pytest.approx(list(runs[0].losses.values()), rel=1e-6)
    assert list(quiet.losses.values()) != pytest.approx(list(runs[0].losses.values()), rel=1e-3)


def trained_on(rank: int, arguments: dict[str, Any]) -> Any:
    """For `on_two_workers`: losses and weights of some trainings, each with its own settings."""
    out = []
    for number, values in enumerate(arguments["runs"]):
        model = small_model if values["method"]["type"] != "full" else dropping_gpt2
        work = Path(arguments["work"]) / str(number)
        run = train(Training(config(**values), work, model=model, eval_rows=MemoryRows(3)))
        out.append((run.losses, run.outcome.weights))
    return out


def test_two_workers_see_the_losses_of_one_with_dropout_and_noise(tmp_path: Path) -> None:
    runs = [
        {**EVERYTHING, "max_steps": 4},
        {**EVERYTHING, "max_steps": 3, "method": {"type": "full"}},  # with the model's own dropout
        {"max_steps": 2, "method": {"type": "dora", "rank": 4}, "zero": {"stage": 3}},
        {"max_steps": 2, "method": {"type": "prefix_tuning", "tokens": 4}, "zero": {"stage": 3}},
        {"max_steps": 2, "method": {"type": "freeze", "last_blocks": 1}, "zero": {"stage": 0}},
        # Three micro batches: in the second round, one of two workers has none.
        {**EVERYTHING, "global_batch_size": 6, "micro_batch_size": 2, "workers": {"min": 1, "max": 4}},
    ]
    two = on_two_workers(trained_on, {"runs": runs, "work": str(tmp_path / "two")}, tmp_path)
    one = trained_on(0, {"runs": runs, "work": str(tmp_path / "one")})
    for (losses, weights), *others in zip(one, *two, strict=True):
        for other_losses, other_weights in others:
            assert list(other_losses.values()) == pytest.approx(
                list(losses.values()), rel=OTHER_WORLD_TOLERANCE
            )
            for name, weight in weights.items():
                torch.testing.assert_close(other_weights[name], weight, rtol=1e-3, atol=1e-5)


def spoilt(built: Any, name: str, value: float) -> None:
    """From the third micro batch on, gradients of one weight are not finite, and the loss is."""
    parameter = dict(built.named)[name]
    seen = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return gradient * value if len(seen) > 4 else gradient

    parameter.register_hook(spoil)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_gradient_that_is_no_number_stops_before_the_step(
    tmp_path: Path, zero: int, dtype: torch.dtype, value: float
) -> None:
    asked = config(zero={"stage": zero}, save_steps=1, method={"type": "lora", "rank": 4, "dropout": 0.0})
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    kept: list[Any] = []

    def change(built: Any) -> None:
        kept.append(built)
        spoilt(built, name, value)

    with pytest.raises(
        NonFiniteLoss, match="non-finite gradient norm at step 3; weights are those of step 2"
    ):
        train(Training(asked, tmp_path, dtype=dtype, change_engine=change))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 2
    now, saved = kept[0].trainable_state(), checkpoint.tensors()
    assert all(torch.equal(now[key], saved[key]) for key in saved)
    assert len(saved) > 10


@pytest.mark.parametrize("micro", [0, 1], ids=["an earlier micro batch", "the last one"])
def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path: Path, micro: int) -> None:
    kept: list[Any] = []

    def change(built: Any) -> None:
        kept.append(built)
        real, calls = built.deepspeed.module.forward, []

        def forward(*args: Any, **inputs: Any) -> Any:
            out = real(*args, **inputs)
            calls.append(1)
            if len(calls) == 5 + micro:  # in the third step
                out.logits = out.logits * float("nan")
            return out

        built.deepspeed.module.forward = forward

    with pytest.raises(NonFiniteLoss, match="non-finite loss at step 3; weights are those of step 2"):
        train(Training(config(save_steps=1), tmp_path, change_engine=change))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 2
    now = kept[0].trainable_state()
    assert all(torch.equal(now[key], value) for key, value in checkpoint.tensors().items())


def test_vectors_are_not_decayed() -> None:
    from tunewright.train.engine import decay_groups
    from tunewright.train.methods import apply_method

    model = apply_method(small_model("gpt2"), config(method={"type": "full"}).method, seed=1)
    groups = decay_groups(list(model.named_parameters()), 0.1)
    by_decay = {group["weight_decay"]: group["params"] for group in groups}
    assert {p.dim() for p in by_decay[0.1]} == {2}
    assert {p.dim() for p in by_decay[0.0]} == {1}
    assert sum(map(len, by_decay.values())) == len(list(model.parameters()))
    tuned = apply_method(small_model(), config(method={"type": "ia3"}).method, seed=1)
    (only,) = decay_groups([(n, p) for n, p in tuned.named_parameters() if p.requires_grad], 0.1)
    assert only["weight_decay"] == 0.0


def test_smoothed_labels_are_for_training_and_not_for_the_evaluation(tmp_path: Path) -> None:
    runs = [
        train(Training(config(max_steps=1, learning_rate=1e-12, label_smoothing=s), tmp_path / str(s)))
        for s in (0.0, 0.5)
    ]
    assert runs[0].figures[-1]["eval_loss"] == runs[1].figures[-1]["eval_loss"]
    assert runs[0].figures[-1]["loss"] != pytest.approx(runs[1].figures[-1]["loss"], rel=1e-3)


def test_training_ends_early_says_why_and_a_finished_one_does_nothing_again(tmp_path: Path) -> None:
    asked = config(
        max_steps=40, eval_steps=2, save_steps=100, early_stopping={"patience": 2, "min_delta": 100.0}
    )
    run = train(Training(asked, tmp_path))
    assert run.outcome.step == 6  # the first evaluation is the best; two more are not better by 100
    assert "no better than" in run.outcome.ended and "for 2 evaluations" in run.outcome.ended
    again = train(Training(asked, tmp_path))
    assert (again.outcome.began_at, again.outcome.step, again.figures) == (6, 6, [])
    assert again.outcome.ended == run.outcome.ended
    for name, weight in run.outcome.weights.items():
        assert torch.equal(weight, again.outcome.weights[name])


@pytest.mark.parametrize("publish", [True, False])
def test_the_best_checkpoint_is_kept_and_published(tmp_path: Path, publish: bool) -> None:
    asked = config(
        eval_steps=2, save_steps=1, keep_checkpoints=1, best={"publish": publish}, method={"type": "full"}
    )
    run = train(Training(asked, tmp_path, change_engine=hurt(5, times=1)))
    evaluations = {int(f["step"]): f["eval_loss"] for f in run.figures if "eval_loss" in f}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert best == 4, evaluations
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [f"step-{best:06d}", "step-000008"]
    assert run.outcome.weights_step == (best if publish else 8)
    stored = latest_checkpoint(tmp_path / "checkpoints")
    if publish:
        stored = run.loop.saver.best(best)
    assert stored is not None
    for name, weight in run.outcome.weights.items():
        assert torch.equal(weight, stored.tensors()[f"w/{name}"])
    again = train(Training(asked, tmp_path))
    assert again.outcome.weights_step == run.outcome.weights_step


def test_a_run_that_starts_from_a_trials_checkpoint_keeps_the_best_it_can_have(tmp_path: Path) -> None:
    asked = config(max_steps=8, eval_steps=2, best={})
    trial = train(Training(asked, tmp_path / "trial", stop_step=4))
    start = tmp_path / "trial" / "checkpoints" / "step-000004"
    assert trial.loop.watch.best_step == 4
    run = train(Training(asked, tmp_path / "run", start=start))
    assert run.outcome.began_at == 4
    assert (tmp_path / "run" / "checkpoints" / f"step-{run.loop.watch.best_step:06d}").is_dir()
    moved = tmp_path / "moved" / "step-000002"
    moved.parent.mkdir()
    (start.parent / "step-000003").rename(moved)  # whose best is step 2, which stays behind
    left = train(Training(asked, tmp_path / "left", start=moved, stop_step=3))
    assert (left.loop.watch.best, left.loop.watch.best_step) == (None, 0)


def running_away(**values: Any) -> TrainConfig:
    return config(
        max_steps=12, save_steps=2, lr_scheduler_type="constant", method={"type": "full"},
        watchdog={"factor": 1.5, "patience": 2, "window": 4, "max_rollbacks": 2}, **values,
    )  # fmt: skip


def hurt(at_step: int, times: int) -> Any:
    """Damage the weights before a step, as a bad batch does; so many times."""

    def change(built: Any) -> None:
        real, done = built.set_learning_rate, []

        def set_rate(rate: float) -> None:
            if built.deepspeed.global_steps == at_step and len(done) < times:
                done.append(1)
                with torch.no_grad():
                    from deepspeed.utils import safe_set_full_fp32_param

                    numbers = torch.Generator().manual_seed(1)
                    for _, parameter in built.named:
                        noise = 3 * torch.randn(parameter.shape, generator=numbers)
                        safe_set_full_fp32_param(parameter, noise)
                    built.deepspeed.optimizer.update_lp_params()
            real(rate)

        built.set_learning_rate = set_rate

    return change


def test_a_loss_that_runs_away_takes_training_back_with_half_the_rate(tmp_path: Path) -> None:
    run = train(Training(running_away(), tmp_path, change_engine=hurt(5, times=1)))
    steps = [int(f["step"]) for f in run.figures]
    # Hurt before step 6, which is high but not yet one of two; after step 7 back to step 4.
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [f["rollbacks"] for f in run.figures] == [0] * 6 + [1] * 8
    rates = {f["rollbacks"]: f["lr"] for f in run.figures}
    assert rates == {0: 3e-3, 1: 1.5e-3}
    whole = train(Training(running_away(), tmp_path / "unhurt"))
    assert run.figures[6]["loss"] == whole.losses[5]
    assert run.outcome.step == 12


def test_a_return_is_remembered_by_a_run_that_is_killed_right_after_it(tmp_path: Path) -> None:
    def die(seen: dict[str, float]) -> None:
        if seen["rollbacks"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Training(running_away(), tmp_path, change_engine=hurt(5, times=1), on_step=die))
    run = train(Training(running_away(), tmp_path))
    assert run.outcome.began_at == 4
    assert {f["rollbacks"] for f in run.figures} == {1}


def test_a_loss_that_runs_away_before_any_checkpoint_goes_back_to_the_beginning(tmp_path: Path) -> None:
    asked = running_away().model_copy(update={"save_steps": 50})
    run = train(Training(asked, tmp_path, change_engine=hurt(5, times=1)))
    steps = [int(f["step"]) for f in run.figures]
    assert steps == [1, 2, 3, 4, 5, 6, *range(1, 13)]
    assert run.figures[6]["loss"] == run.figures[0]["loss"]


def test_a_loss_that_keeps_running_away_ends_training(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="the loss ran away 3 times: at step 7"):
        train(Training(running_away(), tmp_path, change_engine=hurt(5, times=9)))


def test_no_checkpoint_is_written_in_the_middle_of_a_spike(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def look(_: dict[str, float]) -> None:
        seen.append({path.name for path in (tmp_path / "checkpoints").glob("step-*")})

    asked = running_away().model_copy(update={"save_steps": 1})
    train(Training(asked, tmp_path, change_engine=hurt(5, times=1), on_step=look))
    assert seen[5] == {"step-000004", "step-000005"}  # after step 6, which was high


def test_a_file_asks_training_to_save_and_stop_and_it_goes_on_from_there(tmp_path: Path) -> None:
    asked = config(method={"type": "lora", "rank": 4, "dropout": 0.3}, save_steps=100)

    def ask(seen: dict[str, float]) -> None:
        if seen["step"] == 4:
            (tmp_path / "stop").touch()

    first = train(Training(asked, tmp_path, on_step=ask))
    assert (first.outcome.step, first.outcome.stopped) == (5, "asked")
    (tmp_path / "stop").unlink()
    second = train(Training(asked, tmp_path))
    assert (second.outcome.began_at, second.outcome.step, second.outcome.stopped) == (5, 8, None)
    whole = train(Training(asked, tmp_path / "whole"))
    assert first.losses | second.losses == whole.losses


def test_sigterm_asks_this_process_once_and_then_does_what_it_did(tmp_path: Path) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        stopping.listen()
        run = train(
            Training(
                config(), tmp_path,
                on_step=lambda f: os.kill(os.getpid(), signal.SIGTERM) if f["step"] == 2 else None,
            )
        )  # fmt: skip
        assert (run.outcome.step, run.outcome.stopped, came) == (3, "signalled", [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        stopping.listen()
        signal.signal(signal.SIGTERM, before)
    assert latest_checkpoint(tmp_path / "checkpoints").step == 3  # type: ignore[union-attr]


def test_sigterm_to_the_one_who_waits_makes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "work" / "stop"
    before = signal.getsignal(signal.SIGTERM)
    with stopping.asking_on_sigterm(file):
        assert not file.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        assert file.exists()
        assert signal.getsignal(signal.SIGTERM) == before
    assert not file.exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_minutes_between_checkpoints_count_from_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.train import saving

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 0.1
            return self.now

    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    saved: list[str] = []

    def look(seen: dict[str, float]) -> None:
        clock.now += 60
        saved[:] = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
        when[int(seen["step"])] = saved[-1] if saved else ""

    when: dict[int, str] = {}
    asked = config(save_steps=100, save_minutes=2.5, keep_checkpoints=9)
    train(Training(asked, tmp_path, on_step=look))
    # Noticed before the step that follows: three minutes after the beginning, and three after step 4.
    assert when == {1: "", 2: "", 3: "", 4: "step-000004", 5: "step-000004", 6: "step-000004",
                    7: "step-000007", 8: "step-000008"}  # fmt: skip


def test_each_row_is_seen_once_an_epoch_by_a_run_that_was_stopped(tmp_path: Path) -> None:
    asked = config(max_steps=8, eval_steps=None)
    rows = MemoryRows(16)
    train(Training(asked, tmp_path, rows=rows, stop_step=3))
    train(Training(asked, tmp_path, rows=rows))
    # Two epochs; row 0 is also looked at once when a loop begins, and when it goes on.
    assert {row: rows.taken.count(row) for row in range(16)} == {row: 2 + 3 * (row == 0) for row in range(16)}
