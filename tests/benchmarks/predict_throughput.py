"""Prompts a second of `router-ml predict` on one core: python tests/benchmarks/predict_throughput.py BUNDLE PROMPTS...

PROMPTS are files with a column `prompt`, e.g. of `router-ml simulate`. Prints the share of encoding and graph beside
the whole, medians of five rounds after one to warm up.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from router_ml.router import Router
from training.predict import predict


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})
    router = Router.load(sys.argv[1])
    files = [Path(name) for name in sys.argv[2:]]
    rates = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.parquet"
        for turn in range(6):
            start = time.perf_counter()
            report = predict(files, router, out, prompt_column="prompt", quality_target=None)
            if turn:
                rates.append(report.prompts / (time.perf_counter() - start))
    models = len(router.describe().models)
    print(f"{report.prompts:,} prompts x {models} models: {statistics.median(rates):,.0f} prompts a second on one core")


if __name__ == "__main__":
    main()
