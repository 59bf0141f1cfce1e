"""What training costs: `python tests/benchmarks/training_cost.py [--rows N] [--mmlu FILE]`.

Writes N simulated rows (default 1,000,000) over ten models, one row per request, to a temporary
folder, runs `router-ml train` on them in a process of its own, and prints its stages with seconds,
processor seconds, and the peak resident memory of the whole process tree. With `--mmlu` also on
`routellm_mmlu.parquet`, which has two models and needs a catalog since it logs no cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

DAYS = 20
MODELS_OF_MMLU = ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
STAGES = """
import sys, time
from pathlib import Path
from router_ml.catalog import Catalog
from training.pipeline import TrainSettings, train

begun = [time.perf_counter(), time.process_time()]

def say(line):
    wall, cpu = time.perf_counter(), time.process_time()
    print(f"{wall - begun[0]:.1f}\\t{cpu - begun[1]:.1f}\\t{line}", flush=True)
    begun[:] = wall, cpu

trained = train([Path(sys.argv[1])], Catalog.load(sys.argv[2]), TrainSettings(), Path(sys.argv[3]), say)
trained.write(Path(sys.argv[4]))
say("done")
"""


@dataclass
class Peak:
    """Largest sum of resident memory of a process and its descendants, MB."""

    mb: float = 0.0

    def watch(self, root: int, stop: threading.Event) -> None:
        while not stop.wait(0.2):
            self.mb = max(self.mb, sum(resident_mb(pid) for pid in tree(root)))


def tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def ten_models() -> dict:
    """The default catalog of simulated logs and two more models."""
    from training.synthetic.prices import default_catalog

    catalog = default_catalog()
    more = (("drawn-mid", 0.9, 3.6), ("drawn-small", 0.2, 0.8))
    models = [replace(catalog.models[0], name=name) for name, *_ in more]
    offers = [
        replace(catalog.offers[0], name=name, model=name, input_usd_per_mtok=one, output_usd_per_mtok=other)
        for name, one, other in more
    ]
    return replace(catalog, models=(*catalog.models, *models), offers=(*catalog.offers, *offers)).to_dict()


def train(name: str, logs: Path, catalog: dict, folder: Path) -> None:
    where = folder / "catalog.json"
    where.write_text(json.dumps(catalog))
    arguments = [str(logs), str(where), str(folder / "rejects.jsonl"), str(folder / f"bundle-{name}")]
    process = subprocess.Popen([sys.executable, "-c", STAGES, *arguments], stdout=subprocess.PIPE, text=True)
    peak, stop = Peak(), threading.Event()
    watcher = threading.Thread(target=peak.watch, args=(process.pid, stop))
    watcher.start()
    begun, total, cpu, stage = time.perf_counter(), 0.0, 0.0, "starting"
    print(name)
    for line in process.stdout or ():
        seconds, processor, following = line.rstrip().split("\t")
        print(f"  {float(seconds):8.1f} s  {float(processor):8.1f} s cpu  {stage}", flush=True)
        total, cpu, stage = time.perf_counter() - begun, cpu + float(processor), following
    status = process.wait()
    stop.set()
    watcher.join()
    print(f"  {total:8.1f} s  {cpu:8.1f} s cpu  in all; peak resident memory {peak.mb:,.0f} MB; exit status {status}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000, help="simulated rows; 0: none")
    parser.add_argument("--mmlu", type=Path, help="routellm_mmlu.parquet")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.mmlu:
            offers = [
                {"name": model, "model": model, "request_usd": usd}
                for model, usd in zip(MODELS_OF_MMLU, (1.0, 0.0), strict=True)
            ]
            catalog = {"models": [{"name": model} for model in MODELS_OF_MMLU], "offers": offers}
            train("routellm_mmlu", args.mmlu, catalog, folder)
        if args.rows:
            where, logs = folder / "ten.json", folder / "logs.parquet"
            where.write_text(json.dumps(ten_models()))
            simulate = ["simulate", "--out", str(logs), "--days", str(DAYS), "--catalog", str(where)]
            per_day = ["--requests-per-day", str(max(1, args.rows // DAYS))]
            subprocess.run(
                [sys.executable, "-m", "router_ml.cli", *simulate, *per_day, "--json"], stdout=-3, check=True
            )
            train(f"{args.rows:,} simulated rows, ten models", logs, ten_models(), folder)


if __name__ == "__main__":
    main()
