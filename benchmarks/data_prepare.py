"""How fast are conversations tokenized and packed, and does memory stay flat when they grow tenfold?

    python benchmarks/data_prepare.py [--rows 200000] [--growth 10]     (make bench-data_prepare)

Compares the whole data stage (read, validate, redact, deduplicate, split, tokenize, pack, write) with
TRL's preparation (`datasets.map(num_proc=2)` and its packing) of the same rows with the same tokenizer
and template on the same two processes. Real conversations are used, each made different by a number in
front. Wants ../shared/models/gpt2-tokenizer-hf and ../shared/data. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from result import conclude

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
TOKENIZER = SHARED / "models" / "gpt2-tokenizer-hf"
GOALS = {"speed_ratio": 1.5, "memory_growth": 1.2, "gsm8k_packing_efficiency": 0.97, "second_run_s": 10.0}
SEQ_LEN = 1024
CPUS = 2
SAMPLE_EVERY_S = 0.5
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}Assistant: {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


def conversations() -> list[list[dict[str, str]]]:
    """Real ones: 2 in 3 of GSM8K, the rest Dolly's questions and many-turn dialogues."""

    def rows(path: str) -> Iterator[dict]:
        with (SHARED / "data" / path).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    maths = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        for row in rows("gsm8k/train.jsonl")
    ]
    chats = [row["messages"] for row in rows("dolly-open-qa/chat.jsonl")]
    dialogues = [row["messages"] for row in rows("sgd-dialogues/dev.jsonl")]
    others = [chat for chat in [*chats, *dialogues] if chat[-1]["role"] == "assistant"]
    return [*maths, *others[: len(maths) // 2]]


def write_rows(path: Path, count: int) -> None:
    """`count` different conversations, the same for the same count."""
    real = conversations()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            first, *rest = real[number * 7919 % len(real)]
            numbered = {**first, "content": f"({number}) {first['content']}"}
            plain = [{"role": m["role"], "content": m["content"]} for m in (numbered, *rest)]
            file.write(json.dumps({"messages": plain}, ensure_ascii=False) + "\n")


class MemoryPeak(threading.Thread):
    """Largest sum of the private memory (USS) of this process and of all Ray workers, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver_mib = self.workers_mib = self.sum_mib = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(SAMPLE_EVERY_S):
            workers = [p for p in me.children(recursive=True) if _is_worker(p)]
            driver, sum_of_workers = _uss(me), sum(map(_uss, workers))
            self.driver_mib = max(self.driver_mib, driver)
            self.workers_mib = max(self.workers_mib, sum_of_workers)
            self.sum_mib = max(self.sum_mib, driver + sum_of_workers)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::")
    except psutil.Error:
        return False


def _uss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


def measure_ours(rows: Path, columns: dict[str, str], store_root: Path, memory: bool = False) -> dict:
    """The data stage on a Ray of its own in this process: seconds and figures, or the peak of its memory.

    Not both at once: reading the memory of every process takes a good part of a core.
    """
    import ray

    from tunewright.artifacts import Plan, Store
    from tunewright.config import DataConfig
    from tunewright.data.prepare import prepare, prepare_plan
    from tunewright.models.load import load_tokenizer

    store = Store(store_root)
    plan = Plan("base", {}, {"tokenizer": "gpt2"}, "")
    base = store.find(plan)
    if base is None:
        folder = store.work_dir(plan)
        load_tokenizer(TOKENIZER).save_pretrained(folder / "model")
        (folder / "model" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
        base = store.publish(plan, folder, {"model": "gpt2's tokenizer"})
    template = store_root / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    config = DataConfig.model_validate(
        {
            "sources": [{"type": "jsonl", "path": str(rows), "columns": columns}],
            "chat_template": str(template),
            "pack": {"seq_len": SEQ_LEN},
            "split": {"eval": 0.0},
        }
    )
    ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=512 << 20)
    peak = MemoryPeak()
    if memory:
        peak.start()
    begun = time.monotonic()
    data_plan = prepare_plan(config, base)
    data = prepare(store, config, base, data_plan)
    seconds = time.monotonic() - begun
    peak.done.set()
    begun = time.monotonic()
    assert store.find(prepare_plan(config, base)) is not None
    again_s = time.monotonic() - begun
    ray.shutdown()
    facts = data.facts
    return {
        "seconds": round(seconds, 2),
        "again_s": round(again_s, 2),
        "rows": facts["funnel"][0]["read"],
        "kept": facts["funnel"][0]["kept"],
        "tokens": facts["train_tokens"],
        "packed_rows": facts["train_rows"],
        "efficiency": facts["packing_efficiency"],
        "driver_mib": round(peak.driver_mib),
        "workers_mib": round(peak.workers_mib),
        "peak_mib": round(peak.sum_mib),
    }


def in_child(rows: Path, store: Path, columns: dict[str, str] | None = None, memory: bool = False) -> dict:
    """`measure_ours` in a fresh process, so that one measurement leaves nothing to the next."""
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--child",
            str(rows),
            str(store),
            json.dumps(columns or {}),
            str(int(memory)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_trl(rows: Path, folder: Path, mask: bool) -> dict:
    from peers.install import peer_python

    template = folder / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    script = [str(peer_python("trl")), str(ROOT / "benchmarks" / "peers" / "trl_pack.py")]
    options = [
        str(rows),
        str(TOKENIZER),
        str(SEQ_LEN),
        str(CPUS),
        str(template),
        *(["--mask"] if mask else []),
    ]
    done = subprocess.run([*script, *options], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--growth", type=int, default=10, help="1 leaves the memory measurement out")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        rows, store, columns, memory = options.child
        print(json.dumps(measure_ours(Path(rows), json.loads(columns), Path(store), memory == "1")))
        return 0
    with tempfile.TemporaryDirectory(prefix="tw-bench-") as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        write_rows(rows, options.rows)
        gsm8k = in_child(
            SHARED / "data" / "gsm8k" / "train.jsonl",
            folder / "gsm8k",
            {"prompt": "question", "completion": "answer"},
        )
        ours = in_child(rows, folder / "store")
        trl = {mask: measure_trl(rows, folder, mask) for mask in (True, False)}
        small = large = None
        if options.growth > 1:
            small = in_child(rows, folder / "small", memory=True)
            write_rows(rows, options.rows * options.growth)
            large = in_child(rows, folder / "large", memory=True)
    return report(options.rows, ours, trl, gsm8k, small, large)


def report(
    rows: int, ours: dict, trl: dict[bool, dict], gsm8k: dict, small: dict | None, large: dict | None
) -> int:
    """Print the table and the JSON line; returns the exit code."""
    rate = rows / ours["seconds"]
    ratios = {
        "trl_with_mask": round(trl[True]["prepare_s"] / ours["seconds"], 2),
        "trl_without_mask": round(trl[False]["prepare_s"] / ours["seconds"], 2),
    }
    growth = round(large["peak_mib"] / small["peak_mib"], 3) if small and large else None
    print(f"{'':<34}{'seconds':>9}{'conversations/s':>17}{'tokens/s':>11}{'efficiency':>12}")
    for name, result, seconds in (
        ("tunewright, the whole stage", ours, ours["seconds"]),
        ("TRL map + pack, assistant mask", trl[True], trl[True]["prepare_s"]),
        ("TRL map + pack, loss on everything", trl[False], trl[False]["prepare_s"]),
    ):
        per_s = (rows / seconds, result["tokens"] / seconds)
        print(f"{name:<34}{seconds:>9.1f}{per_s[0]:>17,.0f}{per_s[1]:>11,.0f}{result['efficiency']:>12.4f}")
    print(f"GSM8K at {SEQ_LEN} tokens: packing efficiency {gsm8k['efficiency']}")
    print(f"second run over unchanged data: {ours['again_s']} s")
    if small and large:
        peaks = f"{small['peak_mib']} MiB for {rows:,} rows, {large['peak_mib']} MiB for {large['rows']:,}"
        print(f"peak memory: {peaks}")
    met = (
        ratios["trl_without_mask"] >= GOALS["speed_ratio"]
        and ratios["trl_with_mask"] >= GOALS["speed_ratio"]
        and gsm8k["efficiency"] >= GOALS["gsm8k_packing_efficiency"]
        and ours["again_s"] <= GOALS["second_run_s"]
        and (growth is None or growth <= GOALS["memory_growth"])
    )
    metrics = {
        "conversations_per_s": round(rate),
        "ours": ours,
        "trl": {"with_mask": trl[True], "without_mask": trl[False]},
        "gsm8k": gsm8k,
        "small": small,
        "large": large,
        "memory_growth": growth,
    }
    return conclude("data_prepare", metrics, ratios, GOALS, met)


if __name__ == "__main__":
    sys.exit(main())
