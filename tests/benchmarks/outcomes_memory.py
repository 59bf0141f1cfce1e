"""Time and memory of reading a large log: `python tests/benchmarks/outcomes_memory.py [ROWS] [jsonl|csv|parquet]`.

Writes a log of 1 KB prompts to a temporary folder, reads it back batch by batch and
prints rows a second and how much the peak resident memory grew.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from training.outcomes import read_outcomes

MODELS = ("small", "medium", "large", "huge")
BLOCK = 50_000


def blocks(n_rows: int) -> Iterator[list[dict[str, Any]]]:
    draw = np.random.default_rng(7)
    for start in range(0, n_rows, BLOCK):
        yield [
            {
                "request_id": f"request-{i}",
                "timestamp": "2026-11-01T00:00:00Z",
                "prompt": f"{i // 3} {'lorem ipsum ' * 85}",
                "segment": "support",
                "model": MODELS[i % 4],
                "success": float(success),
                "propensity": 0.25,
                "input_tokens": 250,
                "output_tokens": 80,
                "cost_usd": 0.0002,
                "latency_ms": 812.5,
            }
            for i, success in enumerate(draw.integers(0, 2, min(BLOCK, n_rows - start)), start)
        ]


def write(path: Path, n_rows: int) -> None:
    if path.suffix == ".jsonl":
        with path.open("w") as stream:
            for block in blocks(n_rows):
                stream.writelines(json.dumps(row) + "\n" for row in block)
        return
    schema = pa.Table.from_pylist(next(blocks(1))).schema
    kind = pq.ParquetWriter if path.suffix == ".parquet" else pa_csv.CSVWriter
    with kind(path, schema) as writer:
        for block in blocks(n_rows):
            writer.write_table(pa.Table.from_pylist(block, schema))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(n_rows: int, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log.{suffix}"
        # Elsewhere, or the writer's memory would hide the reader's.
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(path, n_rows))
        writer.start()
        writer.join()
        size = path.stat().st_size / 1e6
        before, start = peak_mb(), time.perf_counter()
        reader = read_outcomes([path], rejects=Path(folder) / "log.rejects.jsonl")
        kept = sum(batch.num_rows for batch in reader.batches())
        seconds = time.perf_counter() - start
        print(f"{suffix}: {kept:,} rows, {size:,.0f} MB, {seconds:.1f} s, {kept / seconds:,.0f} rows/s")
        print(f"peak resident memory: {before:,.0f} MB before, {peak_mb() - before:,.0f} MB more after")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500_000, sys.argv[2] if len(sys.argv) > 2 else "jsonl")
