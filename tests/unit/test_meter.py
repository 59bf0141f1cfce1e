"""Counts in shared memory: several threads, several processes, processes that are killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading

from router_ml import meter as meters
from router_ml.journal import JournalStats
from router_ml.meter import BUCKETS, OTHER, REFUSED_GONE, Memory, Meter, forget_worker, new_memory, read
from router_ml.types import Decision, Reason

USUAL = (Reason.BEST_VALUE, Reason.ONLY_ELIGIBLE)


def decision(
    model: str = "small", version: str = "7", propensity: float = 1.0, reasons: tuple[Reason, ...] = USUAL
) -> Decision:
    return Decision("id", f"{model}@eu", model, (), (), reasons, propensity, 0.95, version, "", "ab" * 32)


def stats(**values: float | str | None) -> JournalStats:
    nothing = {field.name: 0 for field in dataclasses.fields(JournalStats)}
    return JournalStats(**(nothing | {"trouble": None} | values))  # type: ignore[arg-type]


def test_decisions_are_told_apart_by_version_arm_model_and_reason() -> None:
    memory = new_memory()
    meter = Meter(memory)
    for model, version, propensity in (("a", "7", 1.0), ("a", "7", 0.5), ("b", "7", 1.0), ("a", "8", 1.0)):
        meter.count("Route", decisions=[decision(model, version, propensity)])
    meter.count("Route", decisions=[decision("b", "8", 0.1, (Reason.EXPLORED,))])
    reading = read([memory])
    assert reading.decisions == {
        ("7", "", "a", "best_value+only_eligible"): 2,
        ("7", "", "b", "best_value+only_eligible"): 1,
        ("8", "", "a", "best_value+only_eligible"): 1,
        ("8", "", "b", "explored"): 1,
    }
    assert reading.counts["explored"] == 1  # the policy's own choice is none, however likely chance was to change it


def test_a_time_falls_into_the_bucket_that_ends_with_it_or_beyond_all() -> None:
    memory = new_memory()
    meter = Meter(memory)
    for seconds in (BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1], 1.0):
        meter.count("Route", seconds=seconds)
    buckets = read([memory]).buckets["Route"]
    assert [k for k, count in enumerate(buckets) for _ in range(int(count))] == [0, 1, len(BUCKETS) - 1, len(BUCKETS)]


def test_no_count_is_lost_between_threads() -> None:
    memory = new_memory()
    meter = Meter(memory)

    def count() -> None:
        for _ in range(2000):
            meter.count("Route", "OK", 1e-4, [decision()])

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reading = read([memory])
    found = [sum(reading.decisions.values()), sum(reading.buckets["Route"]), reading.rpcs["Route", "OK"]]
    assert found == [16000, 16000, 16000]


def test_labels_beyond_the_limit_count_as_other_and_the_sum_stays_right() -> None:
    memory = new_memory()
    meter = Meter(memory)
    n = meters._SERIES + 500
    for k in range(n):
        meter.count("Route", decisions=[decision(version=str(k))])
    again = Meter(memory)
    again.count("Route", decisions=[decision(version="0")])
    again.count("Route", decisions=[decision(version=str(n - 1))])
    decisions = read([memory]).decisions
    assert len(decisions) == meters._SERIES
    assert decisions[OTHER] == n - (meters._SERIES - 1) + 1
    assert sum(decisions.values()) == n + 2


def test_a_name_of_any_length_and_script_can_be_counted() -> None:
    memory = new_memory()
    names = ["ü" * 500, "a\x1fb", "a\0b", "", "\ud800"]
    meter = Meter(memory)
    for name in names:
        meter.count("Route", decisions=[decision(model=name)])
    models = {labels[2] for labels in read([memory]).decisions}
    assert models == {"ü" * 31, "a?b", "", "?"}


def count_and_die(memory: Memory) -> None:
    meter = Meter(memory)
    for _ in range(1000):
        meter.taken()
        meter.count("Route", "OK", 1e-3, [decision()])
    meter.taken()
    meter.journal(
        stats(decisions_written=900, decisions_dropped=50, queued_bytes=4096, lag_seconds=3.0, trouble="full")
    )
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_leaves_its_counts_takes_its_gauges_and_its_heir_goes_on() -> None:
    memories = [new_memory(), new_memory()]
    Meter(memories[1]).count("Route", decisions=[decision()])
    for lives in (1, 2):
        process = multiprocessing.get_context("spawn").Process(target=count_and_die, args=(memories[0],))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reading = read(memories)
        assert (reading.counts["alive"], reading.counts["taken"] - reading.counts["ended"]) == (2, 1)
        assert (reading.counts["journal_trouble"], reading.counts["journal_queued_bytes"]) == (1, 4096)
        assert reading.oldest_unix is not None
        forget_worker(memories[0])
        reading = read(memories)
        assert list(reading.decisions.values()) == [1000 * lives + 1]
        assert reading.rpcs["Route", "OK"] == sum(reading.buckets["Route"]) == 1000 * lives
        assert (reading.counts["journal_written"], reading.counts["journal_lost"]) == (900 * lives, 50 * lives)
        for gauge in ("taken", "ended", "journal", "journal_trouble", "journal_queued_bytes"):
            assert reading.counts[gauge] == 0
        assert reading.counts["alive"] == 1
        assert reading.oldest_unix is None


def test_a_name_half_written_by_a_killed_worker_is_overwritten() -> None:
    memory = new_memory()
    meter = Meter(memory)
    meter._write_name(0, ("7", "", "a-long-name-of-a-model", "best_value"))
    meter._cells[meters._N_SERIES] = 0
    Meter(memory).count("Route", decisions=[decision(model="b")])
    assert list(read([memory]).decisions) == [("7", "", "b", "best_value+only_eligible")]


def test_a_caller_that_is_gone_is_in_flight_no_more() -> None:
    memory = new_memory()
    meter = Meter(memory)
    meter.taken()
    meter.refused("Route", REFUSED_GONE, "CANCELLED")
    counts = read([memory]).counts
    assert counts["taken"] == counts["ended"] == counts[REFUSED_GONE] == 1
