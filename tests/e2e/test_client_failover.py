"""A backend under way while its routers are killed: real servers, real kills, no request that fails."""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from router_ml.client import RouterClient
from router_ml.journal import OutcomeReport, read_records
from router_ml.types import Decision, Reason

CLI = (sys.executable, "-m", "router_ml.cli")
THREADS = 4


def free_address() -> str:
    """Below the ports that a system gives to connections, so that none takes it while no server listens there."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"


@pytest.fixture
def start(tiny_bundle: Path) -> Iterator[Callable[[str, Path], subprocess.Popen[str]]]:
    """Starts a server process at an address with a journal; returns once it serves."""
    with ExitStack() as stack:

        def start(address: str, journal: Path) -> subprocess.Popen[str]:
            argv = [*CLI, "serve", "--model", str(tiny_bundle), "--listen", address, "--journal", str(journal)]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert re.search(rf" on {re.escape(address)}; ", process.stdout.readline())
            return process

        yield start


class Load:
    """Threads that ask for decisions and report outcomes without a break, as a backend would."""

    def __init__(self, client: RouterClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(THREADS)]
        self.decisions: list[Decision] = []
        self.errors: list[Exception] = []

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                decision = self._client.route(f"bab deb {number}", segment="chat")
                self._client.report_later(OutcomeReport(decision.decision_id, success=1.0))
            except Exception as error:
                self.errors.append(error)
                return
            self.decisions.append(decision)
            time.sleep(0.002)

    def wait_for(self, n: int, holds: Callable[[Decision], bool]) -> None:
        """Until so many decisions made from now on are such."""
        seen, found, until = len(self.decisions), 0, time.monotonic() + 60
        while found < n and not self.errors:
            assert time.monotonic() < until, f"{found} of {n} such decisions in a minute"
            fresh = self.decisions[seen:]
            seen += len(fresh)
            found += sum(map(holds, fresh))
            time.sleep(0.01)
        assert not self.errors

    def wait_for_one_in(self, journal: Path) -> None:
        """Until a server has one of these decisions on disk."""
        until = time.monotonic() + 60
        while not journaled(journal, "decision"):
            assert time.monotonic() < until, f"no decision in {journal} in a minute"
            self.wait_for(1, routed)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def routed(decision: Decision) -> bool:
    return Reason.ROUTER_UNAVAILABLE not in decision.reasons


def journaled(folder: Path, kind: str) -> list[str]:
    return [getattr(record, kind).decision_id for record in read_records(folder) if record.HasField(kind)]


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGKILL)
    process.wait()
    yield


def test_when_one_of_two_servers_is_killed_the_other_answers_every_request(
    start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    addresses, journals = [free_address(), free_address()], [tmp_path / "a", tmp_path / "b"]
    first, second = map(start, addresses, journals)
    with RouterClient(addresses, timeout_s=60.0, bulk_timeout_s=60.0) as client:
        with Load(client) as load:
            for folder in journals:  # both have their share, on disk before a kill may take it away
                load.wait_for_one_in(folder)
            load.wait_for(100, routed)
            with killed(first):
                load.wait_for(100, routed)
            again = start(addresses[0], tmp_path / "again")
            load.wait_for_one_in(tmp_path / "again")
            with killed(second):
                load.wait_for(100, routed)
        assert client.flush(60.0)
    assert not load.errors
    assert all(map(routed, load.decisions)), "not one default decision, though none was configured"
    again.terminate()
    again.wait()


def test_with_a_default_no_request_fails_while_every_server_is_dead_or_hangs(
    start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    address = free_address()
    server = start(address, tmp_path / "before")
    default = {"default_model": "large", "default_offer": "large@us"}
    with RouterClient(address, timeout_s=0.1, bulk_timeout_s=60.0, **default) as client:  # type: ignore[arg-type]
        with Load(client) as load:
            load.wait_for(50, routed)
            server.send_signal(signal.SIGSTOP)
            load.wait_for(50, lambda decision: not routed(decision))
            server.send_signal(signal.SIGCONT)
            load.wait_for(50, routed)
            with killed(server):
                load.wait_for(200, lambda decision: not routed(decision))
            server = start(address, tmp_path / "after")
            load.wait_for(50, routed)
        assert client.flush(60.0)
    counts = client.report_counts()
    defaults = [decision for decision in load.decisions if not routed(decision)]
    assert not load.errors
    assert {(d.offer, d.model, d.decision_id, d.version) for d in defaults} == {("large@us", "large", "", "")}
    assert counts.skipped == len(defaults)
    assert (counts.rejected, counts.dropped, counts.waiting) == (0, 0, 0)
    server.terminate()
    server.wait()
    told = [*journaled(tmp_path / "before", "outcome"), *journaled(tmp_path / "after", "outcome")]
    assert {decision.decision_id for decision in load.decisions if routed(decision)} == set(told), "none was lost"


def test_a_program_that_ends_without_closing_its_client_has_reported_its_outcomes(
    start: Callable[[str, Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    program = """
        import asyncio, sys
        from router_ml.aio_client import AsyncRouterClient
        from router_ml.client import RouterClient
        from router_ml.records import OutcomeReport

        client = RouterClient(sys.argv[1], timeout_s=60.0)
        for i in range(100):
            client.report_later(OutcomeReport(client.route(f"bab {i}").decision_id, success=1.0))

        async def main():
            client = AsyncRouterClient(sys.argv[1], timeout_s=60.0)
            for i in range(100):
                client.report_later(OutcomeReport((await client.route(f"bab {i}")).decision_id, success=1.0))
            kept.append(client)

        kept = []
        asyncio.run(main())
    """
    address = free_address()
    server = start(address, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), address], capture_output=True, text=True, timeout=180
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    server.terminate()
    server.wait()
    outcomes = journaled(tmp_path, "outcome")
    assert len(outcomes) == 200
    assert set(outcomes) == set(journaled(tmp_path, "decision"))
