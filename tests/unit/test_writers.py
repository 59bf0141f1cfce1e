from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router_ml.journal import Journal, JournalSettings, OutcomeReport, read_records
from router_ml.types import Candidate, Decision, Reason, Request
from router_ml.writers import Died, Writer, recover

KILLED = """
import os, signal, sys
from router_ml.journal import Journal, JournalSettings, OutcomeReport
from router_ml.types import Candidate, Decision, Reason, Request

journal = Journal(sys.argv[1], settings=JournalSettings(flush_seconds=3600.0))
candidates = (Candidate("small", "small", 0.7, 10.0, 0.001, None),)

def decide(number):
    reasons = (Reason.ONLY_ELIGIBLE,)
    decision = Decision(f"d{number}", "small", "small", (), candidates, reasons, 1.0, None, "v1", "", "ab")
    journal.append_decision(Request(text="hello"), decision)

written, lost = int(sys.argv[2]), int(sys.argv[3])
for number in range(written):
    decide(number)
if written:
    journal.append_outcomes([OutcomeReport("d0", success=1.0)])
for number in range(lost):
    decide(written + number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(folder: Path, *, written: int, lost: int) -> str:
    """Name of a writer that died with so many decisions on disk and so many in memory."""
    command = [sys.executable, "-c", KILLED, str(folder), str(written), str(lost)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == -9, done.stderr
    (path,) = folder.glob("*.writer")
    return path.stem


def losses(folder: Path) -> list[tuple[str, int | None]]:
    records = [record.loss for record in read_records(folder) if record.HasField("loss")]
    return [(loss.writer, loss.decisions if loss.HasField("decisions") else None) for loss in records]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.005)


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


def test_the_next_start_closes_what_a_dead_process_left_open_and_tells_its_loss(tmp_path: Path) -> None:
    dead = killed(tmp_path, written=3, lost=5)
    assert suffixes(tmp_path) == {".open", ".writer"}
    with Journal(tmp_path) as journal:
        assert journal.stats.processes_died == 1
        assert losses(tmp_path) == [(dead, 5)]
    assert suffixes(tmp_path) == {".jsonl"}
    found = [record.decision for record in read_records(tmp_path) if record.HasField("decision")]
    assert [(decision.decision_id, decision.number) for decision in found] == [("d0", 1), ("d1", 2), ("d2", 3)]
    assert not list(Path("/dev/shm").glob(f"router-ml-{dead}*"))


def test_a_process_that_lost_nothing_tells_nothing(tmp_path: Path) -> None:
    dead = killed(tmp_path, written=3, lost=0)
    assert recover(tmp_path) == [Died(dead, 0)]
    assert losses(tmp_path) == [] and suffixes(tmp_path) == {".jsonl"}


def test_a_process_that_died_before_its_first_segment_tells_its_loss(tmp_path: Path) -> None:
    dead = killed(tmp_path, written=0, lost=2)
    assert recover(tmp_path) == [Died(dead, 2)]
    assert losses(tmp_path) == [(dead, 2)]


def test_where_the_count_died_with_the_machine_the_loss_is_unknown_not_zero(tmp_path: Path) -> None:
    dead = killed(tmp_path, written=3, lost=5)
    Path(f"/dev/shm/router-ml-{dead}").unlink()
    assert recover(tmp_path) == [Died(dead, None)]
    assert losses(tmp_path) == [(dead, None)]


def test_a_recovery_that_was_itself_cut_short_is_done_again_without_counting_twice(tmp_path: Path) -> None:
    dead = killed(tmp_path, written=3, lost=5)
    (left_open,) = tmp_path.glob("*.open")
    keep = {path: path.read_bytes() for path in (tmp_path / f"{dead}.writer", Path(f"/dev/shm/router-ml-{dead}"))}
    recover(tmp_path)
    for path, content in keep.items():  # as if the power had gone before they were removed
        path.write_bytes(content)
    left_open.with_suffix("").rename(left_open)
    recover(tmp_path)
    records = [record.loss for record in read_records(tmp_path) if record.HasField("loss")]
    assert {(loss.writer, loss.last_number) for loss in records} == {(dead, 8)}
    assert suffixes(tmp_path) == {".jsonl"}


def test_a_torn_last_line_is_cut_off_before_the_segment_is_closed(tmp_path: Path) -> None:
    killed(tmp_path, written=3, lost=0)
    (left_open,) = tmp_path.glob("*.open")
    whole = left_open.read_bytes()
    left_open.write_bytes(whole + b'{"decision":{"decision_id":"' + b"x" * 200_000)
    recover(tmp_path)
    assert left_open.with_suffix("").read_bytes() == whole


def test_a_live_process_is_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path) as first:
        first.append_outcomes([OutcomeReport("d1")])
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert recover(tmp_path) == []
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        with Journal(tmp_path) as second:
            second.append_outcomes([OutcomeReport("d2")])
        first.append_outcomes([OutcomeReport("d3")])
    assert sorted(record.outcome.decision_id for record in read_records(tmp_path)) == ["d1", "d2", "d3"]


def test_a_process_that_is_just_starting_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = fcntl.flock, []

    def flock_after_another_process_looked(handle: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            found.append(recover(tmp_path))
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock_after_another_process_looked)
    writer = Writer(tmp_path)
    assert found == [[]] and losses(tmp_path) == []
    writer.leave()
    assert suffixes(tmp_path) == set()


def test_an_open_segment_that_nobody_claims_is_left_alone_and_read(tmp_path: Path) -> None:
    path = tmp_path / "20261121T000000.000000Z-7-000001.jsonl.open"
    path.write_bytes(b'{"outcome":{"decision_id":"d"}}\n')
    with Journal(tmp_path):
        assert path.exists()
    assert [record.outcome.decision_id for record in read_records(tmp_path)] == ["d"]


def test_a_process_that_could_not_tell_its_losses_leaves_them_to_the_next(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.hand(7)
    writer.settle(4)
    writer.abandon()
    assert recover(tmp_path) == [Died(writer.id, 3)]


def test_a_process_whose_folder_was_emptied_is_claimed_again(tmp_path: Path) -> None:
    settings = JournalSettings(flush_seconds=3600.0, segment_bytes=1)
    with Journal(tmp_path, settings=settings) as journal:
        journal.append_outcomes([OutcomeReport("d1")])
        until(lambda: not list(tmp_path.glob("*.open")))  # the writer closes the full segment after it has answered
        for path in tmp_path.iterdir():
            path.unlink()
        journal.append_outcomes([OutcomeReport("d2")])
        assert len(list(tmp_path.glob("*.writer"))) == 1
        assert recover(tmp_path) == []


def test_decisions_that_found_the_queue_full_are_told_in_the_journal(tmp_path: Path) -> None:
    candidates = (Candidate("small", "small", 0.7, 10.0, 0.001, None),)
    decision = Decision("d", "small", "small", (), candidates, (Reason.ONLY_ELIGIBLE,), 1.0, None, "v1", "", "ab")
    settings = JournalSettings(flush_seconds=3600.0, queue_bytes=10_000)
    with Journal(tmp_path, settings=settings) as journal:
        for _ in range(5):
            journal.append_decision(Request(text="hello"), decision)
        (writer,) = tmp_path.glob("*.writer")
        assert journal.stats.decisions_dropped == 3
    (loss,) = [record.loss for record in read_records(tmp_path) if record.HasField("loss")]
    assert (loss.writer, loss.last_number, loss.decisions, loss.reason) == (writer.stem, 5, 3, "queue full")
