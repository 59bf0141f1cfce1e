"""Minutes under load with a new version every few seconds; run with `-m long`, `-s` shows the figures.

ROUTER_ML_SOAK_MINUTES sets the length, 5 by default.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from router_ml.client import RouterClient
from router_ml.errors import RouterMlError
from router_ml.journal import OutcomeReport
from router_ml.versions import publish

_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("test_workers.py"))
assert _SPEC and _SPEC.loader
workers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workers)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc"),
]

_MINUTES = float(os.environ.get("ROUTER_ML_SOAK_MINUTES", "5"))
_RELOAD_S = 4.0
_CLIENTS, _PAUSE_S = 4, 0.005
_WARM_S = 30.0
"""Until caches and allocators have seen everything; memory is compared from then on."""


def resident_mb(pids: list[int]) -> float:
    return (
        sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE") / 1e6
    )


def test_reloads_under_load_fail_no_request_leak_no_memory_and_cost_no_latency(
    make_version: Callable[..., Path], tmp_path: Path
) -> None:
    bundles, made = tmp_path / "bundles", [make_version(f"v{k}") for k in range(6)]
    publish(bundles, made[0])
    calls: list[tuple[float, float]] = []
    failures: list[RouterMlError] = []
    versions: set[str] = set()
    done = threading.Event()

    def load(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with RouterClient(address, timeout_s=5.0) as client:
            while not done.wait(_PAUSE_S):
                text = " ".join(f"w{n}" for n in rng.integers(0, 5000, int(rng.integers(3, 200))))
                begun = time.monotonic()
                try:
                    decision = client.route(text, segment="chat")
                    calls.append((begun, time.monotonic() - begun))
                    versions.add(decision.version)
                    if seed == 0:
                        client.report([OutcomeReport(decision.decision_id, success=1.0)])
                except RouterMlError as error:
                    failures.append(error)

    options = ("--bundles", str(bundles), "--workers", "2", "--journal", str(tmp_path / "journal"))
    with workers.serving(*options) as (process, address):
        threads = [threading.Thread(target=load, args=(seed,)) for seed in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        begun, n_reloads, memory = time.monotonic(), 0, []
        while (gone := time.monotonic() - begun) < 60 * _MINUTES:
            time.sleep(_RELOAD_S)
            n_reloads += 1
            publish(bundles, made[n_reloads % len(made)])
            if gone > _WARM_S:
                memory.append(resident_mb(workers.workers_of(process)))
        done.set()
        for thread in threads:
            thread.join()
    minute = min(60.0, 20 * _MINUTES)
    first = [latency for at, latency in calls if at < begun + minute]
    last = [latency for at, latency in calls if at > begun + 60 * _MINUTES - minute]
    p99 = [1e3 * float(np.quantile(part, 0.99)) for part in (first, last)]
    fifth = max(1, len(memory) // 5)
    growth = np.median(memory[-fifth:]) / np.median(memory[:fifth]) - 1
    print(
        f"{len(calls):,} requests, {len(failures)} failed, {n_reloads} reloads in {_MINUTES:g} minutes; p99 "
        f"{p99[0]:.1f} ms in the first minute, {p99[1]:.1f} in the last; memory of two workers {memory[0]:.0f} MB, "
        f"growth {growth:+.1%}"
    )
    assert failures == []
    assert len(versions) == len(made)
    assert growth < 0.05
    assert p99[1] < 1.5 * p99[0] + 1.0
