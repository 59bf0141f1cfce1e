"""A process that reports outcomes is killed at random points; what it acknowledged must be in its journal."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from router_ml.journal import read_records

KILLS = 15

REPORTER = """
import os, sys, threading
from router_ml.journal import Journal, JournalSettings, OutcomeReport
from router_ml.types import Candidate, Decision, Reason, Request

folder, life = sys.argv[1], sys.argv[2]
journal = Journal(folder, settings=JournalSettings(flush_seconds=0.01, segment_bytes=20_000))
candidates = (Candidate("small", "small", 0.7, 10.0, 0.001, None),)

def report(worker):
    number = 0
    while True:
        number += 1
        ids = [f"{life}-{worker}-{number}-{i}" for i in range(1 + number % 3)]
        for id in ids:
            reasons = (Reason.ONLY_ELIGIBLE,)
            decision = Decision(id, "small", "small", (), candidates, reasons, 1.0, None, "v1", "", "ab")
            journal.append_decision(Request(text="x" * 200), decision)
        journal.append_outcomes([OutcomeReport(id, success=1.0, error="y" * 50) for id in ids])
        # One write below the size at which a pipe tears it: an acknowledgement is whole or not there.
        os.write(1, "".join(f"{id}\\n" for id in ids).encode())

for worker in range(3):
    threading.Thread(target=report, args=(worker,)).start()
"""


def test_every_acknowledged_outcome_survives_sigkill_and_none_is_found_twice(tmp_path: Path) -> None:
    rng = random.Random(20261120)
    acknowledged: list[str] = []
    torn_or_open = 0
    for life in range(KILLS):
        acknowledged += _reported_until_killed(tmp_path, life, rng.uniform(0.0, 0.4))
        torn_or_open += len(list(tmp_path.glob("*.open")))
    assert len(acknowledged) > 100 and torn_or_open > 0
    decided: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for record in read_records(tmp_path):
        if record.HasField("decision"):
            decided[record.decision.decision_id] += 1
        else:
            found[record.outcome.decision_id] += 1
    assert [id for id in acknowledged if id not in found] == []
    assert [id for id, count in found.items() if count > 1] == []
    # A decision is queued before its outcome, so the write that acknowledges the one holds the other.
    assert [id for id in acknowledged if decided[id] != 1] == []


def _reported_until_killed(folder: Path, life: int, seconds: float) -> list[str]:
    """Ids that were acknowledged before SIGKILL, so many seconds after the first of them."""
    process = subprocess.Popen(
        [sys.executable, "-c", REPORTER, str(folder), str(life)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        assert first, process.stderr.read()
        end = time.monotonic() + seconds
        lines = [first]
        while time.monotonic() < end:
            lines.append(process.stdout.readline())
        process.kill()
        lines += process.stdout.readlines()
    return [line.strip() for line in lines]
