"""Trainings in a row and rows beside others: what cannot work is refused where it is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tunewright.config import RunConfig, load_run
from tunewright.config.stages import data_sections
from tunewright.errors import ConfigError
from tunewright.preflight import check_files, check_sweep


def rows(seq_len: int = 64, **values: Any) -> dict[str, Any]:
    return {"sources": [{"type": "builtin"}], "pack": {"seq_len": seq_len}, **values}


def train(kind: str = "lora", objective: str = "sft", **method: Any) -> dict[str, Any]:
    return {"max_steps": 1, "objective": objective, "method": {"type": kind, **method}}


def stage(name: str = "first", then: str = "merge", **values: Any) -> dict[str, Any]:
    return {"name": name, "data": rows(), "train": train(), "then": then, **values}


def run(**values: Any) -> dict[str, Any]:
    return {"name": "r", "base": {"model": "tiny"}, "data": rows(), "train": train(), **values}


def task(name: str = "more", share: float = 0.2, **values: Any) -> dict[str, Any]:
    return {"name": name, "share": share, **({"data": rows()} if "stage" not in values else {}), **values}


@pytest.mark.parametrize(
    "described",
    [
        run(stages=[stage(train=train("full"))]),
        run(stages=[stage(train=train("ia3"))], train=train("full")),
        run(stages=[stage(train=train("prompt_tuning"), then="keep")], train=train("prompt_tuning")),
        run(stages=[stage(then="keep", train=train(alpha=32.0))], train=train(dropout=0.5)),
        run(stages=[stage(then="stack", train=train("rslora", rank=4))], train=train(rank=64)),
        run(stages=[stage(then="stack"), stage("second", "stack")]),
        run(stages=[stage(then="keep"), stage("second", "stack"), stage("third", "merge")]),
        run(
            stages=[stage(train=train(objective="pretrain"))],
            tasks=[task(stage="first", objective="pretrain")],
        ),
        run(stages=[stage()], train=train(objective="classify")),
        run(
            stages=[stage(train=train(objective="classify"), then="keep")],
            train=train(objective="classify"),
            tasks=[task(objective="classify", stage="first")],
        ),
        run(
            stages=[stage(train=train(objective="dpo"))],
            train=train(objective="orpo"),
            tasks=[task(objective="orpo", stage="first")],
        ),
    ],
    ids=lambda described: None,
)
def test_what_can_follow_on_each_other_is_taken(described: dict[str, Any]) -> None:
    taken = RunConfig.model_validate(described)
    assert [each.name for each in taken.trainings][-1] == "main"
    assert len(taken.trainings) == 1 + len(taken.stages)


@pytest.mark.parametrize(
    ("described", "told"),
    [
        (run(stages=[stage(), stage()]), r"stages\.0\.name=first: another stage has this name"),
        (run(stages=[stage("main")]), "stages.0.name=main: the training behind the stages has this name"),
        (run(tasks=[task(), task()]), "tasks: two are named more"),
        (run(tasks=[task("main")]), "tasks.0.name=main: the rows beside it have this name"),
        (run(tasks=[task(share=0.5), task("b", share=0.5)]), "shares are 1 together, and leave no main rows"),
        (run(tasks=[task(objective="tag")]), "more is tag, and the main objective is sft"),
        (
            run(tasks=[task(stage="first")]),
            "tasks.0.stage=first names no earlier stage; there is no stage before it",
        ),
        (
            run(stages=[stage(tasks=[task(stage="second")]), stage("second")]),
            r"stages\.0\.tasks\.0\.stage=second names no earlier stage",
        ),
        (
            run(stages=[stage()], tasks=[task(stage="frist")]),
            "tasks.0.stage=frist names no earlier stage; stages before it: first",
        ),
        (
            run(stages=[stage(train=train(objective="pretrain"))], tasks=[task(stage="first")]),
            "tasks.0.objective=sft: the rows of the stage first are for pretrain; say objective: pretrain",
        ),
        (
            run(tasks=[task(data=rows(128))]),
            "tasks.0: its rows have 128 tokens and those beside them 64; .* the same data.pack.seq_len",
        ),
        (
            run(stages=[stage(data=rows(32))], tasks=[task(stage="first")]),
            "tasks.0: its rows have 32 tokens and those beside them 64",
        ),
        (
            run(tasks=[task(data=rows(chat_template="chatml"))]),
            "tasks.0: its conversations are written with chatml, and those of data with the tokenizer's own",
        ),
        (
            run(stages=[stage(train=train("prefix_tuning"))]),
            "stages.0.then=merge: prefix_tuning changes no weight that could be merged; say then: keep",
        ),
        (
            run(stages=[stage(then="keep", train=train("full"))], train=train("full")),
            "stages.0.then=keep: full trains a whole model and no adapter; say then: merge",
        ),
        (
            run(stages=[stage(then="keep", train=train(rank=8))]),
            "must be the same .*: rank is 8 and then 16; alpha is 16.0 and then 32.0. Only dropout",
        ),
        (
            run(stages=[stage(then="keep", train=train(target_modules=["q_proj"]))]),
            "target_modules is q_proj and then all-linear",
        ),
        (
            run(stages=[stage(then="keep"), stage("second", train=train("dora"))]),
            r"stages\.0\.then=keep: stages\.1\.train.method must be .*: type is lora and then dora\. Only",
        ),
        (
            run(stages=[stage(then="stack")], train=train("qlora")),
            "then=stack: adapters that are added up are lora or rslora, and train.method.type is qlora",
        ),
        (
            run(stages=[stage(then="stack", train=train(modules_to_save=["lm_head"]))]),
            r"stages\.0\.train\.method\.modules_to_save=\['lm_head'\] are trained whole",
        ),
        (
            run(stages=[stage(then="stack"), stage("second", "keep")]),
            "stages.1.then=keep: its adapter is published as one with that of the stage first",
        ),
        (
            run(stages=[stage(then="keep")], train=train(objective="classify")),
            "train.objective=classify trains a head of its own, .*; say then: merge",
        ),
        (
            run(stages=[stage(train=train(objective="reward"))], train=train(objective="dpo")),
            "objective=reward trains a head .* train.objective=dpo cannot go on with it; put reward last",
        ),
        (
            run(stages=[stage(train=train(objective="tag"))], train=train(objective="tag")),
            "stages.0.then=merge: a model of the objective tag goes on by its adapter; say then: keep",
        ),
    ],
    ids=lambda value: value.split(":")[0][:60] if isinstance(value, str) else "",
)
def test_what_cannot_follow_or_be_mixed_is_refused_by_name(described: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RunConfig.model_validate(described)


def test_a_refusal_in_a_file_says_where_and_a_misspelt_key_too(tmp_path: Path) -> None:
    described = run(stages=[stage(then="keep", train=train(rank=8))])
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"run\.yaml: `the file`: stages\.0\.then=keep: train\.method must be"
    ):
        load_run(path)
    described["stages"][0]["trian"] = described["stages"][0].pop("train")
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key `stages\.0\.trian`; did you mean `train`"):
        load_run(path)


def files(folder: Path) -> dict[str, Any]:
    """A run whose every set of rows is a file of its own beside it."""
    named = iter(("first", "beside", "main", "task"))

    def of_file() -> dict[str, Any]:
        name = f"{next(named)}.jsonl"
        (folder / name).write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
        return rows(sources=[{"type": "jsonl", "path": name}])

    first = stage(data=of_file(), tasks=[{**task(), "data": of_file()}])
    return run(stages=[first], data=of_file(), tasks=[{**task(), "data": of_file()}])


def test_files_of_every_section_are_looked_up_beside_the_run_and_looked_at_first(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(files(tmp_path)), encoding="utf-8")
    loaded = load_run(path)
    found = [source.path for section in data_sections(loaded.trainings) for source in section.sources]  # type: ignore[union-attr]
    assert found == [str(tmp_path / f"{name}.jsonl") for name in ("first", "beside", "main", "task")]
    check_files(loaded)
    for gone in found:
        content = Path(gone).read_bytes()
        Path(gone).unlink()
        with pytest.raises(Exception, match=Path(gone).name):
            check_files(loaded)
        Path(gone).write_bytes(content)


def test_a_search_that_would_change_a_kept_adapter_is_refused(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("train.method.rank: {grid: [16, 32]}\n", encoding="utf-8")
    sweep = {"space": str(space), "trials": 2, "metric": "eval_loss", "mode": "min", "workers": 1}
    kept = run(stages=[stage(then="keep")], sweep=sweep)
    with pytest.raises(
        ConfigError, match=r"space\.yaml: stages\.0\.then=keep: .*rank is 16 and then 32.*, with"
    ):
        check_sweep(RunConfig.model_validate(kept))
    stacked = copy.deepcopy(kept)
    stacked["stages"][0]["then"] = "stack"
    check_sweep(RunConfig.model_validate(stacked))
