from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.errors import InputError
from router_ml.journal import Journal, JournalSettings, OutcomeReport, read_records
from router_ml.types import Candidate, Decision, Message, Reason, Request

REQUEST = Request(text="what is 2 + 2?", segment="math")
NEVER = JournalSettings(flush_seconds=3600.0)
"""Nothing reaches the disk unless an outcome or the end asks for it."""


def decision(number: int = 0) -> Decision:
    candidates = (
        Candidate("small", "small", 0.7, 10.0, 0.001, None),
        Candidate("large", "large", 0.9, 12.0, 0.1, 900.0),
    )
    return Decision(
        f"d{number}", "small", "small", ("large",), candidates, (Reason.BEST_VALUE,), 1.0, 0.99, "v1", "", "ab"
    )


def decided(folder: Path) -> list[str]:
    return [record.decision.decision_id for record in read_records(folder) if record.HasField("decision")]


def reported(folder: Path) -> list[str]:
    return [record.outcome.decision_id for record in read_records(folder) if record.HasField("outcome")]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.005)


def test_decisions_and_outcomes_are_found_again_after_close(tmp_path: Path) -> None:
    before = time.time_ns() // 1000
    with Journal(tmp_path) as journal:
        journal.append_decision(REQUEST, decision(1))
        journal.append_outcomes([OutcomeReport("d1", success=1.0), OutcomeReport("d0", cost_usd=0.0)])
        journal.append_outcomes([])
    assert decided(tmp_path) == ["d1"] and reported(tmp_path) == ["d1", "d0"]
    records = [record.decision if record.HasField("decision") else record.outcome for record in read_records(tmp_path)]
    assert all(before <= record.time_unix_micros <= time.time_ns() // 1000 for record in records)
    assert [file.name.endswith(".jsonl") for file in tmp_path.iterdir()] == [True]
    assert (journal.stats.decisions_written, journal.stats.outcomes_written) == (1, 2)
    assert (journal.stats.decisions_dropped, journal.stats.queued_bytes, journal.stats.trouble) == (0, 0, None)


def test_decisions_reach_the_disk_within_the_flush_interval(tmp_path: Path) -> None:
    with Journal(tmp_path, settings=JournalSettings(flush_seconds=0.01)) as journal:
        journal.append_decision(REQUEST, decision(1))
        until(lambda: decided(tmp_path) == ["d1"])


def test_an_outcome_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    with Journal(tmp_path, settings=NEVER) as journal:
        journal.append_decision(REQUEST, decision(1))
        journal.append_outcomes([OutcomeReport("d1")])
        assert decided(tmp_path) == ["d1"] and reported(tmp_path) == ["d1"]


def test_outcomes_of_many_threads_are_each_written_once(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, ThreadPoolExecutor(8) as threads:
        ids = [f"d{i}" for i in range(200)]
        list(threads.map(lambda i: journal.append_outcomes([OutcomeReport(i)]), ids))
        assert sorted(reported(tmp_path)) == sorted(ids)


def test_no_segment_is_made_before_the_first_record_and_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "journal"
    with Journal(folder, settings=JournalSettings(flush_seconds=0.001)):
        time.sleep(0.02)
        assert [file.suffix for file in folder.iterdir()] == [".writer"]
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be a journal folder \(File exists\)"):
        Journal(tmp_path / "file")


def test_beyond_its_bound_the_queue_drops_decisions_and_counts_them(tmp_path: Path) -> None:
    room = JournalSettings(flush_seconds=3600.0, queue_bytes=20_000)
    long_prompt = Request(text="x" * 10_000)
    with Journal(tmp_path, settings=room) as journal:
        for number in range(3):
            journal.append_decision(long_prompt, decision(number))
        assert journal.stats.decisions_dropped == 2
        assert journal.stats.queued_bytes <= 20_000
        journal.append_outcomes([OutcomeReport("d0")])
        until(lambda: journal.stats.queued_bytes == 0)
        journal.append_decision(long_prompt, decision(3))
    assert decided(tmp_path) == ["d0", "d3"]
    assert (journal.stats.decisions_written, journal.stats.decisions_dropped) == (2, 2)


@pytest.mark.parametrize(
    "request_",
    [
        Request(messages=(Message("user", "x" * 30_000),)),
        Request(embedding=np.zeros(10_000, dtype=np.float32)),
    ],
    ids=["messages", "embedding"],
)
def test_every_kind_of_prompt_counts_towards_the_bound(tmp_path: Path, request_: Request) -> None:
    with Journal(tmp_path, settings=JournalSettings(queue_bytes=20_000)) as journal:
        journal.append_decision(request_, decision())
    assert journal.stats.decisions_dropped == 1


def test_a_decision_that_cannot_be_written_is_counted_and_the_next_one_is_written(tmp_path: Path) -> None:
    unwritable = Decision("d1", object(), "m", (), (), (), 1.0, None, "v1", "", "ab")  # type: ignore[arg-type]
    with Journal(tmp_path) as journal:
        journal.append_decision(REQUEST, unwritable)
        journal.append_decision(REQUEST, decision(2))
    assert decided(tmp_path) == ["d2"]
    assert (journal.stats.decisions_written, journal.stats.decisions_dropped) == (1, 1)


def test_hostile_text_is_written_and_read(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_decision(
            Request(text="null \0, lone \ud800, line\nend\u2028, مرحبا, 🎉", session_id="\udfff"), decision()
        )
    (record,) = read_records(tmp_path)
    assert record.decision.request.text == "null \0, lone \ufffd, line\nend\u2028, مرحبا, 🎉"
    assert record.decision.request.session_id == "\ufffd"


def test_a_segment_is_rotated_by_size(tmp_path: Path) -> None:
    with Journal(tmp_path, settings=JournalSettings(segment_bytes=1)) as journal:
        for number in range(3):
            journal.append_outcomes([OutcomeReport(f"d{number}")])
    assert len(list(tmp_path.glob("*.jsonl"))) == 3
    assert reported(tmp_path) == ["d0", "d1", "d2"]


def test_a_segment_is_rotated_by_age_though_nothing_more_is_written(tmp_path: Path) -> None:
    with Journal(tmp_path, settings=JournalSettings(flush_seconds=0.005, segment_seconds=0.02)) as journal:
        journal.append_outcomes([OutcomeReport("d0")])
        until(lambda: len(list(tmp_path.glob("*.jsonl"))) == 1)


def test_without_its_folder_decisions_go_on_outcomes_are_refused_and_writing_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Journal(folder, settings=NEVER) as journal:
        shutil.rmtree(folder)
        journal.append_decision(REQUEST, decision(0))
        with pytest.raises(OSError, match="the journal cannot be written: No such file"):
            journal.append_outcomes([OutcomeReport("d0"), OutcomeReport("d0")])
        stats = journal.stats
        assert (stats.decisions_dropped, stats.outcomes_refused, stats.trouble) == (1, 2, "No such file or directory")
        folder.mkdir()
        journal.append_decision(REQUEST, decision(1))
        journal.append_outcomes([OutcomeReport("d1")])
        assert journal.stats.trouble is None
    assert decided(folder) == ["d1"] and reported(folder) == ["d1"]


FULL_DISK = """
import errno, resource, sys
from router_ml.journal import Journal, OutcomeReport
# The kernel refuses to let a file grow beyond this, in the midst of a write, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
journal = Journal(sys.argv[1])
for number in range(60):
    size = 1 if number % 2 else 8
    try:
        journal.append_outcomes([OutcomeReport(f"d{number}-{i}", error="x" * 70) for i in range(size)])
        print(*(f"d{number}-{i}" for i in range(size)), sep="\\n")
    except OSError as error:
        assert error.errno == errno.EFBIG, error
journal.close()
print(journal.stats.outcomes_refused, file=sys.stderr)
"""


def test_a_write_that_breaks_off_leaves_neither_torn_nor_unacknowledged_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    acknowledged = done.stdout.split()
    assert 0 < len(acknowledged) and int(done.stderr.split()[-1]) == 30 * 8 + 30 - len(acknowledged) > 0
    assert reported(tmp_path) == acknowledged
    assert all(file.read_bytes().endswith(b"\n") for file in tmp_path.iterdir())


def test_after_close_decisions_are_counted_and_outcomes_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.close()
    journal.close()
    journal.append_decision(REQUEST, decision())
    with pytest.raises(OSError, match="the journal is closed"):
        journal.append_outcomes([OutcomeReport("d")])
    assert (journal.stats.decisions_dropped, journal.stats.outcomes_refused) == (1, 1)


def test_close_loses_nothing_of_what_other_threads_handed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path, settings=NEVER)
    start = threading.Barrier(5)

    def hand_over(worker: int) -> None:
        start.wait()
        for number in range(300):
            journal.append_decision(REQUEST, decision(worker * 1000 + number))

    with ThreadPoolExecutor(4) as threads:
        for worker in range(4):
            threads.submit(hand_over, worker)
        start.wait()
        journal.close()
    stats = journal.stats
    assert stats.decisions_written + stats.decisions_dropped == 1200
    assert len(decided(tmp_path)) == stats.decisions_written


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "10"])
@pytest.mark.parametrize("field", ["flush_seconds", "segment_bytes", "segment_seconds", "queue_bytes"])
def test_settings_that_make_no_sense_are_refused_by_name(field: str, bad: Any) -> None:
    with pytest.raises(InputError, match=f"`{field}` of the journal must be a number above 0"):
        JournalSettings(**{field: bad})


def test_old_segments_are_removed_while_the_journal_runs_and_kept_unless_asked(tmp_path: Path) -> None:
    for folder in (tmp_path / "kept", tmp_path / "removed"):
        with Journal(folder) as journal:
            journal.append_outcomes([OutcomeReport("d0")])
    with Journal(tmp_path / "kept", settings=JournalSettings(flush_seconds=0.005)) as journal:
        journal.append_outcomes([OutcomeReport("d1")])
    assert reported(tmp_path / "kept") == ["d0", "d1"]
    settings = JournalSettings(flush_seconds=0.005, segment_seconds=0.05, keep_seconds=3600.0)
    with Journal(tmp_path / "removed", settings=settings) as journal:
        for path in (tmp_path / "removed").glob("*.jsonl"):
            os.utime(path, (0, 0))
        until(lambda: not list((tmp_path / "removed").glob("*.jsonl")))
        journal.append_outcomes([OutcomeReport("d1")])
        assert reported(tmp_path / "removed") == ["d1"]


def test_a_decision_that_waits_is_told_as_lag(tmp_path: Path) -> None:
    with Journal(tmp_path, settings=NEVER) as journal:
        assert journal.stats.lag_seconds == 0
        journal.append_decision(REQUEST, decision())
        until(lambda: journal.stats.lag_seconds > 0)
        journal.append_outcomes([OutcomeReport("d0")])
        until(lambda: journal.stats.lag_seconds == 0)


def test_lines_are_json_whole_and_one_each_so_that_any_shipper_can_follow_them(tmp_path: Path) -> None:
    hostile = Request(text="one\ntwo\r\nthree\u2028four\x85five", segment="a\nb")
    with Journal(tmp_path) as journal:
        journal.append_decision(hostile, decision(1))
        journal.append_outcomes([OutcomeReport("d1", error="x\ny")])
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    assert raw.count(b"\n") == 2 and b"\r" not in raw
    first, second = (json.loads(line) for line in raw.split(b"\n")[:2])
    assert first["decision"]["request"]["text"] == hostile.text and second["outcome"]["error"] == "x\ny"


@pytest.mark.parametrize("field", ["keep_seconds", "keep_bytes"])
def test_retention_that_makes_no_sense_is_refused_by_name(field: str) -> None:
    with pytest.raises(InputError, match=f"`{field}` of the journal must be a number above 0"):
        JournalSettings(**{field: 0})
    assert getattr(JournalSettings(**{field: None}), field) is None
