"""A journal on a disk of its own that really fills up, or becomes read-only, and recovers without a restart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BEGIN = """
import json, logging, os, subprocess, sys, time
from pathlib import Path
from router_ml.journal import Journal, JournalSettings, OutcomeReport, read_records
from router_ml.types import Candidate, Decision, Reason, Request

folder = Path(sys.argv[1])
logging.basicConfig(format="%(levelname)s %(message)s")
candidates = (Candidate("small", "small", 0.7, 10.0, 0.001, None),)
acknowledged, n_decided = [], 0

def mount(*options):
    subprocess.run(["mount", *options, str(folder)], check=True)

def decide(journal, count):
    global n_decided
    for _ in range(count):
        n_decided += 1
        reasons = (Reason.ONLY_ELIGIBLE,)
        id = f"d{n_decided}"
        decision = Decision(id, "small", "small", (), candidates, reasons, 1.0, None, "v1", "", "ab")
        journal.append_decision(Request(text="x" * 500), decision)

def report(journal, id):
    try:
        journal.append_outcomes([OutcomeReport(id, success=1.0)])
    except OSError:
        return False
    acknowledged.append(id)
    return True

def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.005)

def summary(journal, **more):
    records = list(read_records(folder))
    print(json.dumps({
        "acknowledged": acknowledged,
        "n_decided": n_decided,
        "reported": [r.outcome.decision_id for r in records if r.HasField("outcome")],
        "decided": [r.decision.decision_id for r in records if r.HasField("decision")],
        "told_lost": sum(r.loss.decisions for r in records if r.HasField("loss")),
        "dropped": journal.stats.decisions_dropped,
        "trouble": journal.stats.trouble,
        "files": sorted({path.suffix for path in folder.iterdir()}),
    } | more))
"""

FULL = """
mount("-t", "tmpfs", "-o", "size=512k", "journal")
filler = folder / "filler"
filler.write_bytes(bytes(350_000))
with Journal(folder, settings=JournalSettings(flush_seconds=0.01, segment_bytes=40_000)) as journal:
    n = 0
    while report(journal, f"o{n}"):
        n += 1
        decide(journal, 20)
    with (folder / "rest").open("wb", buffering=0) as rest:  # what a batch did not fit into, a single line might
        try:
            while rest.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert not report(journal, "refused")
    trouble = journal.stats.trouble
    dropped = journal.stats.decisions_dropped
    decide(journal, 30)  # never raises
    until(lambda: journal.stats.decisions_dropped >= dropped + 30)
    assert not report(journal, "refused")
    filler.unlink()
    (folder / "rest").unlink()
    until(lambda: journal.stats.trouble is None)  # though nothing more is decided
    assert report(journal, "after")
    decide(journal, 1)
summary(journal, trouble_before=trouble)
"""

READ_ONLY = """
mount("-t", "tmpfs", "-o", "size=512k", "journal")
# A segment of its own for each write, so that none is open when the mount changes.
with Journal(folder, settings=JournalSettings(flush_seconds=0.01, segment_bytes=1)) as journal:
    decide(journal, 1)
    assert report(journal, "before")
    until(lambda: not list(folder.glob("*.open")))
    mount("-o", "remount,ro")
    decide(journal, 10)
    assert not report(journal, "refused")
    trouble = journal.stats.trouble
    mount("-o", "remount,rw")
    until(lambda: journal.stats.trouble is None)
    assert report(journal, "after")
summary(journal, trouble_before=trouble)
"""

READ_ONLY_AT_START = """
mount("-t", "tmpfs", "-o", "size=512k,ro", "journal")
with Journal(folder, settings=JournalSettings(flush_seconds=0.01)) as journal:
    trouble = journal.stats.trouble
    decide(journal, 10)
    assert not report(journal, "refused")
    mount("-o", "remount,rw")
    until(lambda: journal.stats.trouble is None)
    assert report(journal, "after")
summary(journal, trouble_before=trouble)
"""


def run(folder: Path, scene: str) -> tuple[dict[str, Any], str]:
    """What a process that may mount says and logs; its mounts are its own and go with it."""
    isolate = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = [*isolate, "mount", "-t", "tmpfs", "probe", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs a Linux that lets a process mount a file system of its own (user namespaces)")
    done = subprocess.run(
        [*isolate, sys.executable, "-c", BEGIN + scene, str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("scene", "trouble"),
    [
        (FULL, "No space left on device"),
        (READ_ONLY, "Read-only file system"),
        (READ_ONLY_AT_START, "Read-only file system"),
    ],
    ids=["full", "read-only", "read-only at the start"],
)
def test_a_disk_that_refuses_costs_decisions_that_are_counted_and_no_acknowledged_outcome(
    tmp_path: Path, scene: str, trouble: str
) -> None:
    found, log = run(tmp_path, scene)
    assert found["trouble_before"] == trouble and found["trouble"] is None
    assert found["acknowledged"][-1] == "after" and "refused" not in found["acknowledged"]
    assert found["reported"] == found["acknowledged"]
    assert len(set(found["decided"])) == len(found["decided"])
    assert len(found["decided"]) + found["told_lost"] == found["n_decided"]
    assert found["told_lost"] == found["dropped"] >= 10
    assert found["files"] == [".jsonl"]
    # The alarm is raised when trouble begins and called off when it ends, not at every write.
    begun, ended = log.count(f"cannot be written ({trouble})"), log.count("is written again")
    assert 1 <= begun == ended <= 2
