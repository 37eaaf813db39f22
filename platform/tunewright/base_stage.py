"""The base stage: what `base.model` stands for. `tiny` is made here, by Tunewright's own pretraining."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tunewright.artifacts import Artifact, Plan, clear_dir, code_hash
from tunewright.config import BuiltinSource, DataConfig, FullConfig, TrainConfig
from tunewright.config.data import Pack, Privacy, Rules, Split
from tunewright.line import Line
from tunewright.models.tiny import TinyShape

SEED = 17
WEIGHTS_SEED = 3
"""Of the untrained weights; some seeds make a base that learns products' names late (docs/log.md)."""
TINY_SHAPE = TinyShape()
TOKENIZER_DOCUMENTS = 4000
TINY_DATA = DataConfig(
    sources=(BuiltinSource(type="builtin", part="pretrain", rows=15000, seed=SEED),),
    split=Split(eval=0.01),
    pack=Pack(seq_len=256),
    privacy=Privacy(action="keep"),
    rules=Rules(drop_duplicates=False),
)
TINY_TRAIN = TrainConfig(
    objective="pretrain",
    method=FullConfig(),
    learning_rate=2e-3,
    lr_scheduler_type="cosine",
    warmup_steps=40,
    weight_decay=0.1,
    adam_beta2=0.95,
    max_steps=500,
    global_batch_size=4,
    micro_batch_size=2,
    save_steps=100,
    logging_steps=20,
)


def base_stage(line: Line) -> Artifact:
    """The base artifact of the run.

    Raises:
        ModelError: a folder or hub id that cannot be used.
    """
    from tunewright.models.new_tokens import make_new_tokens, new_tokens_plan

    base = _tiny(line) if line.run.base.model == "tiny" else _registered(line)
    if not line.run.base.new_tokens:
        return base
    plan = new_tokens_plan(base, line.run.base.new_tokens)
    return line.make(
        "new tokens",
        plan,
        lambda: make_new_tokens(line.store, base, plan),
        lambda made: made.facts["new_tokens_told"],
    )


def _registered(line: Line) -> Artifact:
    """The folder or hub id that the run names."""
    from tunewright.models.base import changed_since, model_folder, register_folder
    from tunewright.models.skeleton import read_config
    from tunewright.preflight import check_methods

    begun = time.monotonic()
    base, found = register_folder(line.store, line.run.base)
    changed = None if found else changed_since(line.store, base)
    if changed:
        line.say(f"base       {changed}")
    line.record("base", time.monotonic() - begun, "found" if found else "made", base.ref, _told(base))
    if not Path(line.run.base.model).expanduser().is_dir():  # else this was done before anything started
        check_methods(line.run, read_config(model_folder(base)), line.run.base.model)
    return base


def _tiny(line: Line) -> Artifact:
    """Newborn model -> pretraining data -> pretraining -> base; each an artifact like any other."""
    from tunewright.data.prepare import prepare, prepare_plan
    from tunewright.train.stage import Training, train

    store = line.store
    newborn = line.make("tokenizer", _newborn_plan(), lambda: _make_newborn(line), _told)
    data_plan = prepare_plan(TINY_DATA, newborn)
    data = line.make(
        "base data",
        data_plan,
        lambda: prepare(store, TINY_DATA, newborn, data_plan),
        lambda a: f"{a.facts['train_documents']:,} documents, {a.facts['train_tokens']:,} tokens",
    )
    training = Training(_fitting(TINY_TRAIN), newborn, data, SEED)
    trained = line.make(
        "pretrain",
        training.plan,
        lambda: train(store, training, progress=lambda m: line.training_line(m, "pretrain  ")),
        lambda a: f"{a.facts['tokens']:,} tokens seen, loss {a.facts['loss']:.3f}",
    )
    base_plan = Plan("base", {"trained": trained.ref}, {"name": "tiny"}, code_hash("base_stage"))
    return line.make("base", base_plan, lambda: _publish_tiny(line, base_plan, trained), _told)


def _fitting(config: TrainConfig) -> TrainConfig:
    """The recipe on as many workers as the cluster holds; their number does not change the model."""
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = max(w for w in (1, 2) if w <= max(1, cpus))
    return config.model_copy(update={"workers": workers})


def _newborn_plan() -> Plan:
    settings = {"shape": TINY_SHAPE.model_dump(), "documents": TOKENIZER_DOCUMENTS, "seed": WEIGHTS_SEED}
    return Plan("base", {}, settings, code_hash("models/tiny", "data/support_desk"))


def _make_newborn(line: Line) -> Artifact:
    from tunewright.data.support_desk import pretraining_documents
    from tunewright.models.base import describe
    from tunewright.models.tiny import write_newborn

    plan = _newborn_plan()
    work = clear_dir(line.store.work_dir(plan))
    write_newborn(work / "model", pretraining_documents(TOKENIZER_DOCUMENTS, SEED), TINY_SHAPE, WEIGHTS_SEED)
    return line.store.publish(plan, work, {"model": "tiny, untrained", **describe(work / "model")})


def _publish_tiny(line: Line, plan: Plan, trained: Artifact) -> Artifact:
    from tunewright.models.base import describe

    work = clear_dir(line.store.work_dir(plan))
    model = work / "model"
    shutil.copytree(trained.path / "model", model)
    for path in (trained.path / "tokenizer").iterdir():
        shutil.copy(path, model / Path(path.name))
    facts = {"model": "tiny", "eval_loss": trained.facts.get("eval_loss"), **describe(model)}
    return line.store.publish(plan, work, facts)


def _told(base: Artifact) -> str:
    facts = base.facts
    return f"{facts['model']}: {facts['architecture']}, {facts['parameters'] / 1e6:.2f} M parameters"
