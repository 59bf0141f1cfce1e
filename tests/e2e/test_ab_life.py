"""The life of a test over real processes: started, ramped, halted for harm, another promoted, rolled back."""

from __future__ import annotations

import importlib.util
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.cli import main
from router_ml.client import RouterClient
from router_ml.experiment import position
from router_ml.journal import OutcomeReport
from router_ml.types import Decision
from training import registry
from training.registry import CHAMPION, RegistrySettings, TrainingRecord

_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("test_workers.py"))
assert _SPEC and _SPEC.loader
workers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workers)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc"),
]

COST = {"v1": 0.002, "v2": 0.002, "v3": 0.001}
ERRORS = {"v1": 0.01, "v2": 0.3, "v3": 0.01}


def route_all(address: str, sessions: list[str]) -> dict[str, list[Decision]]:
    """Two requests of each session, over four connections."""

    def some(mine: list[str]) -> list[Decision]:
        with RouterClient(address, timeout_s=20.0) as client:
            return [client.route("bab xrob", session_id=session) for session in mine for _ in range(2)]

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(some, [sessions[k::4] for k in range(4)]))
    by_session: dict[str, list[Decision]] = {}
    for k, part in enumerate(parts):
        for i, decision in enumerate(part):
            by_session.setdefault(sessions[k::4][i // 2], []).append(decision)
    return by_session


def outcomes_of(decisions: list[Decision], rng: np.random.Generator) -> list[OutcomeReport]:
    """What becomes of requests in a world where version v2 fails often, and v3 costs half."""
    reports = []
    for decision in decisions:
        failed = rng.random() < ERRORS[decision.version]
        cost = COST[decision.version] * float(rng.lognormal(0, 0.2))
        success = 0.0 if failed else float(rng.random() < 0.9)
        error = "timeout" if failed else None
        reports.append(OutcomeReport(decision.decision_id, success=success, cost_usd=cost, error=error))
    return reports


def report_all(client: RouterClient, reports: list[OutcomeReport]) -> None:
    for begin in range(0, len(reports), 1000):
        client.report(reports[begin : begin + 1000])


def test_a_harmful_test_stops_itself_and_a_better_version_is_promoted_and_rolled_back(
    make_version: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    settings = RegistrySettings(tracking_uri=uri)
    for name in COST:
        run = registry.log_training_run(TrainingRecord(make_version(name), "logs", "ab" * 32), settings)
        registry.register(run, settings, alias=CHAMPION if name == "v1" else None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    journal, rng = tmp_path / "journal", np.random.default_rng(5)

    def ab(*argv: str) -> Any:
        capsys.readouterr()
        status = main(["ab", *argv, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    options = ("--follow", "models:/router@champion", "--bundles", str(tmp_path / "bundles"))
    options += ("--workers", "2", "--journal", str(journal))
    sessions = [f"session {k}" for k in range(1500)]
    with workers.serving(*options, MLFLOW_TRACKING_URI=uri) as (process, address):
        with RouterClient(address, timeout_s=20.0) as client:
            ab("start", "--challenger", "2", "--share", "20%", "--name", "bad")
            workers.eventually(lambda: [test.share for test in client.describe().tests] == [0.2], within_s=60)
            ab("ramp", "bad", "--share", "50%")
            workers.eventually(lambda: [test.share for test in client.describe().tests] == [0.5], within_s=60)
            decided = route_all(address, sessions)
            report_all(client, outcomes_of([each for mine in decided.values() for each in mine], rng))
            (look,) = ab("watch", str(journal))["tests"]
            assert look["test"]["state"] == "halted" and "errors" in look["halted"]
            workers.eventually(lambda: client.describe().tests == (), within_s=60)
            assert client.route("bab xrob", session_id="session 1").arm == ""
            assert registry.champion_number(settings) == 1
            ab("stop", "bad")
            test = ab("start", "--challenger", "3", "--share", "50%", "--name", "good", "--goal", "cost_per_request",
                      "--margin", "error_rate=10pt")  # fmt: skip
            workers.eventually(lambda: [each.name for each in client.describe().tests] == ["good"], within_s=60)
        first = route_all(address, sessions)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with workers.serving(*options, MLFLOW_TRACKING_URI=uri) as (process, address):
        again = route_all(address, sessions[:200])
        for session, mine in [*first.items(), *again.items()]:
            arm = ("good/control", "good/v3")[int(position(test["salt"], session) * 2)]
            assert {decision.arm for decision in mine} == {arm}
            assert {decision.version for decision in mine} == {"v1" if arm.endswith("control") else "v3"}
        with RouterClient(address, timeout_s=20.0) as client:
            late = [each for mine in (*first.values(), *again.values()) for each in mine]
            report_all(client, outcomes_of(late, rng))
            (look,) = ab("watch", str(journal))["tests"]
            assert look["test"]["verdicts"]["v3"]["action"] == "promote", look["test"]["verdicts"]
            assert ab("promote", "good")["version"] == 3
            workers.eventually(lambda: client.route("bab xrob").version == "v3", within_s=60)
            # The alias moves first, then the test ends: a look between the two sees both.
            workers.eventually(lambda: client.route("bab xrob", session_id="session 1").arm == "", within_s=60)
            ab("rollback", "--reason", "complaints")
            workers.eventually(lambda: client.route("bab xrob").version == "v1", within_s=60)
    told = registry.look_up("models:/router/3", settings).tags
    assert (told["promoted_by_test"], told["rolled_back_because"]) == ("good", "complaints")
