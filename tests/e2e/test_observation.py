"""A server process as an operator watches it: metrics over HTTP, JSON logs, and no prompt in either."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from router_ml.client import RouterClient
from router_ml.records import OutcomeReport
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

CLI = (sys.executable, "-m", "router_ml.cli")
SECRET = "babdebfig"


def free_port() -> int:
    """Below the ports that a system gives to connections, so that none takes it before the server does."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def test_a_server_tells_what_it_does_and_never_what_it_was_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    argv = [*CLI, "serve", "--model", str(tiny_bundle), "--listen", "127.0.0.1:0", "--journal", str(tmp_path / "j")]
    argv += ["--metrics", f"127.0.0.1:{port}", "--log-format", "json", "--log-level", "info"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r" on (127\.0\.0\.1:\d+); ", process.stdout.readline())
            assert found
            with RouterClient(found[1], timeout_s=60.0, bulk_timeout_s=60.0) as client:
                decisions = [client.route(f"{SECRET} {i}", segment="chat") for i in range(10)]
                client.report([OutcomeReport(decisions[0].decision_id, success=1.0)])
                version = client.describe().version
            with grpc.insecure_channel(found[1]) as channel, pytest.raises(grpc.RpcError):
                stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
                stub.Route(pb.RouteRequest(text=SECRET, quality_target=2.0))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                page = answer.read().decode()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
                assert answer.status == 200
        finally:
            process.terminate()
            _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert 'router_ml_rpcs_total{method="Route",status="OK"} 10.0' in page
    assert 'router_ml_rpcs_total{method="Route",status="INVALID_ARGUMENT"} 1.0' in page
    assert 'router_ml_decision_seconds_count{method="Route"} 10.0' in page
    assert 'router_ml_outcomes_total{result="accepted"} 1.0' in page
    assert "router_ml_workers 1.0" in page
    assert re.search(rf'router_ml_version_info{{bundle_sha256="[0-9a-f]{{64}}",version="{version}"}} 1.0', page)
    records = [json.loads(line) for line in err.splitlines()]
    (started,) = [record for record in records if record["message"].startswith("serving on")]
    assert (started["address"], started["pid"]) == (found[1], process.pid)
    assert SECRET not in page and SECRET not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "9464"], "`metrics` must be HOST:PORT"),
        (["--traces", "collector:4318"], "`traces` must be a URL"),
        (["--traces", "http://collector:4318", "--trace-ratio", "2"], "must lie in [0, 1]"),
        (["--log-format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_served(
    tiny_bundle: Path, options: list[str], message: str
) -> None:
    argv = [*CLI, "serve", "--model", str(tiny_bundle), "--listen", "127.0.0.1:0", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
