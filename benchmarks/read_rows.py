"""How fast are single rows read at random, and does memory stay flat however many there are?

    python benchmarks/read_rows.py [--mib 200]

Shards of at least so many MiB are written from generated documents, at 1,024 tokens a row, once in the
clear and once encrypted. Rows are then taken one by one in the order of a permutation, as training
does; `cold` after the kernel was told to forget the files. Warm-up is excluded. The last line is one
JSON object.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from result import conclude

from tunewright.data.encryption import Cipher
from tunewright.data.pack import pack_best_fit
from tunewright.data.rows import Document
from tunewright.data.shards import PackedRows, write_shard

SEQ_LEN = 1024
DOCUMENTS = 50_000
READS, WARM_UP, REPEATS = 2_000, 200, 3
GOALS = {"rows_per_s_warm": 1000.0, "rss_growth_mib": 20.0}
KEY = "TUNEWRIGHT_BENCH_KEY"


def documents(numbers: np.random.Generator) -> list[Document]:
    """As many as a bucket has, of about 150 tokens; the frequent tokens are about as frequent as words."""
    lengths = numbers.lognormal(4.95, 0.38, DOCUMENTS).clip(8, SEQ_LEN).astype(int)
    ids = (50_000 * numbers.random(lengths.sum()) ** 4).astype(np.int32)
    mask = np.ones(SEQ_LEN, np.int8)
    mask[:60] = 0
    starts = np.cumsum(lengths) - lengths
    return [Document(ids[at : at + n], mask[:n]) for at, n in zip(starts, lengths, strict=True)]


def write(folder: Path, mib: int, cipher: Cipher | None) -> dict[str, float]:
    """Write shards until they are `mib` MiB large; returns seconds and sizes."""
    numbers = np.random.default_rng(17)
    size = rows = 0
    packing, writing = [], []
    while size < mib << 20:
        docs = documents(numbers)
        begun = time.perf_counter()
        packed = pack_best_fit([len(d.ids) for d in docs], SEQ_LEN)
        middle = time.perf_counter()
        size += write_shard(folder / f"shard-{len(writing):05d}.parquet", docs, packed, SEQ_LEN, cipher)
        rows += len(packed)
        packing.append(middle - begun)
        writing.append(time.perf_counter() - middle)
    return {
        "mib": round(size / 2**20),
        "files": len(writing),
        "rows": rows,
        "bytes_per_row": round(size / rows),
        "pack_ms_per_50k": round(1000 * min(packing), 1),
        "write_us_per_document": round(1e6 * min(writing) / DOCUMENTS, 1),
    }


def forget(folder: Path) -> None:
    for path in folder.glob("*.parquet"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(folder: Path, cipher: Cipher | None, cold: bool) -> dict[str, float]:
    """Seconds to open, rows a second of each repetition, and by how much the process grew."""
    rates, opened, grown = [], [], []
    for repeat in range(REPEATS):
        if cold:
            forget(folder)
        begun = time.perf_counter()
        rows = PackedRows(folder, decryption=cipher.decryption() if cipher else None)
        opened.append(time.perf_counter() - begun)
        order = np.random.default_rng(repeat).permutation(len(rows))
        for index in order[:WARM_UP]:
            rows.take([int(index)])
        before, peak = psutil.Process().memory_info().rss, 0
        begun = time.perf_counter()
        for number, index in enumerate(order[WARM_UP : WARM_UP + READS]):
            rows.take([int(index)])
            if number % 100 == 0:
                peak = max(peak, psutil.Process().memory_info().rss - before)
        rates.append(READS / (time.perf_counter() - begun))
        grown.append(peak / 2**20)
    kind = "cold" if cold else "warm"
    return {
        f"rows_per_s_{kind}": round(float(np.median(rates))),
        f"rows_per_s_{kind}_std": round(float(np.std(rates))),
        f"open_ms_{kind}": round(1000 * float(np.median(opened)), 1),
        f"rss_growth_mib_{kind}": round(max(grown), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=200)
    mib = parser.parse_args().mib
    os.environ[KEY] = secrets.token_hex(32)
    metrics: dict[str, dict[str, float]] = {}
    for name, cipher in (("plain", None), ("encrypted", Cipher(f"${{{KEY}}}"))):
        with tempfile.TemporaryDirectory(prefix="tw-bench-") as folder:
            metrics[name] = write(Path(folder), mib, cipher)
            metrics[name] |= read(Path(folder), cipher, cold=False) | read(Path(folder), cipher, cold=True)
    print(f"{'':<26} {'plain':>10} {'encrypted':>10}")
    for key in metrics["plain"]:
        print(f"{key:<26} {metrics['plain'][key]:>10} {metrics['encrypted'][key]:>10}")
    grown = max(m[f"rss_growth_mib_{kind}"] for m in metrics.values() for kind in ("warm", "cold"))
    slowest = min(m["rows_per_s_warm"] for m in metrics.values())
    met = slowest >= GOALS["rows_per_s_warm"] and grown <= GOALS["rss_growth_mib"]
    ratios = {
        "encrypted/plain": round(
            metrics["encrypted"]["rows_per_s_warm"] / metrics["plain"]["rows_per_s_warm"], 3
        )
    }
    return conclude("read_rows", metrics, ratios, GOALS, met, pyarrow=pa.__version__)


if __name__ == "__main__":
    sys.exit(main())
