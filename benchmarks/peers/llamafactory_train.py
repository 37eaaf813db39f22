"""LoRA training by LLaMA-Factory with its packing; prints one JSON line.

    python llamafactory_train.py MODEL ROWS.jsonl [--micro 1] [--accumulate 8] [--steps 3]

Runs in LLaMA-Factory's environment, through the same function as `llamafactory-cli train`. Packing is
`neat_packing`; `--leaky` packs by `packing`, where the documents of a row see each other.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_VERSION_CHECK"] = "1"  # it refuses the torch that all are measured with

from measured import Stopwatch, conclude, parse


def main() -> None:
    options = parse(__doc__)
    import torch
    from transformers.utils import is_torchaudio_available

    if not is_torchaudio_available():  # LLaMA-Factory imports it for models that hear; see install.py
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    from llamafactory.data.formatter import EmptyFormatter, StringFormatter
    from llamafactory.data.template import register_template
    from llamafactory.train import tuner
    from transformers import Trainer

    torch.set_num_threads(options.threads)
    register_template(
        name="plain",
        format_user=StringFormatter(slots=["User: {{content}}\nAssistant: "]),
        format_assistant=StringFormatter(slots=["{{content}}", {"eos_token"}, "\n"]),
        format_prefix=EmptyFormatter(),
    )
    watch, seen = Stopwatch(options.warm_up), {}
    train = Trainer.train

    def watched(self: Trainer, *args, **kwargs):
        result = train(self, *args, **kwargs)
        seen["rows"], seen["loss"] = self.train_dataset, result.training_loss
        return result

    Trainer.train = watched
    with tempfile.TemporaryDirectory(prefix="lf-train-") as name:
        folder = Path(name)
        columns = {"formatting": "sharegpt", "columns": {"messages": "messages"}}
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        described = {"rows": {"file_name": str(Path(options.rows).resolve()), **columns, "tags": tags}}
        (folder / "dataset_info.json").write_text(json.dumps(described))
        tuner.run_exp(
            {
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": options.model,
                "dataset_dir": name,
                "dataset": "rows",
                "template": "plain",
                "cutoff_len": options.seq_len,
                "packing": True,
                "neat_packing": not options.leaky,
                "flash_attn": "sdpa",
                "finetuning_type": "lora",
                "lora_rank": options.rank,
                "lora_alpha": 2 * options.rank,
                "lora_target": "all",
                "per_device_train_batch_size": options.micro,
                "gradient_accumulation_steps": options.accumulate,
                "max_steps": options.warm_up + options.steps,
                "learning_rate": 2e-4,
                "disable_gradient_checkpointing": True,
                "bf16": True,
                "use_cpu": True,
                "logging_steps": options.warm_up + options.steps,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "overwrite_cache": True,
                "output_dir": str(folder / "out"),
            },
            callbacks=[watch],
        )
    rows = seen["rows"]
    conclude(watch, rows, sum(map(tokens_of, rows)), options.micro * options.accumulate, seen["loss"])


def tokens_of(row: dict) -> int:
    """How long a row is without the padding behind its last supervised token."""
    labels = row["labels"]
    return max(at for at, label in enumerate(labels) if label != -100) + 1


if __name__ == "__main__":
    main()
