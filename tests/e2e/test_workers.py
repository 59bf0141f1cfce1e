"""Several serving processes behind one port: killed, stopped, given new versions under load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router_ml.client import RouterClient
from router_ml.errors import RouterMlError, RouterUnavailable
from router_ml.journal import OutcomeReport, read_records
from router_ml.types import Decision
from router_ml.versions import publish

CLI = (sys.executable, "-m", "router_ml.cli")
MakeVersion = Callable[..., Path]


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    argv = [*CLI, "serve", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r" on (127\.0\.0\.1:\d+); ", line)
            assert found, line or process.stderr.read()
            yield process, found[1]
        finally:
            for pid in (process.pid, *workers_of(process)):
                with_no_one_left(pid)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = map(int, of_proc(children).split())
    return [pid for pid in pids if b"spawn_main" in of_proc(Path(f"/proc/{pid}/cmdline"))]


def of_proc(path: Path) -> bytes:
    """Content of a file of a process; none when it has just ended."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def with_no_one_left(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def eventually(check: Callable[[], bool], within_s: float = 60.0) -> None:
    """Much longer than it takes on a busy machine; less than a worker gets to prepare a version."""
    limit = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < limit, "did not come about in time"
        time.sleep(0.05)


def connected(address: str) -> RouterClient:
    """A client whose deadlines are no part of what is tested."""
    return RouterClient(address, timeout_s=60.0, bulk_timeout_s=60.0)


@contextmanager
def under_load(load: Callable[[threading.Event, int], None], n_threads: int) -> Iterator[None]:
    """Threads that call `load(done, number)` while the block runs, however it ends."""
    done = threading.Event()
    threads = [threading.Thread(target=load, args=(done, number)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def is_alive(pid: int) -> bool:
    stat = of_proc(Path(f"/proc/{pid}/stat"))
    return stat != b"" and stat.rsplit(b")")[1].split()[0] != b"Z"


def ask_anew(address: str) -> Decision | None:
    """One decision over a connection of its own."""
    try:
        with connected(address) as client:
            return client.route("bab xrob")
    except RouterUnavailable:
        return None


def health_of(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            return 0


def is_named_in_health(address: str, version: str) -> bool:
    """Whether workers call that version one that is not served; each connection may meet another of them."""
    found = {health_of(address, f"version:{version}") for _ in range(8)}
    return found == {health_pb2.HealthCheckResponse.NOT_SERVING}


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc")


def test_a_worker_that_is_killed_is_started_again_and_no_acknowledged_outcome_is_lost(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    acknowledged = set()
    with serving("--model", str(tiny_bundle), "--workers", "2", "--journal", str(journal)) as (process, address):
        before = workers_of(process)
        assert len(before) == 2
        for victim in before:
            with connected(address) as client:
                for _ in range(20):
                    try:
                        decision = client.route("bab xrob")
                        client.report([OutcomeReport(decision.decision_id, success=1.0)])
                        acknowledged.add(decision.decision_id)
                    except RouterUnavailable:
                        continue
                os.kill(victim, signal.SIGKILL)
            eventually(lambda gone=victim: len(workers_of(process)) == 2 and gone not in workers_of(process))  # type: ignore[misc]
            eventually(lambda: all(ask_anew(address) is not None for _ in range(8)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert [f"worker {pid} ended (SIGKILL) and is started again" in log for pid in before] == [True, True]
    told = [record.outcome.decision_id for record in read_records(journal) if record.HasField("outcome")]
    assert set(told) == acknowledged
    assert len(told) == len(set(told)) >= 20


def test_workers_end_with_their_supervisor(tiny_bundle: Path) -> None:
    with serving("--model", str(tiny_bundle), "--workers", "2") as (process, _):
        workers = workers_of(process)
        process.kill()
        process.wait(60)
        eventually(lambda: not any(map(is_alive, workers)))


def test_all_workers_drain_when_the_supervisor_is_told_to_stop(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving("--model", str(tiny_bundle), "--workers", "2", "--journal", str(tmp_path)) as (process, address):
        decided = [decision.decision_id for _ in range(12) if (decision := ask_anew(address))]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    written = [record.decision.decision_id for record in read_records(tmp_path)]
    assert sorted(written) == sorted(decided)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}, "closed in order"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_new_version_is_in_force_for_all_at_once_and_no_request_fails(
    workers: str, make_version: MakeVersion, tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    publish(bundles, make_version("v0"))
    answers: list[tuple[float, float, str]] = []
    failures: list[RouterMlError] = []

    def load(done: threading.Event, number: int) -> None:
        with connected(address) as client:
            while not done.is_set():
                begun = time.monotonic()
                try:
                    version = client.route("bab xrob").version
                except RouterMlError as error:
                    failures.append(error)
                else:
                    answers.append((begun, time.monotonic(), version))

    with serving("--bundles", str(bundles), "--workers", workers) as (_, address):
        with under_load(load, 4):
            for k in range(4):
                if k:
                    publish(bundles, make_version(f"v{k}"))
                eventually(lambda k=k: bool(answers) and answers[-1][2] == f"v{k}")  # type: ignore[misc]
    assert failures == []
    assert {version for _, _, version in answers} == {"v0", "v1", "v2", "v3"}
    # Whoever asks after somebody was answered by the new version is answered by it too, whichever worker they meet.
    for k in range(1, 4):
        switched = min(ended for _, ended, version in answers if version == f"v{k}")
        assert all(version >= f"v{k}" for begun, _, version in answers if begun > switched)


def test_a_worker_that_has_just_died_holds_up_no_new_version(make_version: MakeVersion, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    publish(bundles, make_version("v0"))
    with serving("--bundles", str(bundles), "--workers", "2") as (process, address):
        for k in range(1, 4):
            (victim, _) = workers_of(process)
            if k == 2:  # asked to prepare it, and dead before it looks
                os.kill(victim, signal.SIGSTOP)
                publish(bundles, make_version(f"v{k}"))
                time.sleep(1.0)
            os.kill(victim, signal.SIGKILL)
            eventually(lambda gone=victim: not is_alive(gone))  # type: ignore[misc]
            if k != 2:
                publish(bundles, make_version(f"v{k}"))
            eventually(lambda k=k: (answer := ask_anew(address)) is not None and answer.version == f"v{k}")  # type: ignore[misc]
            eventually(lambda: len(workers_of(process)) == 2)


def test_a_bad_version_is_refused_and_named_in_health_log_and_description(
    make_version: MakeVersion, tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    publish(bundles, make_version("good"))
    with serving("--bundles", str(bundles), "--workers", "2") as (process, address):
        bad = publish(bundles, make_version("bad", "p_success", 0.2))
        with connected(address) as client:
            eventually(lambda: client.describe().refused is not None)
            refused = client.describe().refused or ""
            assert refused.startswith(f"{bad}: version bad does not answer as where it was made")
            assert client.route("bab xrob").version == "good"
            assert health_of(address, "") == health_pb2.HealthCheckResponse.SERVING
            eventually(lambda: is_named_in_health(address, bad))
            publish(bundles, make_version("better"))
            eventually(lambda: client.route("bab xrob").version == "better")
            eventually(lambda: client.describe().refused is None)
        # A worker that is started again decides by what is in force, not by what the server began with.
        (victim, *_) = workers_of(process)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(workers_of(process)) == 2 and victim not in workers_of(process))
        eventually(lambda: all((answer := ask_anew(address)) and answer.version == "better" for _ in range(12)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert f"version {bad} is refused" in process.stderr.read()
