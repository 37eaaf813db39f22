"""LoRA training by TRL's `SFTTrainer` with its packing; prints one JSON line.

    python trl_train.py MODEL ROWS.jsonl [--micro 1] [--accumulate 8] [--steps 3]

Runs in TRL's environment. Packing is `bfd`; `--leaky` packs by `wrapped`, where a document runs on
into the next row.
"""

import os
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from measured import Stopwatch, conclude, parse


def main() -> None:
    options = parse(__doc__)
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    with tempfile.TemporaryDirectory(prefix="trl-train-") as folder:
        rows = datasets.load_dataset("json", data_files=options.rows, split="train", cache_dir=folder)
        config = SFTConfig(
            output_dir=folder,
            packing=True,
            packing_strategy="wrapped" if options.leaky else "bfd",
            max_length=options.seq_len,
            assistant_only_loss=True,
            per_device_train_batch_size=options.micro,
            gradient_accumulation_steps=options.accumulate,
            max_steps=options.warm_up + options.steps,
            learning_rate=2e-4,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=True,
            logging_steps=options.warm_up + options.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        watch = Stopwatch(options.warm_up)
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(options.model),
            peft_config=LoraConfig(
                r=options.rank,
                lora_alpha=2 * options.rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[watch],
        )
        trainer.train()
        packed = trainer.train_dataset
        tokens = sum(map(len, packed["input_ids"]))
        conclude(
            watch,
            packed,
            tokens,
            options.micro * options.accumulate,
            trainer.state.log_history[-1]["train_loss"],
        )


if __name__ == "__main__":
    main()
