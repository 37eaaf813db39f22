"""Data reports as the data stage writes them, and a reader of pages: shared by the tests of both."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

LENGTHS = [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 1 << 30]
SHARES = [i / 10 for i in range(11)]


def source(name: str, read: int, losses: dict[str, dict[str, int]], **more: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "source": name,
        "type": "jsonl",
        "format": "messages",
        "format_because": "every one of the first 50 rows has messages",
        "read": read,
        "losses": {},
        "examples": [],
    }
    left = read
    for stage in ("parsed", "valid", "clean", "unique", "kept"):
        entry["losses"][stage] = losses.get(stage, {})
        left -= sum(entry["losses"][stage].values())
        entry[stage] = left
    return {**entry, "drawn": left, **more}


def sample() -> dict[str, Any]:
    """The report of two sources, one of which breaks a rule."""
    tickets = source(
        "tickets.jsonl",
        12_840,
        {
            "parsed": {"not JSON: Expecting ',' delimiter": 31},
            "valid": {"message N (assistant) is empty": 57, "no answer": 230},
            "unique": {"exact duplicate": 318, "near duplicate": 146},
        },
        examples=[
            {"stage": "parsed", "reason": "not JSON: Expecting ',' delimiter", "file": "tickets.jsonl",
             "line": 1207, "text": '{"messages": [{"role"'},
            {"stage": "valid", "reason": "no answer", "file": "tickets.jsonl", "line": 88,
             "text": "hello [email]"},
        ],
    )  # fmt: skip
    archive = source("s3://chats/*.parquet", 8_200, {"valid": {"roles must alternate": 640}})
    train = {"rows": 4_780, "documents": 18_100, "tokens": 4_812_330, "supervised_tokens": 1_501_447,
             "packing_efficiency": 0.983}  # fmt: skip
    return copy.deepcopy(
        {
            "task": "conversation",
            "seq_len": 1024,
            "encrypted": False,
            "funnel": [tickets, archive],
            "splits": {
                "train": train,
                "eval": {**train, "rows": 251, "documents": 950, "tokens": 250_000,
                         "supervised_tokens": 77_000},
            },
            "histograms": {
                "tokens": {
                    "edges": LENGTHS,
                    "counts": {"train": [0, 0, 100, 4_000, 9_000, 4_000, 1_000, 0, 0],
                               "eval": [0] * 8 + [950]},
                },
                "chars": {"edges": LENGTHS, "counts": {"train": [0] * 7 + [18_100, 0], "eval": [0] * 9}},
                "supervised_share": {"edges": SHARES, "counts": {"train": [1_810] * 10, "eval": [95] * 10}},
            },
            "notes": {"truncated": 37, "split": 0, "expanded": 210},
            "duplicates": {
                "exact": 318,
                "near": 146,
                "clusters": [{"size": 118, "kind": "exact", "kept": "tickets.jsonl:44", "text": "ok thanks"}],
            },
            "labels": {"billing": 5_210, "delivery": 1_900},
            "sources": {
                "tickets.jsonl": {"asked": 0.5, "rows": 12_058, "share": 0.6146},
                "s3://chats/*.parquet": {"asked": 0.5, "rows": 7_560, "share": 0.3854},
            },
            "personal_data": {"email": 1_288, "iban": 12},
            "scripts": {"Latin": 19_000, "Han": 618},
            "contamination": {"gsm8k test": 2},
            "gates": [
                {"rule": "max_bad_fraction", "value": 0.0248, "limit": 0.05, "ok": True,
                 "source": "tickets.jsonl"},
                {"rule": "max_bad_fraction", "value": 0.078, "limit": 0.05, "ok": False,
                 "source": "s3://chats/*.parquet"},
                {"rule": "min_rows", "value": 18_100, "limit": 100, "ok": True, "source": None},
            ],
        }
    )  # fmt: skip


def nothing() -> dict[str, Any]:
    """The report of a source of which no row is left."""
    report = sample()
    report["funnel"] = [source("empty.csv", 3, {"valid": {"no answer": 3}})]
    for split in report["splits"].values():
        split |= dict.fromkeys(split, 0)
    for histogram in report["histograms"].values():
        histogram["counts"] = {name: [0] * len(values) for name, values in histogram["counts"].items()}
    empty: dict[str, Any] = {
        "labels": {},
        "personal_data": {},
        "scripts": {},
        "contamination": {},
        "gates": [],
    }
    empty["sources"] = {"empty.csv": {"asked": 1.0, "rows": 0, "share": 0.0}}
    empty["duplicates"] = {"exact": 0, "near": 0, "clusters": []}
    return report | empty | {"notes": dict.fromkeys(report["notes"], 0)}


class Page(HTMLParser):
    """Tags, attributes and text of a page; an element that is not closed is an error."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.words.append(" ")
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
