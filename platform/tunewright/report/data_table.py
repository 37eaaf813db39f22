"""The data report in the terminal: plain text of at most `WIDTH` columns, whatever the rows hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunewright.data.accounts import check_adds_up, funnel_steps
from tunewright.report import data_words as words
from tunewright.report.table import WIDTH
from tunewright.report.text import count

MOST_REASONS = 6
MOST_COUNTS = 8
NAME_WIDTH = 46


def data_text(report: Mapping[str, Any], drift: Sequence[Mapping[str, Any]] | None) -> str:
    """Headline, rules, the funnel of each source, what is trained on, findings and changes.

    Raises:
        DataError: the report's figures do not add up.
    """
    check_adds_up(report)
    blocks = [_headline(report), _rules(report), *map(_funnel, report["funnel"]), _splits(report)]
    blocks += [_mixture(report), _findings(report), _changes(drift)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _headline(report: Mapping[str, Any]) -> list[str]:
    read, kept = (sum(entry[name] for entry in report["funnel"]) for name in ("read", "kept"))
    return [
        f"{count(kept)} of {words.rows(read)} kept ({words.percent(words.of(kept, read))}); "
        f"task {report['task']}, packed into rows of {count(report['seq_len'])} tokens"
        + ("; encrypted" if report["encrypted"] else "")
    ]


def _rules(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for gate in words.sorted_gates(report):
        source = "" if gate["source"] is None else words.visible(gate["source"])
        found = words.gate_value(gate["rule"], gate["value"])
        rows.append(("ok" if gate["ok"] else "REFUSED", gate["rule"], found, words.gate_needs(gate), source))
    return ["rules", *aligned(rows, right=(2,))] if rows else []


def _funnel(entry: Mapping[str, Any]) -> list[str]:
    """The stages of a source; each loss beside the stage where it happened."""
    said = f"{entry['type']}, format {entry['format']}: {words.visible(entry['format_because'])}"
    rows = [("read", count(entry["read"]), "", "")]
    for step in funnel_steps(entry):
        reasons = list(step.reasons.items())
        more = reasons[MOST_REASONS:]
        shown = [(f"-{count(n)}", words.visible(reason)) for reason, n in reasons[:MOST_REASONS]]
        if more:
            shown.append((f"-{count(sum(n for _, n in more))}", f"other reasons ({len(more)})"))
        first, *others = shown or [("", "")]
        rows.append((step.stage, count(step.after), *first))
        rows += [("", "", *other) for other in others]
    return [clipped(words.visible(entry["source"])), clipped(f"  {said}"), *aligned(rows, right=(1, 2))]


def _splits(report: Mapping[str, Any]) -> list[str]:
    head = ("split", "packed rows", "documents", "tokens", "carry loss", "filled")
    rows = [
        (
            name,
            count(split["rows"]),
            count(split["documents"]),
            count(split["tokens"]),
            words.percent(words.of(split["supervised_tokens"], split["tokens"])),
            words.percent(split["packing_efficiency"]),
        )
        for name, split in report["splits"].items()
    ]
    return aligned([head, *rows], right=range(1, 6))


def _mixture(report: Mapping[str, Any]) -> list[str]:
    if len(report["sources"]) < 2:
        return []
    rows = [("share of an epoch", "asked", "got", "rows")]
    for name, source in report["sources"].items():
        shares = words.percent(source["asked"]), words.percent(source["share"])
        rows.append((words.visible(name), *shares, count(source["rows"])))
    return aligned(rows, right=(1, 2, 3))


def _findings(report: Mapping[str, Any]) -> list[str]:
    """One line for each sort of thing that was counted."""
    duplicates = {kind: report["duplicates"][kind] for kind in ("exact", "near")}
    sorts = {
        "duplicates": duplicates,
        "personal data": report["personal_data"],
        "evaluation sets": report["contamination"],
        "labels": report["labels"],
        "scripts": report["scripts"],
        "fitted rows": report["notes"],
    }
    return aligned([(name, said) for name, counts in sorts.items() if (said := _counts(counts))])


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(((n, key) for key, n in counts.items() if n), key=lambda item: (-item[0], item[1]))
    said = [f"{words.visible(key)} {count(n)}" for n, key in ordered[:MOST_COUNTS]]
    if len(ordered) > MOST_COUNTS:
        said.append(f"and {len(ordered) - MOST_COUNTS} more")
    return ", ".join(said)


def _changes(drift: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if drift is None:
        return []
    changed = [row for row in drift if row["level"] != "none"]
    if not changed:
        return [f"none of {len(drift)} figures changed by much"]
    rows = [("what changed", "before", "now", "measure", "change")]
    for row in changed:
        name = words.visible(row["what"]) + (f" {row['unit']}" if row["unit"] == "per 1,000 rows" else "")
        values = [words.drift_value(row[key], row["unit"]) for key in ("before", "now")]
        rows.append((name, *values, words.drift_measure(row), row["level"]))
    return [*aligned(rows, right=(1, 2, 3)), f"  {len(drift) - len(changed)} other figures hardly changed"]


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows in columns, two spaces apart and two in; the columns `right` to the right."""
    if not rows:
        return []
    cells = [[_flat(cell, NAME_WIDTH if i == 0 else WIDTH) for i, cell in enumerate(row)] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [clipped("  " + "  ".join(_padded(row, widths, right))) for row in cells]


def _padded(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.rjust(width) if i in right else cell.ljust(width)


def clipped(line: str) -> str:
    return _flat(line.rstrip(), WIDTH)


def _flat(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    text = text.replace("\n", "⏎").replace("\t", " ")
    return text if len(text) <= width else text[: width - 1] + "…"
