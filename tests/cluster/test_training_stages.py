"""Several trainings in a row, with rows learned beside others: from one file to a version that is served."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tiny_runs import newborn_base, small_run, write_run
from tunewright.artifacts import Store, read_json
from tunewright.config import ServeConfig, load_run
from tunewright.data.conversations import read_conversations
from tunewright.evaluate.tasks import task_from_messages
from tunewright.evaluation_stage import read_scores
from tunewright.pipeline import run_line
from tunewright.registry import Registry

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def staged_run(base: Path, store: Path) -> dict[str, Any]:
    """Texts, merged; tickets, with a share of the texts; other tickets on top of that."""
    run = small_run(base, store, sweep=None)
    run["train"] |= {"max_steps": 2, "workers": 1, "save_steps": 50}
    run["evaluate"]["tasks"][0]["source"]["rows"] = 4
    texts = copy.deepcopy(run["data"])
    texts["sources"] = [{"type": "builtin", "part": "pretrain", "rows": 60, "seed": 1}]
    texts["privacy"] = {"action": "keep"}
    others = copy.deepcopy(run["data"])
    others["sources"] = [{"type": "builtin", "part": "train", "rows": 120, "seed": 6}]
    lora = {"type": "lora", "rank": 2}
    again = {"name": "texts", "objective": "pretrain", "stage": "domain", "share": 0.25}
    run["stages"] = [
        {"name": "domain", "data": texts, "train": {**run["train"], "objective": "pretrain", "method": lora}},
        {
            "name": "desk",
            "data": others,
            "train": {**run["train"], "method": lora},
            "tasks": [again],
            "then": "stack",
        },
    ]
    run["tasks"] = [{"name": "more", "data": others, "share": 0.25}]
    return run


def test_stages_lead_to_a_version_that_answers_as_it_was_evaluated(ray_cluster: None, tmp_path: Path) -> None:
    run = staged_run(newborn_base(tmp_path / "base"), tmp_path / "store")
    config = write_run(tmp_path / "run.yaml", run)
    summary = run_line(load_run(config), "register")
    names = [stage["name"] for stage in summary["stages"]]
    trained = ["train domain", "merge domain", "train desk", "train"]
    assert [name for name in names if name.startswith(("train", "merge"))] == trained
    assert names.index("data") < names.index("train domain"), "rows are looked at before anything is trained"
    store = Store(tmp_path / "store")
    ref = {stage["name"]: stage["artifact"] for stage in summary["stages"]}
    merged, final = store.load(ref["merge domain"]), store.load(ref["train"])

    assert final.manifest.parents["base"] == merged.ref
    assert final.manifest.parents["previous"] == ref["train desk"]
    assert store.load(ref["train desk"]).manifest.parents["data:texts"] == ref["data domain"]
    assert store.load(ref["train domain"]).manifest.parents["base"] == ref["base"]
    with safe_open(final.path / "adapter" / "adapter_model.safetensors", "np") as file:
        ranks = {file.get_slice(n).get_shape()[0] for n in file.keys() if "lora_A" in n}  # noqa: SIM118
    assert ranks == {2 + 4}
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= {p.name for p in merged.path.glob("*/*")}
    evaluation = store.load(ref["evaluate"])
    scores = {
        which: store.load(evaluation.manifest.parents[f"{which}_scores"]) for which in ("base", "tuned")
    }
    assert scores["base"].manifest.parents["model"] == ref["base"], "what was forgotten, too, counts"

    folder = store.root / "runs" / "small"
    metrics = [folder / "stages" / name / "metrics.jsonl" for name in ("domain", "desk")]
    assert all(path.is_file() for path in metrics)
    reports = ["data", "stages/domain/data", "stages/desk/data", "tasks/more/data"]
    assert [(folder / path / "report.json").is_file() for path in reports] == [True] * 4
    figures = read_json(store.load(ref["train"]).path / "manifest.json")["facts"]
    assert {"loss/main", "loss/more", "eval_loss", "eval_loss/more"} <= figures.keys()

    answers = read_scores(scores["tuned"])["tickets"]["answers"]
    assert any(answers)
    # An answer that was cut within a character ends with a mark for it, which a stream leaves out.
    assert served(store, load_run(config)) == [answer.rstrip("\ufffd") for answer in answers]

    again = run_line(load_run(config), "register")
    assert {stage["state"] for stage in again["stages"]} == {"found"}


def served(store: Store, run: Any) -> list[str]:
    """The engine's answers to what the evaluation asked."""
    from tunewright.serve.engine import GenerateRequest
    from tunewright.serve.torch_engine import TorchEngine

    (version,) = Registry(store).versions("small")
    (task,) = run.evaluate.tasks
    prompts = task_from_messages(task, read_conversations(task.source, store.root)).prompts
    engine = TorchEngine.load(store, version, ["prod"], ServeConfig(max_new_tokens=task.max_new_tokens))

    async def answer(prompt: Any) -> str:
        messages = tuple(dict(message) for message in prompt)
        request = GenerateRequest("prod", messages=messages, temperature=0.0)
        return "".join([delta.text async for delta in engine.generate(request)])

    async def answers() -> list[str]:
        return [await answer(prompt) for prompt in prompts]

    try:
        return asyncio.run(answers())
    finally:
        engine.close()
