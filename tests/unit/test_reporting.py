from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest

from router_ml.calls import Receipt, RejectedOutcome
from router_ml.convert import MAX_ITEMS
from router_ml.errors import RequestError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.reporting import ReportCounts, Reporter


class Post:
    """Stands for the server: takes outcomes, or fails while it is down."""

    def __init__(self):
        self.batches = []
        self.failing_with = []
        self.tried = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def send(self, outcomes):
        self.tried.release()
        assert self.open.wait(120)
        if self.failing_with:
            raise self.failing_with.pop(0)
        self.batches.append(list(outcomes))
        bad = [RejectedOutcome(i, each.decision_id, "not an id") for i, each in enumerate(outcomes) if each.error]
        return Receipt(len(outcomes) - len(bad), tuple(bad))

    @property
    def ids(self):
        return [outcome.decision_id for batch in self.batches for outcome in batch]


@pytest.fixture
def post():
    return Post()


@pytest.fixture
def reporter(post):
    reporter = Reporter(post.send, capacity=5000)
    yield reporter
    post.open.set()
    reporter.stop()
    reporter.join()


def ids(numbers):
    return [str(i) for i in numbers]


def add(reporter, numbers):
    for number in ids(numbers):
        reporter.add(OutcomeReport(number, success=1.0))


def test_outcomes_are_sent_in_order_and_in_batches(post, reporter):
    add(reporter, range(3000))
    assert reporter.flush(60)
    assert post.ids == ids(range(3000))
    assert max(map(len, post.batches)) <= MAX_ITEMS
    assert reporter.counts() == ReportCounts(accepted=3000, rejected=0, skipped=0, dropped=0, waiting=0)


def test_they_are_sent_without_a_flush_too(post, reporter):
    add(reporter, range(1))
    assert post.tried.acquire(timeout=60)


def test_handing_over_does_not_wait_for_a_server_that_hangs(post, reporter):
    post.open.clear()
    add(reporter, range(10))
    assert post.tried.acquire(timeout=60)
    add(reporter, range(10, 20))
    assert reporter.counts().waiting == 20
    assert not reporter.flush(0.01)
    post.open.set()
    assert reporter.flush(60)
    assert post.ids == ids(range(20))


@pytest.mark.parametrize("error", [RouterUnavailable("down"), RouterMlError("keeps no journal")])
def test_what_fails_is_sent_again_until_it_is_acknowledged(post, reporter, error):
    post.failing_with = [error] * 3
    add(reporter, range(7))
    assert reporter.flush(60)
    assert post.ids == ids(range(7))


def test_a_flush_does_not_sit_out_a_long_pause(post, reporter):
    reporter._pause = lambda backoff, pause=reporter._pause: pause(3600)
    post.failing_with = [RouterUnavailable("down")]
    add(reporter, range(1))
    assert post.tried.acquire(timeout=60)
    assert reporter.flush(60)


def test_a_full_buffer_drops_the_oldest_counts_them_and_says_so_once(post, reporter, caplog):
    post.open.clear()
    add(reporter, range(1))
    assert post.tried.acquire(timeout=60)
    add(reporter, range(1, 5011))
    assert reporter.counts() == ReportCounts(accepted=0, rejected=0, skipped=0, dropped=10, waiting=5001)
    post.open.set()
    assert reporter.flush(60)
    assert post.ids == ids([0, *range(11, 5011)])
    assert [record.getMessage() for record in caplog.records] == [
        "the buffer of 5000 outcomes is full; the oldest are dropped"
    ]


def test_outcomes_of_default_decisions_are_skipped_and_counted(post, reporter):
    reporter.add(OutcomeReport("", success=1.0))
    add(reporter, range(1))
    assert reporter.flush(60)
    assert post.ids == ["0"]
    assert reporter.counts() == ReportCounts(accepted=1, rejected=0, skipped=1, dropped=0, waiting=0)


def test_what_the_server_refuses_is_counted_logged_and_not_sent_again(post, reporter, caplog):
    add(reporter, range(1))
    reporter.add(OutcomeReport("my-own-id", error="timeout"))
    assert reporter.flush(60)
    assert reporter.counts() == ReportCounts(accepted=1, rejected=1, skipped=0, dropped=0, waiting=0)
    assert "an outcome was refused: not an id" in caplog.text
    assert post.ids == ["0", "my-own-id"]


def test_a_batch_that_is_refused_as_a_whole_does_not_stop_the_rest(post, reporter, caplog):
    post.failing_with = [RequestError("too long")]
    add(reporter, range(1))
    assert reporter.flush(60)
    add(reporter, range(1, 2))
    assert reporter.flush(60)
    assert post.ids == ["1"]
    assert reporter.counts() == ReportCounts(accepted=1, rejected=1, skipped=0, dropped=0, waiting=0)
    assert "1 outcomes were refused: too long" in caplog.text


def test_what_cannot_be_sent_before_the_end_is_counted_as_lost(post, reporter, caplog):
    post.failing_with = [RouterUnavailable("down")] * 1000
    add(reporter, range(3))
    assert not reporter.flush(0.01)
    reporter.stop()
    reporter._thread.join(60)  # rather than the second that `join` waits at most
    assert not reporter._thread.is_alive()
    add(reporter, range(3, 4))
    assert reporter.counts() == ReportCounts(accepted=0, rejected=0, skipped=0, dropped=4, waiting=0)
    assert "3 outcomes could not be reported before the client was closed; they are lost" in caplog.text


def test_a_program_that_ends_without_closing_sends_what_waits():
    program = """
        from router_ml.calls import Receipt
        from router_ml.records import OutcomeReport
        from router_ml.reporting import Reporter

        def send(outcomes):
            print(len(outcomes), flush=True)
            return Receipt(len(outcomes))

        reporter = Reporter(send)
        for _ in range(5):
            reporter.add(OutcomeReport("an-id"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=180, check=True
    )
    assert (sum(map(int, done.stdout.split())), done.stderr) == (5, "")
