"""The server as a user starts and stops it: a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router_ml.client import RouterClient
from router_ml.errors import RouterMlError
from router_ml.journal import OutcomeReport, read_records
from router_ml.types import Decision, Request

CLI = (sys.executable, "-m", "router_ml.cli")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *argv], capture_output=True, text=True, timeout=180)


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address, read from the line that it prints."""
    argv = [*CLI, "serve", "--model", str(bundle), "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r" on (127\.0\.0\.1:\d+); ", line)
            assert found, line or process.stderr.read()
            check_serving(found[1])
            yield process, found[1]
        finally:
            process.kill()


def connected(address: str) -> RouterClient:
    """A client whose deadlines are no part of what is tested."""
    return RouterClient(address, timeout_s=60.0, bulk_timeout_s=60.0)


def check_serving(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        for service in ("", "router_ml.v1.RouterService"):
            request = health_pb2.HealthCheckRequest(service=service)
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(request, timeout=60, wait_for_ready=True)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def check_stops(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_the_whole_life_of_a_server(tiny_bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with serving(tiny_bundle, "--journal", str(journal)) as (process, address):
        asked = run("route", "xrob xvac xzed xquf xkyg", "--server", address, "--segment", "chat", "--json")
        assert asked.returncode == 0, asked.stderr
        by_command = json.loads(asked.stdout)
        assert by_command["model"] == "large"
        with connected(address) as client:
            decisions = [client.route(f"bab deb {i}", segment="code") for i in range(20)]
            outcomes = [
                OutcomeReport(decision.decision_id, success=i % 2, output_tokens=i, cost_usd=0.001)
                for i, decision in enumerate(decisions)
            ]
            assert client.report([*outcomes, OutcomeReport("not an id", success=1.0)]).accepted == 20
        check_stops(process)

    records = list(read_records(journal))
    made = {record.decision.decision_id: record.decision for record in records if record.HasField("decision")}
    told = {record.outcome.decision_id: record.outcome for record in records if record.HasField("outcome")}
    assert set(made) == {by_command["decision_id"], *(decision.decision_id for decision in decisions)}
    assert set(told) == {decision.decision_id for decision in decisions}
    for i, decision in enumerate(decisions):
        record = made[decision.decision_id]
        assert (record.request.text, record.request.segment, record.offer) == (f"bab deb {i}", "code", decision.offer)
        assert (record.propensity, record.bundle_sha256) == (1.0, decision.bundle_sha256)
        assert [c.p_success for c in record.candidates] == [c.p_success for c in decision.candidates]
        assert (told[decision.decision_id].success, told[decision.decision_id].output_tokens) == (i % 2, i)
    assert [path.suffix for path in journal.iterdir()] == [".jsonl"], "closed in order"


def test_a_call_in_flight_is_answered_before_it_stops(tiny_bundle: Path, tmp_path: Path) -> None:
    """What it refuses meanwhile is tested in process, where a call may be in flight for longer than five seconds."""
    stopping = threading.Event()

    def requests() -> Iterator[Request]:
        yield Request(text="bab")
        assert stopping.wait(60)
        yield Request(text="deb")

    with (
        serving(tiny_bundle, "--journal", str(tmp_path)) as (process, address),
        connected(address) as client,
        grpc.insecure_channel(address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)  # type: ignore[attr-defined]
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        answers = client.decide_stream(requests())
        assert isinstance(next(answers), Decision)
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        stopping.set()
        assert [type(answer) for answer in answers] == [Decision]
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert [record.decision.request.text for record in read_records(tmp_path)] == ["bab", "deb"]


def test_an_interrupt_stops_it_in_order_too(tiny_bundle: Path) -> None:
    with serving(tiny_bundle) as (process, _):
        check_stops(process, signal.SIGINT)


def test_without_a_journal_it_says_so_and_refuses_outcomes(tiny_bundle: Path) -> None:
    with serving(tiny_bundle) as (process, address):
        with connected(address) as client:
            decision = client.route("bab")
            with pytest.raises(RouterMlError, match="keeps no journal"):
                client.report([OutcomeReport(decision.decision_id, success=1.0)])
        check_stops(process)


def test_a_port_in_use_is_named(tiny_bundle: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("serve", "--model", str(tiny_bundle), "--listen", f"127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("router-ml: ")
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "graph.onnx", "catalog.json", "tokenizer.json"])
def test_a_bundle_tampered_with_is_not_served(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"l", b"m", 1) if name.endswith(".json") else content[:-1])
    done = run("serve", "--model", str(folder), "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("router-ml: ")
    assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["", "demo", "simulate", "ingest", "train", "predict", "evaluate", "serve", "route"]
)
def test_help_prints_and_exits_0(command: str) -> None:
    done = run(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: router-ml {command}".rstrip())
