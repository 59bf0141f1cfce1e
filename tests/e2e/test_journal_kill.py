"""A process that decides and reports is killed at random points; what its journal holds, and tells to be lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from router_ml.journal import Journal, read_records
from training.ingest import ingest_journal

DECIDER = """
import os, sys, threading, time
from router_ml.journal import Journal, JournalSettings, OutcomeReport
from router_ml.types import Candidate, Decision, Reason, Request

folder, life = sys.argv[1], sys.argv[2]
journal = Journal(folder, settings=JournalSettings(flush_seconds=0.02, segment_bytes=50_000))
candidates = (Candidate("small", "small", 0.7, 10.0, 0.001, None),)

def decide(id):
    decision = Decision(id, "small", "small", (), candidates, (Reason.ONLY_ELIGIBLE,), 1.0, None, "v1", "", "ab")
    journal.append_decision(Request(text="x" * 200), decision)

def report(worker):
    number = 0
    while True:
        number += 1
        ids = [f"{life}-{worker}-{number}-{i}" for i in range(1 + number % 3)]
        for id in ids:
            decide(id)
        journal.append_outcomes([OutcomeReport(id, success=1.0, error="y" * 50) for id in ids])
        # One write below the size at which a pipe tears it: an acknowledgement is whole or not there.
        os.write(1, "".join(f"acknowledged {id}\\n" for id in ids).encode())

def decide_alone():
    # Nobody waits for these, so the last of them are what a kill may lose.
    number = 0
    while True:
        number += 1
        os.write(1, f"handing {life}-alone-{number}\\n".encode())
        decide(f"{life}-alone-{number}")
        os.write(1, f"handed {life}-alone-{number}\\n".encode())
        time.sleep(0.001)  # else the queue is full before the disk has a chance

for worker in range(3):
    threading.Thread(target=report, args=(worker,)).start()
threading.Thread(target=decide_alone).start()
"""


@pytest.mark.parametrize("kills", [8, pytest.param(300, marks=pytest.mark.long)])
def test_after_sigkill_every_acknowledged_outcome_is_found_once_and_lost_decisions_are_counted(
    tmp_path: Path, kills: int
) -> None:
    rng = random.Random(20261120)
    journal = tmp_path / "journal"
    told: dict[str, list[str]] = defaultdict(list)
    left_open = 0
    for life in range(kills):
        for line in _told_until_killed(journal, life, rng.randrange(40), rng.uniform(0.0, 0.03)):
            word, id = line.split()
            told[word].append(id)
        left_open += len(list(journal.glob("*.open")))
    assert len(told["acknowledged"]) > 10 * kills and left_open > 0
    Journal(journal).close()  # the next start looks after the last of the dead
    assert {file.suffix for file in journal.iterdir()} == {".jsonl"}
    assert all(file.read_bytes().endswith(b"\n") for file in journal.iterdir())

    decided: Counter[str] = Counter()
    found: Counter[str] = Counter()
    lost = 0
    for record in read_records(journal):
        if record.HasField("decision"):
            decided[record.decision.decision_id] += 1
        elif record.HasField("outcome"):
            found[record.outcome.decision_id] += 1
        else:
            assert record.loss.HasField("decisions")
            lost += record.loss.decisions
    assert [id for id in told["acknowledged"] if id not in found] == []
    assert [id for id, count in (found + decided).items() if count > 2] == []
    assert max(found.values()) == max(decided.values()) == 1
    # A decision is queued before its outcome, so the write that acknowledges the one holds the other.
    assert [id for id in told["acknowledged"] if decided[id] != 1] == []

    # Only the last decisions of a life are lost, and the journal tells how many.
    alone = _numbers_by_life(id for id in decided if "-alone-" in id)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in alone.values())
    n_alone = sum(map(len, alone.values()))
    others_unknown = _unknown_fate(told, decided)
    assert len(told["handed"]) <= n_alone + lost
    assert n_alone + lost <= len(told["handing"]) + others_unknown
    assert lost > 0

    report = ingest_journal(journal, tmp_path / "out")
    assert (report.n_lost, report.n_unknown_losses, report.n_repeated, report.n_torn) == (lost, 0, 0, 0)
    assert (report.n_decisions, report.n_rows) == (len(decided), len(decided))


def _numbers_by_life(ids: object) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for id in ids:  # type: ignore[attr-defined]
        life, _, number = id.split("-")
        found[life].append(int(number))
    return {life: sorted(numbers) for life, numbers in found.items()}


def _unknown_fate(told: dict[str, list[str]], decided: Counter[str]) -> int:
    """At most so many decisions of the reporting threads were in hand at the kills: three a thread and life."""
    return 9 * len({id.split("-")[0] for id in told["handing"]} | {id.split("-")[0] for id in decided})


def _told_until_killed(folder: Path, life: int, acknowledged: int, seconds: float) -> list[str]:
    """What the process said before SIGKILL, so many seconds after it acknowledged so many outcomes."""
    process = subprocess.Popen(
        [sys.executable, "-c", DECIDER, str(folder), str(life)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline()]
        assert lines[0], process.stderr.read()
        while acknowledged > 0:
            lines.append(process.stdout.readline())
            acknowledged -= lines[-1].startswith("acknowledged")
        time.sleep(seconds)
        process.kill()
        lines += process.stdout.readlines()
    return [line.strip() for line in lines]
