"""A/B tests in a server of two processes: sticky for good, ramped, several at once, refused where they will not do."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from grpc_health.v1 import health_pb2

from router_ml.errors import RouterMlError, RouterUnavailable
from router_ml.experiment import Arm, Experiment, Shadow, Unit
from router_ml.journal import OutcomeReport, read_records
from router_ml.traffic import Traffic, write_traffic
from router_ml.types import Decision
from router_ml.v1.log_pb2 import DecisionRecord, ShadowRecord
from router_ml.versions import add_version
from training.ingest import ingest_journal

_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("test_workers.py"))
assert _SPEC and _SPEC.loader
workers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workers)

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc")

SESSIONS = [f"session-{k}" for k in range(24)]
LAYER = "layer"


def experiment(name: str, share: float, *versions: str, start: float = 0.0) -> Experiment:
    arms = tuple(Arm("control" if k == 0 else f"arm-{k}", version) for k, version in enumerate(versions))
    return Experiment(name, f"salt of {name}", Unit.SESSION, None, share, start, arms)


def expected(traffic: Traffic, session: str) -> str:
    """The arm as any backend may compute it."""
    for test in traffic.tests:
        arm = test.arm_of(LAYER, session)
        if arm is not None:
            return f"{test.name}/{test.arms[arm].name}"
    return ""


def ask(address: str, session: str) -> Decision:
    """Over a connection of its own, so that either worker may answer; one that has just died is not asked again."""
    answers: list[Decision] = []

    def is_answered() -> bool:
        try:
            with workers.connected(address) as client:
                answers.append(client.route("bab xrob", session_id=session, segment="chat"))
        except RouterUnavailable:
            return False
        return True

    workers.eventually(is_answered)
    return answers[0]


def kept(journal: Path) -> tuple[dict[str, DecisionRecord], list[ShadowRecord]]:
    """Decisions by their ids, and shadow decisions, that are on disk by now."""
    records = list(read_records(journal))
    decisions = {record.decision.decision_id: record.decision for record in records if record.HasField("decision")}
    return decisions, [record.shadow for record in records if record.HasField("shadow")]


def test_sessions_stay_on_their_arms_through_workers_restarts_and_reloads(
    make_version: Callable[..., Path], tmp_path: Path
) -> None:
    bundles, journal = tmp_path / "bundles", tmp_path / "journal"
    old, new, third, fourth = (add_version(bundles, make_version(name)) for name in ("v1", "v2", "v3", "v4"))
    tests = (experiment("two", 0.15, old, new), experiment("three", 0.2, old, new, third, start=0.4))
    traffic = Traffic(old, LAYER, tests, (Shadow("look", "s", Unit.SESSION, None, 1.0, fourth),))
    write_traffic(bundles, traffic)
    versions = {"": "v1", "two/control": "v1", "two/arm-1": "v2"}
    versions |= {"three/control": "v1", "three/arm-1": "v2", "three/arm-2": "v3"}
    decided: list[Decision] = []

    def are_all_kept() -> bool:
        """Whether every decision is on disk by now, and what the shadow thought of it."""
        made = {decision.decision_id for decision in decided}
        decisions, looked = kept(journal)
        return made <= set(decisions) and made <= {each.decision_id for each in looked}

    def check(address: str, now: Traffic) -> None:
        for session in SESSIONS:
            decision = ask(address, session)
            assert decision.arm == expected(now, session)
            assert decision.version == versions[decision.arm]
            decided.append(decision)

    options = ("--bundles", str(bundles), "--workers", "2", "--journal", str(journal))
    with workers.serving(*options) as (process, address):
        check(address, traffic)
        assert {decision.arm for decision in decided} == set(versions)
        workers.eventually(are_all_kept)  # what is not on disk yet, a killed worker takes with it
        (victim, _) = workers.workers_of(process)
        os.kill(victim, signal.SIGKILL)
        workers.eventually(lambda: victim not in (now := workers.workers_of(process)) and len(now) == 2)
        check(address, traffic)
        one = replace(traffic, tests=traffic.tests[:1])
        write_traffic(bundles, one)
        with workers.connected(address) as client:
            workers.eventually(lambda: len(client.describe().tests) == 1)
            told = client.describe()
            assert (told.version, told.layer_salt, told.shadows[0].version) == ("v1", LAYER, "v4")
            assert [(arm.name, arm.version) for arm in told.tests[0].arms] == [("control", "v1"), ("arm-1", "v2")]
        check(address, one)
        workers.eventually(are_all_kept)  # at the end a shadow gets a second, which a busy machine may not have
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    write_traffic(bundles, traffic)
    with workers.serving(*options) as (process, address):
        check(address, traffic)
        workers.eventually(are_all_kept)
        with workers.connected(address) as client:  # days later, and after restarts
            client.report([OutcomeReport(decision.decision_id, success=1.0) for decision in decided])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""

    written, looked = kept(journal)
    assert set(written) == {decision.decision_id for decision in decided}
    for decision in decided:
        found = written[decision.decision_id]
        assert (found.arm, found.propensity) == (decision.arm, decision.propensity)
        assert found.HasField("arm_propensity") == bool(decision.arm)
    assert {(each.test, each.version, each.agrees) for each in looked} == {("look", "v4", True)}
    assert sorted(each.decision_id for each in looked) == sorted(written), "each decision once"
    table = pq.read_table(ingest_journal(journal, tmp_path / "table").table).to_pylist()
    arms = {decision.decision_id: decision.arm or None for decision in decided}
    assert {row["request_id"]: row["arm"] for row in table} == arms
    assert all(row["success"] == 1.0 for row in table)


def test_a_ramp_fails_no_request_and_takes_sessions_in_without_moving_any(
    make_version: Callable[..., Path], tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    old, new = (add_version(bundles, make_version(name)) for name in ("v1", "v2"))
    write_traffic(bundles, Traffic(old))
    seen: defaultdict[str, list[str]] = defaultdict(list)
    failures: list[RouterMlError] = []

    def load(done: threading.Event, number: int) -> None:
        with workers.connected(address) as client:
            while not done.is_set():
                for session in SESSIONS[number::4]:
                    try:
                        seen[session].append(client.route("bab xrob", session_id=session).arm)
                    except RouterMlError as error:
                        failures.append(error)

    def is_each_asked_again() -> Callable[[], bool]:
        """Whether a request of each session has begun, and was answered, since this was made."""
        counts = {session: len(seen[session]) for session in SESSIONS}
        return lambda: all(len(seen[session]) > counts[session] + 1 for session in SESSIONS)

    with workers.serving("--bundles", str(bundles), "--workers", "2") as (_, address):
        with workers.under_load(load, 4), workers.connected(address) as client:
            workers.eventually(is_each_asked_again())
            for share in (0.01, 0.05, 0.2, 0.5):
                traffic = Traffic(old, LAYER, (experiment("ramp", share, old, new),))
                write_traffic(bundles, traffic)
                workers.eventually(lambda share=share: [t.share for t in client.describe().tests] == [share])
                workers.eventually(is_each_asked_again())
                for session in SESSIONS:
                    assert seen[session][-1] == expected(traffic, session)
    assert failures == []
    assert {arms[-1] for arms in seen.values()} == {"ramp/control", "ramp/arm-1"}
    for arms in seen.values():
        switches = [after for before, after in pairwise(arms) if before != after]
        assert arms[0] == "" and len(switches) == 1, "taken in once, and never moved"


@pytest.mark.parametrize("when", ["serving", "starting"])
def test_a_bad_challenger_leaves_what_is_in_force_and_is_named(
    when: str, make_version: Callable[..., Path], tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    old, good = (add_version(bundles, make_version(name)) for name in ("v1", "v2"))
    bad = add_version(bundles, make_version("bad", "p_success", 0.2))
    in_force = Traffic(old, LAYER, (experiment("good", 0.5, old, good),))
    wrong = Traffic(old, LAYER, (experiment("good", 0.25, old, good), experiment("bad", 0.2, old, bad, start=0.5)))
    write_traffic(bundles, in_force if when == "serving" else wrong)
    options = ("--bundles", str(bundles), "--workers", "2")
    with workers.serving(*options) as (process, address), workers.connected(address) as client:
        write_traffic(bundles, wrong)
        workers.eventually(lambda: client.describe().refused is not None)
        told = client.describe()
        assert (told.refused or "").startswith(f"{bad}: version bad does not answer as where it was made")
        assert [test.share for test in told.tests] == ([0.5] if when == "serving" else [])
        assert workers.health_of(address, "") == health_pb2.HealthCheckResponse.SERVING
        workers.eventually(lambda: workers.is_named_in_health(address, bad))
        now = in_force if when == "serving" else Traffic(old)
        assert all(ask(address, session).arm == expected(now, session) for session in SESSIONS[:8])
        write_traffic(bundles, in_force)
        workers.eventually(lambda: client.describe().tests != () and client.describe().refused is None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None and f"version {bad} is refused" in process.stderr.read()
