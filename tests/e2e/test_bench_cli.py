"""`router-ml bench` as a user types it, on a small bundle and in the shortest way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from router_ml.errors import RouterMlError
from router_ml.router import Router
from router_ml.server import ServerSettings, serve
from router_ml.types import Decision, Request

IN_PROCESS = {f"in_process_{kind}" for kind in (16, 128, 512, 2048, "never_seen", "beyond_ascii")}
ASKED = {
    "unary_one_client",
    "unary_open_loop",
    "unary_saturated",
    "unary_beyond",
    "stream_one",
    "stream_busy",
    "batch_64",
}
IN_A_WINDOW = {"unary_open_loop", "unary_beyond"}
"""What counts answers a second in a window of time, 0.3 s here."""
PROCESS = {"start_to_ready", "resident"}


def bench(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router_ml.cli", "bench", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def address(tiny_bundle: Path) -> Iterator[str]:
    server = serve(Router.load(tiny_bundle), settings=ServerSettings("127.0.0.1:0"))
    server.start()
    yield server.address
    server.stop(0)


def test_a_bundle_is_measured_in_process_and_over_grpc_beside_its_floors(tiny_bundle: Path) -> None:
    done = bench("--model", str(tiny_bundle), "--quick", "--seconds", "0.3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert set(report) == {"date", "machine", "cores", "version", "settings", "figures", "parts_us"}
    assert {"cpu", "cores", "load_before", "system", "versions"} == set(report["machine"])
    assert {"router-ml", "grpcio", "onnxruntime", "python"} <= set(report["machine"]["versions"])
    assert (report["version"]["models"], report["version"]["offers"]) == (4, 6)
    assert (report["settings"]["tokens"], report["settings"]["clients"], report["settings"]["rounds"]) == (128, 8, 1)
    assert set(report["parts_us"]) == {"16", "128", "512", "2048"}

    figures = report["figures"]
    assert IN_PROCESS | ASKED | PROCESS <= set(figures)
    for name in IN_PROCESS | ASKED:
        figure = figures[name]
        latency = [figure["latency"][key] for key in ("p50", "p90", "p99", "p99_9")]
        assert 0 < latency[0] and latency == sorted(latency), name
        # On a busy machine all answers to a short round may come after it; their latencies tell that they came.
        assert figure["per_second"] > 0 or (name in IN_A_WINDOW and figure["per_second"] == 0), name
        assert figure["cpu_us"] >= 0, name  # so short a round may be less than a tick of the clock
    for name in IN_PROCESS:
        assert 0 < figures[name]["beside"]["ort_run_us"] < figures[name]["latency"]["p99_9"]
        assert figures[name]["beside"]["tokenizing_us"] > 0
    for name, floor in (
        ("unary_one_client", "empty_p50_us"),
        ("unary_open_loop", "empty_p99_us"),
        ("unary_saturated", "empty_per_s"),
        ("batch_64", "p50_us_per_decision"),
        ("start_to_ready", "s"),
        ("resident", "mb"),
    ):
        assert figures[name]["beside"][floor] > 0
    for name in (*IN_PROCESS, *(ASKED - {"stream_one", "stream_busy"}), *PROCESS):
        for target in figures[name]["targets"]:
            assert target["met"] == (
                target["found"] >= target["limit"] if target["at_least"] else target["found"] <= target["limit"]
            )
        assert figures[name]["targets"], name


def test_a_running_server_is_measured_as_its_callers_see_it(address: str) -> None:
    done = bench(
        "--server", address, "--quick", "--seconds", "0.3", "--tokens", "16", "--clients", "2", "--rate", "100"
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "4 models, 6 offers",
        "prompts of 16 tokens",
        "p50     p90     p99    p99.9    per s",
        "unary, 1 client, closed loop",
        "unary, 2 clients, 100/s open loop",
        "unary, saturated: 2 clients",
        "unary, twice that rate",
        "RouteStream, 1 message under way",
        "RouteBatch of 64",
        "targets met",
    ):
        assert words in done.stdout
    assert "Router.route" not in done.stdout  # which is not there to be called
    assert " nan" not in done.stdout


class Late:
    """A router that takes longer for a decision than a quick round lasts."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.describe = router.describe

    def decide(self, request: Request) -> Decision:
        time.sleep(0.4)
        return self._router.decide(request)

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision | RouterMlError]:
        return self._router.decide_batch(requests)


def test_a_server_that_answers_nothing_while_a_round_lasts_is_named(tiny_bundle: Path) -> None:
    server = serve(Late(Router.load(tiny_bundle)), settings=ServerSettings("127.0.0.1:0"))
    server.start()
    try:
        options = ("--quick", "--clients", "2", "--rate", "50", "--tokens", "16")
        check_fails(1, "answered nothing before a round of 0.1 s was over", "--server", server.address, *options)
    finally:
        server.stop(0)


def check_fails(status: int, message: str, *argv: str) -> None:
    done = bench(*argv)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_measured_is_named(tmp_path: Path, embedding_bundle: Path, tiny_bundle: Path) -> None:
    check_fails(1, "is not a bundle: it has no manifest.json", "--model", str(tmp_path))
    check_fails(2, "trained on embeddings alone: name one that takes text", "--model", str(embedding_bundle))
    check_fails(1, "the router server at 127.0.0.1:1 cannot be measured (UNAVAILABLE", "--server", "127.0.0.1:1")
    check_fails(2, "`tokens` of the bench must be 2048 at most", "--model", str(tiny_bundle), "--tokens", "5000")
    check_fails(2, "--serve-option goes with --model", "--server", "127.0.0.1:1", "--serve-option=--catalog=x")


def test_a_server_that_does_not_start_says_why(tiny_bundle: Path) -> None:
    gone = ("--serve-option=--catalog=gone.yaml", "--quick")
    check_fails(1, "did not start: router-ml: gone.yaml: cannot be read", "--model", str(tiny_bundle), *gone)
