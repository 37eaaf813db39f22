"""TRL's own preparation of a conversation file: `datasets.map(num_proc)` and best-fit packing.

    python trl_pack.py ROWS.jsonl TOKENIZER SEQ_LEN NUM_PROC TEMPLATE.jinja [--mask]

Times `SFTTrainer._prepare_dataset`, the code that every TRL run goes through, on rows that
`load_dataset` has read; `--mask` asks for the loss on assistant turns only. Runs in TRL's environment.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows")
    parser.add_argument("tokenizer")
    parser.add_argument("seq_len", type=int)
    parser.add_argument("num_proc", type=int)
    parser.add_argument("template", type=Path)
    parser.add_argument("--mask", action="store_true")
    options = parser.parse_args()

    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    tokenizer.chat_template = options.template.read_text()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    spent = {}

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *args, **kwargs):
            begun = time.monotonic()
            prepared = super()._prepare_dataset(*args, **kwargs)
            spent["prepare_s"] = time.monotonic() - begun
            return prepared

    with tempfile.TemporaryDirectory(prefix="trl-pack-") as folder:
        begun = time.monotonic()
        rows = datasets.load_dataset(
            "json", data_files=options.rows, split="train", cache_dir=folder, num_proc=1
        )
        spent["load_s"] = time.monotonic() - begun
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        config = SFTConfig(
            output_dir=folder,
            packing=True,
            max_length=options.seq_len,
            dataset_num_proc=options.num_proc,
            assistant_only_loss=options.mask,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = Timed(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        packed = trainer.train_dataset
        tokens = 0
        for batch in packed.with_format("arrow").iter(1000):
            tokens += len(batch["input_ids"].combine_chunks().flatten())
        print(
            json.dumps(
                {
                    "conversations": len(rows),
                    "packed_rows": len(packed),
                    "tokens": tokens,
                    "efficiency": round(tokens / len(packed) / options.seq_len, 4),
                    **{name: round(seconds, 2) for name, seconds in spent.items()},
                }
            )
        )


if __name__ == "__main__":
    main()
