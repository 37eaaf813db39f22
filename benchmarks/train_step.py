"""How fast is LoRA training, against TRL and LLaMA-Factory, and what share of the machine is used?

    python benchmarks/train_step.py [--parts rate,ours,bare,workers,start,peers] [--repeats 3]
                                                                        (make bench-train_step)

The workload (train_workload.py): a random 49M-parameter Llama in bf16, 800 GSM8K conversations packed
into rows of 1,024 tokens, rank 16 on all linear layers, steps of 8 rows, two threads.

    rate     the machine's bf16 matrix products
    ours     a Ray Train worker with a DeepSpeed engine, as the train stage runs it
    bare     the same passes in one process, with torch's AdamW
    workers  two workers of one thread each, against `ours`
    start    from submitting to the first step, against importing what a worker needs
    peers    TRL's SFTTrainer and LLaMA-Factory, each at its best of the settings in PEERS

Tokens are real ones, padding aside; the first step is not counted. Parts are measured in turns, and
each figure is the median of the turns. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from result import conclude
from train_workload import GSM8K, RANK, SHAPE, TOKENIZER, Workload, make_workload

HERE = Path(__file__).parent
GOALS = {"fastest_peer": 2.5, "matrix_share": 0.40, "ray_cost": 0.05, "start": 1.5, "two_workers": 0.95}
PARTS = ("rate", "ours", "bare", "workers", "start", "peers")
BATCH = 8
MICRO = 4
"""Rows of a micro batch of ours; peers are tried with 1 and with 4."""
PEERS = {
    "trl bfd": ("trl", 1, False),
    "trl wrapped": ("trl", 1, True),
    "trl bfd, 4 rows": ("trl", 4, False),
    "trl wrapped, 4 rows": ("trl", 4, True),
    "llamafactory neat": ("llamafactory", 1, False),
    "llamafactory leaky": ("llamafactory", 1, True),
    "llamafactory neat, 4 rows": ("llamafactory", 4, False),
    "llamafactory leaky, 4 rows": ("llamafactory", 4, True),
}
"""Name -> (peer, rows of a micro batch, whether documents of a row may see each other)."""


def necessary_flop(workload: Workload) -> dict[str, float]:
    """Floating-point operations that one training token cannot do without, by what they are for.

    A product of n inputs and m outputs costs 2nm forward and 2nm for the gradient of its inputs; frozen
    weights have none, and the first layer's queries, keys and values need none of their inputs. Updates
    cost 2nm forward, 2nm for the inputs' and 2nm for their own gradients. In attention a token meets
    those before it in its document and itself: two products forward, four for the gradients. The output
    layer answers at supervised tokens only. Elementwise work counts for nothing.
    """
    width, mlp, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    keys = width * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    shapes = [(width, width), (width, keys), (width, keys), (width, width)]
    shapes += [(width, mlp), (width, mlp), (mlp, width)]
    needless = 2 * sum(n * m for n, m in shapes[:3])
    return {
        "linear": 4.0 * layers * sum(n * m for n, m in shapes) - needless,
        "updates": 6.0 * RANK * layers * sum(n + m for n, m in shapes),
        "attention": 12.0 * layers * width * workload.pairs / workload.tokens,
        "output": 4.0 * width * SHAPE["vocab_size"] * workload.supervised / workload.tokens,
    }


def measured(python: Path | str, script: Path, *arguments: str) -> dict:
    """What a script prints in its last line, run in a fresh process."""
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "2",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [str(python), str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script.name} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(what: str, *arguments: str) -> dict:
    """One of Tunewright's paths; a bare process gets the memory settings that workers have."""
    from tunewright.train.launch import worker_env

    if what == "bare":
        malloc = {name: value for name, value in worker_env(2).items() if name.startswith("MALLOC")}
        os.environ.update(malloc)
    try:
        return measured(sys.executable, HERE / "train_paths.py", what, *arguments)
    finally:
        if what == "bare":
            for name in malloc:
                del os.environ[name]


def peer(setting: str, workload: Workload, steps: int) -> dict:
    from peers.install import peer_python

    name, micro, leaky = PEERS[setting]
    options = ["--micro", str(micro), "--accumulate", str(BATCH // micro), "--steps", str(steps)]
    files = [str(workload.model), str(workload.conversations)]
    script = HERE / "peers" / f"{name}_train.py"
    return measured(peer_python(name), script, *files, *options, *(["--leaky"] if leaky else []))


def turns(options: argparse.Namespace, workload: Workload, folder: Path) -> dict[str, list[dict]]:
    """What each part measured, turn after turn."""
    parts = options.parts
    file = folder / "workload.json"
    file.write_text(json.dumps(asdict(workload), default=str), encoding="utf-8")
    steps = ["--steps", str(options.steps), "--batch", str(BATCH), "--micro", str(MICRO), "--rank", str(RANK)]
    path = [str(file), *steps]
    found: dict[str, list[dict]] = {}

    def add(name: str, result: dict) -> None:
        found.setdefault(name, []).append(result)
        print(f"  {name}: {result}", file=sys.stderr, flush=True)

    for _ in range(options.repeats):
        if "rate" in parts:
            add("rate", ours("rate"))
        if {"ours", "workers", "start"} & parts:
            add("ours", ours("ray", *path))
        if "bare" in parts:
            add("bare", ours("bare", *path))
        if "workers" in parts:
            add("workers", ours("ray", *path, "--workers", "2", "--threads", "1"))
        if "start" in parts:
            add("start", ours("imports"))
    if "peers" in parts:
        for name in options.peers:
            settings = [setting for setting in PEERS if PEERS[setting][0] == name]
            for setting in settings:
                add(setting, peer(setting, workload, 1))
            best = max(settings, key=lambda setting: found[setting][0]["tokens_per_s"])
            found[best] = []
            for _ in range(options.repeats):
                add(best, peer(best, workload, options.peer_steps))
    return found


def median(results: list[dict], name: str) -> float:
    return float(statistics.median(result[name] for result in results))


def report(found: dict[str, list[dict]], workload: Workload) -> int:
    """Print the table and the JSON line; returns the exit code."""
    speeds = {n: median(r, "tokens_per_s") for n, r in found.items() if "tokens_per_s" in r[0]}
    flop = necessary_flop(workload)
    ratios: dict[str, float] = {}
    per_token = sum(flop.values())
    print(f"{'':<30}{'tokens/s':>10}{'turns':>7}{'GFLOP/s':>10}")
    for name, speed in speeds.items():
        print(f"{name:<30}{speed:>10,.0f}{len(found[name]):>7}{speed * per_token / 1e9:>10,.0f}")
    print("necessary MFLOP a token: " + ", ".join(f"{n} {f / 1e6:.1f}" for n, f in flop.items()))
    peers = [speed for name, speed in speeds.items() if name in PEERS]
    if peers and "ours" in speeds:
        ratios["fastest_peer"] = round(speeds["ours"] / max(peers), 2)
    if "rate" in found:
        gflops = median(found["rate"], "gflops")
        print(f"bf16 matrix products: {gflops:,.0f} GFLOP/s")
        if "ours" in speeds:
            ratios["matrix_share"] = round(speeds["ours"] * per_token / 1e9 / gflops, 3)
    if "bare" in speeds and "ours" in speeds:
        ratios["ray_cost"] = round(1 - speeds["ours"] / speeds["bare"], 3)
    if "workers" in speeds:
        ratios["two_workers"] = round(speeds["workers"] / speeds["ours"], 3)
    if "start" in found:
        seconds, needed = median(found["ours"], "first_step_s"), median(found["start"], "imports_s")
        print(f"first step after {seconds} s, imports take {needed} s")
        ratios["start"] = round(seconds / needed, 2)
    at_most = ("ray_cost", "start")
    for name, ratio in ratios.items():
        bound = f"{'at most' if name in at_most else 'at least'} {GOALS[name]}"
        print(f"{name:<30}{ratio:>10}   goal {bound}")
    met = {n: r <= GOALS[n] if n in at_most else r >= GOALS[n] for n, r in ratios.items()}
    metrics = {
        "tokens_per_s": speeds,
        "necessary_flop_per_token": flop,
        "rows": workload.rows,
        "tokens": workload.tokens,
        "supervised": workload.supervised,
        "stand_in": workload.stand_in,
        "measured": found,
    }
    return conclude("train_step", metrics, ratios, GOALS, set(met) == set(GOALS) and all(met.values()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", type=lambda text: set(text.split(",")), default=set(PARTS), help=f"of {','.join(PARTS)}"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of 8 rows, after the one that is not counted")
    parser.add_argument("--peer-steps", type=int, default=2)
    parser.add_argument("--peers", type=lambda text: text.split(","), default=["trl", "llamafactory"])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TUNEWRIGHT_GSM8K", GSM8K)))
    parser.add_argument(
        "--tokenizer", type=Path, default=Path(os.environ.get("TUNEWRIGHT_GPT2_TOKENIZER", TOKENIZER))
    )
    options = parser.parse_args()
    if unknown := options.parts - set(PARTS):
        parser.error(f"--parts {','.join(sorted(unknown))}: choose from {','.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="tw-bench-") as name:
        workload = make_workload(Path(name), options.data, options.tokenizer)
        for made_up in workload.stand_in:
            print(f"STAND-IN: {made_up}")
        found = turns(options, workload, Path(name))
    return report(found, workload)


if __name__ == "__main__":
    sys.exit(main())
