"""How right off-policy estimates are: `python tests/benchmarks/off_policy_study.py DATA_DIR [--out FILE]`.

DATA_DIR holds `routerbench_subset.parquet`, `zeroeval.parquet` and `routellm_mmlu.parquet`. Populations are made of
these and of a simulated world, logs are drawn from them by four logging policies, and estimates of three target
policies are held against the truth; see `training/benchmark/off_policy_study.py`. Prints the tables of
docs/learning.md; `--out` also writes every cell as JSON. About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from threadpoolctl import threadpool_limits

from training.benchmark.off_policy_populations import read_population
from training.benchmark.off_policy_study import Population, StudyReport, StudySettings, study_cells, study_lines
from training.synthetic.simulate import SimulateSettings, run_simulate

TABLES = ("routerbench_subset", "zeroeval", "routellm_mmlu")
SIMULATED = SimulateSettings(days=6, requests_per_day=1000, seed=2026, full_information=True)


def populations(data: Path, scratch: Path) -> list[Population]:
    run_simulate(scratch / "simulated.parquet", SIMULATED)
    paths = [*(data / f"{name}.parquet" for name in TABLES), scratch / "simulated.parquet"]
    return [read_population(path, ("question", "prompt"), scratch / "rejects.jsonl") for path in paths]


def one(population: Population, logging: str, settings: StudySettings) -> StudyReport:
    with threadpool_limits(1):
        return study_cells(population, logging, settings)


def run(found: list[Population], settings: StudySettings, jobs: int, say: Callable[[str], None]) -> StudyReport:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {
            pool.submit(one, each, logging, settings): f"{each.name}, {logging}"
            for each in found
            for logging in each.logging
        }
        for done in as_completed(running):
            done.result()
            say(f"{running[done]} is done")
        reports = [done.result() for done in running]
    return StudyReport(
        tuple(cell for report in reports for cell in report.cells),
        tuple(cell for report in reports for cell in report.verdicts),
        tuple(cell for report in reports for cell in report.bounds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--replications", type=int, default=400)
    parser.add_argument("--requests", type=int, default=3000, help="of one log")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    begun = time.perf_counter()

    def say(line: str) -> None:
        print(f"… {time.perf_counter() - begun:4.0f} s  {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(args.jobs):
        found = populations(args.data, Path(scratch))
    say("routers are trained")
    report = run(found, StudySettings(replications=args.replications, requests=args.requests), args.jobs, say)
    if args.out:
        args.out.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    print("\n".join(study_lines(report)))


if __name__ == "__main__":
    main()
