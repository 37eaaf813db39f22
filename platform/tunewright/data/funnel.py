"""The report of a prepared data set, and the rules it must keep. Every row read is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.config import DataConfig, source_label
from tunewright.data.collect import EDGES
from tunewright.data.figures import STAGES, Figures
from tunewright.errors import DataError


def data_report(
    config: DataConfig,
    task: str,
    formats: Sequence[str],
    reasons: Sequence[str],
    figures: Figures,
    splits: dict[str, dict[str, Any]],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """`report.json`: where every row of every source went, and the figures of the whole set."""
    seq_len = config.pack.seq_len
    for split in splits.values():
        slots = split.get("rows", 0) * seq_len
        split["packing_efficiency"] = round(split["tokens"] / slots, 4) if slots else 0.0
    labels = _labels(config)
    sources = zip(config.sources, formats, reasons, strict=True)
    funnel = [
        {
            "source": labels[index],
            "type": source.type,
            "format": form,
            "format_because": because,
            **_stages(figures, index),
        }
        for index, (source, form, because) in enumerate(sources)
    ]
    drawn = sum(entry["drawn"] for entry in funnel)
    sums: dict[str, dict[str, int]] = {name: dict(counts) for name, counts in figures.sums.items()}
    report = {
        "task": task,
        "seq_len": seq_len,
        "encrypted": config.encryption is not None,
        "funnel": funnel,
        "splits": splits,
        "histograms": _histograms(figures),
        "notes": {name: sums.get("notes", {}).get(name, 0) for name in ("truncated", "split", "expanded")},
        "duplicates": {
            "exact": sums.get("duplicates", {}).get("exact", 0),
            "near": sums.get("duplicates", {}).get("near", 0),
            "clusters": [
                dict(zip(("size", "kind", "kept", "text"), cluster, strict=True))
                for cluster in figures.clusters
            ],
        },
        "labels": dict(sorted(sums.get("labels", {}).items())),
        "sources": {
            entry["source"]: {
                "asked": round(extra["asked"].get(index, entry["drawn"] / drawn if drawn else 0.0), 4),
                "rows": entry["drawn"],
                "share": round(entry["drawn"] / drawn, 4) if drawn else 0.0,
            }
            for index, entry in enumerate(funnel)
        },
        "personal_data": dict(sorted(sums.get("personal_data", {}).items())),
        "scripts": dict(sorted(sums.get("scripts", {}).items())),
        "contamination": dict(sorted(sums.get("contamination", {}).items())),
    }
    report["gates"] = _gates(config, report)
    return report


def data_facts(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a data set that its manifest and other stages name."""
    facts: dict[str, Any] = {"task": report["task"], "seq_len": report["seq_len"]}
    for split, figures in report["splits"].items():
        for name in ("rows", "documents", "tokens", "supervised_tokens"):
            facts[f"{split}_{name}"] = figures[name]
    facts["packing_efficiency"] = report["splits"]["train"]["packing_efficiency"]
    facts["personal_data"] = report["personal_data"]
    facts["funnel"] = [
        {
            "source": entry["source"],
            "format": entry["format"],
            "format_because": entry["format_because"],
            "read": entry["read"],
            "rejected": _lost(entry, "parsed", "valid", "clean"),
            "duplicates": _lost(entry, "unique"),
            "kept": entry["kept"],
            "reasons": {
                reason: count
                for stage in ("parsed", "valid", "clean")
                for reason, count in entry["losses"][stage].items()
            },
        }
        for entry in report["funnel"]
    ]
    return facts


def check_rules(config: DataConfig, report: dict[str, Any], work: Path) -> None:
    """Refuse a set that breaks its rules; report and quarantine stay in the work folder for a look.

    Raises:
        DataError: names every figure that failed, and where the rows are.
    """
    failing = [gate for gate in report["gates"] if not gate["ok"]]
    problems = [_sentence(gate, report) for gate in failing]
    if config.pack.overflow == "error":
        for entry in report["funnel"]:
            long = sum(n for reason, n in entry["losses"]["valid"].items() if "do not fit a row" in reason)
            if long:
                problems.append(
                    f"{entry['source']}: {long} rows are longer than seq_len={config.pack.seq_len} "
                    f"and data.pack.overflow is error; raise seq_len or say overflow: drop"
                )
    train = report["splits"]["train"]
    if not train["rows"]:
        problems.append("no row is left to train on")
    elif not train["supervised_tokens"]:
        problems.append("no token of the data set carries loss")
    if problems:
        raise DataError(
            "; ".join(problems) + f". The rows are in {work / 'quarantine'}; "
            f"see: tunewright data report {work / 'report.json'}"
        )


def _labels(config: DataConfig) -> list[str]:
    """A name for each source; those that are alike are numbered."""
    names = [source_label(source) for source in config.sources]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _stages(figures: Figures, index: int) -> dict[str, Any]:
    """How many rows of a source passed each stage, why the others did not, and some of those."""
    counts = figures.counts.get(str(index), Counter())
    losses = figures.losses.get(str(index), {})
    left = counts.get("read", 0)
    out: dict[str, Any] = {"read": left, "losses": {}, "examples": []}
    for stage in STAGES[1:]:
        reasons = dict(sorted(losses.get(stage, {}).items(), key=lambda item: (-item[1], item[0])))
        left -= sum(reasons.values())
        out[stage] = left
        out["losses"][stage] = reasons
        shown = figures.examples.get(str(index), {}).get(stage, {})
        for reason in reasons:
            for file, line, text in shown.get(reason, []):
                out["examples"].append(
                    {"stage": stage, "reason": reason, "file": file, "line": line, "text": text}
                )
    # Counted apart, where rows are written: a row that went missing without a reason shows here.
    for stage in ("clean", "unique", "kept"):
        assert out[stage] == counts.get(stage, 0), f"source {index}: {stage} {out[stage]} != {counts}"
    out["drawn"] = counts.get("drawn", 0)  # training rows of an epoch, repeated ones counted each time
    return out


def _histograms(figures: Figures) -> dict[str, Any]:
    return {
        name: {
            "edges": edges,
            "counts": {
                split: _bins(figures, f"{name} {split}", len(edges) - 1) for split in ("train", "eval")
            },
        }
        for name, edges in EDGES.items()
    }


def _bins(figures: Figures, name: str, size: int) -> list[int]:
    counts = figures.sums.get(name, Counter())
    return [counts.get(str(bin), 0) for bin in range(size)]


def _gates(config: DataConfig, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each rule with its figure and limit, and whether it is kept."""
    rules, gates = config.rules, []
    for entry in report["funnel"]:
        read = entry["read"] or 1
        bad = _lost(entry, "parsed", "valid") / read
        limits = [
            ("max_bad_fraction", bad, rules.max_bad_fraction),
            ("max_duplicate_fraction", _lost(entry, "unique") / read, rules.max_duplicate_fraction),
            ("max_loss_fraction", 1 - entry["kept"] / read, rules.max_loss_fraction),
        ]
        gates += [
            _gate(rule, value, limit, value <= limit, entry["source"])
            for rule, value, limit in limits
            if limit is not None
        ]
    train = report["splits"]["train"]
    share = train["supervised_tokens"] / train["tokens"] if train["tokens"] else 0.0
    least = [
        ("min_rows", train["documents"], rules.min_rows),
        ("min_supervised_fraction", share, rules.min_supervised_fraction),
        ("min_packing_efficiency", train["packing_efficiency"], rules.min_packing_efficiency),
    ]
    gates += [_gate(rule, value, limit, value >= limit) for rule, value, limit in least if limit is not None]
    return gates


def _gate(rule: str, value: float, limit: float, ok: bool, source: str | None = None) -> dict[str, Any]:
    return {"rule": rule, "value": round(value, 6), "limit": limit, "ok": ok, "source": source}


def _sentence(gate: dict[str, Any], report: dict[str, Any]) -> str:
    rule = f"data.rules.{gate['rule']}={gate['limit']:g}"
    if gate["source"] is None:
        return f"{gate['rule'].removeprefix('min_').replace('_', ' ')} is {gate['value']:g}, below {rule}"
    entry = next(e for e in report["funnel"] if e["source"] == gate["source"])
    what = {
        "max_bad_fraction": ("rejected", ("parsed", "valid")),
        "max_duplicate_fraction": ("duplicates", ("unique",)),
        "max_loss_fraction": ("lost", STAGES[1:]),
    }
    word, stages = what[gate["rule"]]
    reasons: dict[str, int] = {}
    for stage in stages:
        reasons |= entry["losses"][stage]
    top = "; ".join(f"{n} x {reason}" for reason, n in sorted(reasons.items(), key=lambda i: -i[1])[:3])
    return (
        f"{gate['source']}: {_lost(entry, *stages)} of {entry['read']} rows ({gate['value']:.1%}) were "
        f"{word}, above {rule}. {top}"
    )


def _lost(entry: dict[str, Any], *stages: str) -> int:
    return sum(n for stage in stages for n in entry["losses"][stage].values())
