"""The life of a test over real processes, with the simulated world as its traffic.

Started, ramped, halted for harm; another one beside a shadow, through a restart, read by late outcomes, promoted,
rolled back. Three versions of a company: the champion, one that learned from exchanged outcomes, one that saves more.
"""

from __future__ import annotations

import importlib.util
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from router_ml.cli import main
from router_ml.client import RouterClient
from router_ml.experiment import position
from router_ml.journal import OutcomeReport
from router_ml.types import Decision
from training import registry
from training.outcomes import write_outcomes
from training.registry import RegistrySettings
from training.synthetic.table import outcome_batch
from training.synthetic.traffic import TrafficSettings, TrafficSlice, draw_traffic
from training.synthetic.world import World, WorldSettings

_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("test_workers.py"))
assert _SPEC and _SPEC.loader
workers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workers)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in /proc"),
]

TRAINED_DAYS, TRAFFIC_DAYS, PER_DAY = 2, 3, 1500


class Day:
    """A day of the simulated world, whose requests a backend sends and whose outcomes it reports."""

    def __init__(self, part: TrafficSlice) -> None:
        self._part = part
        self._tokens = part.world.input_tokens(part.prompts)
        self._usd = part.world.price(self._tokens, part.outcomes.output_tokens, part.cached_tokens)
        self.sessions = part.session_ids

    def ask(self, client: RouterClient, request: int) -> Decision:
        segment = self._part.world.segments[self._part.prompts.segment[request]].name
        return client.route(
            self._part.prompts.texts[request], segment=segment, session_id=self._part.session_ids[request]
        )

    def route(self, address: str) -> list[Decision]:
        """The decision of each request, over four connections."""

        def some(mine: range) -> list[Decision]:
            with RouterClient(address, timeout_s=20.0) as client:
                return [self.ask(client, request) for request in mine]

        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(some, [range(k, PER_DAY, 4) for k in range(4)]))
        return [parts[request % 4][request // 4] for request in range(PER_DAY)]

    def report(self, client: RouterClient, decided: list[Decision]) -> None:
        """What came of the requests with the models that were chosen."""
        outcomes, reports = self._part.outcomes, []
        for i, decision in enumerate(decided):
            m = self._part.world.models.index(decision.model)
            reports.append(
                OutcomeReport(
                    decision.decision_id,
                    success=float(outcomes.success[i, m]),
                    input_tokens=int(self._tokens[i, m]),
                    output_tokens=int(outcomes.output_tokens[i, m]),
                    cost_usd=float(self._usd[i, m]),
                    latency_ms=float(outcomes.latency_ms[i, m]),
                )
            )
        for begin in range(0, len(reports), 1000):
            client.report(reports[begin : begin + 1000])


@pytest.fixture
def days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Day]:
    """Three registered versions, the first of them the champion; the days after those that they learned from."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    settings = TrafficSettings(days=TRAINED_DAYS + TRAFFIC_DAYS, requests_per_day=PER_DAY)
    parts = list(draw_traffic(World.create(7, WorldSettings()), settings))
    logs = [outcome_batch(part, full_information=True) for part in parts[:TRAINED_DAYS]]
    write_outcomes(tmp_path / "logs.parquet", logs)
    write_outcomes(tmp_path / "exchanged.parquet", [_exchanged(batch) for batch in logs])
    for name, target in (("logs", "0.99"), ("exchanged", "0.99"), ("logs", "0.9")):
        assert main(["train", str(tmp_path / f"{name}.parquet"), "--quality-target", target, "--json"]) == 0
    return [Day(part) for part in parts[TRAINED_DAYS:]]


def _exchanged(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Success for failure."""
    at = batch.schema.get_field_index("success")
    return batch.set_column(at, batch.schema.field(at), pc.subtract(1.0, batch["success"]))


def test_a_harmful_test_stops_itself_and_a_better_version_is_promoted_and_rolled_back(
    days: list[Day], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, settings = tmp_path / "journal", RegistrySettings()

    def ab(*argv: str) -> Any:
        capsys.readouterr()
        status = main(["ab", *argv, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    options = ("--follow", "models:/router@champion", "--bundles", str(tmp_path / "bundles"))
    options += ("--workers", "2", "--journal", str(journal))
    with workers.serving(*options) as (process, address):
        with RouterClient(address, timeout_s=20.0) as client:
            champion = days[0].ask(client, 0).version
            ab("start", "--challenger", "2", "--share", "20%", "--name", "bad")
            workers.eventually(lambda: [test.share for test in client.describe().tests] == [0.2], within_s=60)
            ab("ramp", "bad", "--share", "50%")
            workers.eventually(lambda: [test.share for test in client.describe().tests] == [0.5], within_s=60)
            days[0].report(client, days[0].route(address))
            (look,) = ab("watch", str(journal))["tests"]
            assert look["test"]["state"] == "halted" and "success" in look["halted"], look["test"]["verdicts"]
            workers.eventually(lambda: client.describe().tests == (), within_s=60)
            assert days[0].ask(client, 0).arm == ""
            assert registry.champion_number(settings) == 1
            ab("stop", "bad")
            test = ab("start", "--challenger", "3", "--share", "50%", "--name", "good", "--goal", "cost_per_request",
                      "--margin", "success=20pt", "--margin", "error_rate=10pt")  # fmt: skip
            ab("start", "--challenger", "2", "--share", "100%", "--name", "beside", "--shadow")
            workers.eventually(lambda: len(client.describe().tests) == len(client.describe().shadows) == 1, within_s=60)
        first = days[1].route(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with workers.serving(*options) as (process, address):
        second = days[2].route(address)
        sessions = [*zip(days[1].sessions, first, strict=True), *zip(days[2].sessions, second, strict=True)]
        with RouterClient(address, timeout_s=20.0) as client:
            again = [(days[1].sessions[i], days[1].ask(client, i)) for i in range(0, PER_DAY, 10)]
            versions = {}
            for session, decision in [*sessions, *again]:
                arm = ("good/control", "good/v3")[int(position(test["salt"], session) * 2)]
                assert decision.arm == arm
                assert versions.setdefault(arm, decision.version) == decision.version
            assert len(set(versions.values())) == 2 and versions["good/control"] == champion
            days[1].report(client, first)  # late, and to processes that did not decide
            days[2].report(client, second)
            shadow, good = sorted(ab("watch", str(journal))["tests"], key=lambda look: look["test"]["name"])
            assert good["test"]["verdicts"]["v3"]["action"] == "promote", good["test"]["verdicts"]
            assert shadow["shadow"]["decisions"] > PER_DAY and shadow["shadow"]["agrees"] < 0.5
            assert shadow["shadow"]["off_policy"]["success"]["verdict"] == "cannot tell"
            assert ab("promote", "good")["version"] == 3
            workers.eventually(lambda: days[0].ask(client, 0).version == versions["good/v3"], within_s=60)
            # The alias moves first, then the test ends: a look between the two sees both.
            workers.eventually(lambda: days[0].ask(client, 0).arm == "", within_s=60)
            ab("rollback", "--reason", "complaints")
            workers.eventually(lambda: days[0].ask(client, 0).version == champion, within_s=60)
    told = registry.look_up("models:/router/3", settings).tags
    assert (told["promoted_by_test"], told["rolled_back_because"]) == ("good", "complaints")
    replayed = ab("replay", str(journal), "--challenger", "3")
    assert replayed["requests"] > 3 * PER_DAY and replayed["agrees"] < 0.5
    (old, new) = replayed["by_champion"]
    assert new["usd"] < 0.5 * old["usd"]
