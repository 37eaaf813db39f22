"""The figures of a prepared data set, and the rules it must keep. Every row read is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.config import BuiltinSource, DataConfig, FileSource
from tunewright.errors import DataError


def data_facts(
    config: DataConfig,
    sources: Sequence[FileSource],
    formats: Sequence[str],
    reasons: Sequence[str],
    summaries: list[dict[str, Any]],
) -> dict[str, Any]:
    """The figures of the whole set; every row read is kept, rejected or a duplicate."""
    funnel = []
    for index, (given, source) in enumerate(zip(config.sources, sources, strict=True)):
        kept, duplicates = Counter[str](), Counter[str]()
        rejected: Counter[str] = Counter()
        for summary in summaries:
            kept[""] += summary["kept"].get(str(index), 0)
            duplicates[""] += summary.get("duplicates", {}).get(str(index), 0)
            rejected.update(summary["rejected"].get(str(index), {}))
        bad = sum(rejected.values())
        funnel.append(
            {
                "source": given.name if isinstance(given, BuiltinSource) else source.path,
                "format": formats[index],
                "format_because": reasons[index],
                "read": kept[""] + duplicates[""] + bad,
                "rejected": bad,
                "duplicates": duplicates[""],
                "kept": kept[""],
                "reasons": dict(rejected.most_common()),
            }
        )
    facts: dict[str, Any] = {"seq_len": config.pack.seq_len, "funnel": funnel}
    for split in ("train", "eval"):
        of_split = [s for s in summaries if s["bucket"].startswith(split)]
        for name in ("rows", "documents", "tokens", "supervised_tokens"):
            facts[f"{split}_{name}"] = sum(s[name] for s in of_split)
    findings: Counter[str] = Counter()
    for summary in summaries:
        findings.update(summary["findings"])
    facts["personal_data_redacted"] = dict(findings)
    slots = facts["train_rows"] * config.pack.seq_len
    facts["packing_efficiency"] = round(facts["train_tokens"] / slots, 4) if slots else 0.0
    return facts


def check_rules(config: DataConfig, facts: dict[str, Any], work: Path) -> None:
    """Refuse a set that breaks its rules; the quarantine stays in the work folder for a look."""
    for entry in facts["funnel"]:
        share = entry["rejected"] / entry["read"] if entry["read"] else 0.0
        if share > config.rules.max_bad_fraction:
            top = "; ".join(f"{count} x {reason}" for reason, count in list(entry["reasons"].items())[:3])
            raise DataError(
                f"{entry['source']}: {entry['rejected']} of {entry['read']} rows ({share:.1%}) were "
                f"rejected, above data.rules.max_bad_fraction={config.rules.max_bad_fraction:g}. {top}. "
                f"The rows are in {work / 'quarantine'}"
            )
        if config.pack.overflow == "error":
            long = sum(n for reason, n in entry["reasons"].items() if "do not fit a row" in reason)
            if long:
                raise DataError(
                    f"{entry['source']}: {long} rows are longer than seq_len={config.pack.seq_len} "
                    f"and data.pack.overflow is error; raise seq_len or say overflow: drop"
                )
    if not facts["train_rows"]:
        raise DataError("no row is left to train on")
    if not facts["train_supervised_tokens"]:
        raise DataError("no token of the data set carries loss")
