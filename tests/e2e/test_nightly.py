"""Whole nights by the command: what is taken, what is promoted, what a kill, a second process or a bad day changes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from router_ml.bundle import read_manifest
from router_ml.cli import main
from router_ml.records import OutcomeReport, decision_line, outcome_line
from router_ml.types import Candidate, Decision, Reason, Request
from training.fit import FitSettings
from training.linear import LinearSettings
from training.nightly.inputs import NightlySettings
from training.nightly.run import STAGES, NightReport, run_nightly
from training.pipeline import TrainSettings
from training.synthetic.prices import default_catalog
from training.synthetic.traffic import TrafficSettings, TrafficSlice, draw_traffic
from training.synthetic.world import World, WorldSettings
from training.trees import TreeSettings

DAYS, PER_DAY = 8, 400
CATALOG = Path(__file__).parents[2] / "training" / "synthetic" / "catalog.yaml"


@pytest.fixture
def place(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def days(n: int = DAYS, per_day: int = PER_DAY) -> list[TrafficSlice]:
    world = World.create(7, WorldSettings())
    return list(draw_traffic(world, TrafficSettings(days=n, requests_per_day=per_day)))


def write_segment(
    journal: Path, part: TrafficSlice, *, unreported: int = 0, flipped: bool = False, ending: str = ".jsonl"
) -> None:
    """A day of simulated traffic as a server would have left it: one segment, its clock the simulated one.

    Of the first `unreported` requests nothing was reported.
    """
    lines = [line for line in day_lines(part, unreported=unreported, flipped=flipped)]
    journal.mkdir(exist_ok=True)
    begin = datetime.fromtimestamp(int(part.time_us.min()) / 1e6, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    (journal / f"{begin}-simulated-000001{ending}").write_bytes(b"".join(lines))


def day_lines(part: TrafficSlice, *, unreported: int = 0, flipped: bool = False) -> Iterator[bytes]:
    world, outcomes = part.world, part.outcomes
    tokens = world.input_tokens(part.prompts)
    cost = world.price(tokens, outcomes.output_tokens, part.cached_tokens)
    for i, id in enumerate(part.request_ids):
        model = int(part.chosen[i])
        name = world.models[model]
        request = Request(
            text=part.prompts.texts[i],
            segment=world.segments[part.prompts.segment[i]].name,
            session_id=part.session_ids[i],
        )
        candidates = (Candidate(name, name, 0.5, 100.0, 0.001, None),)
        propensity = float(part.propensity[i, model])
        at = int(part.time_us[i])
        yield decision_line(
            request,
            Decision(id, name, name, (), candidates, (Reason.BEST_VALUE,), propensity, None, "v0", "", "ab"),
            at,
        )
        if i >= unreported:
            yield report_line(part, i, float(cost[i, model]), flipped=flipped)


def report_line(part: TrafficSlice, i: int, cost_usd: float, *, flipped: bool = False) -> bytes:
    model = int(part.chosen[i])
    success = float(part.outcomes.success[i, model])
    outcome = OutcomeReport(
        part.request_ids[i],
        success=1 - success if flipped else success,
        output_tokens=int(part.outcomes.output_tokens[i, model]),
        cost_usd=cost_usd,
    )
    return outcome_line(outcome, int(part.time_us[i]) + 1_000_000)


def settings_of(place: Path, work: str = "work", **changes: Any) -> NightlySettings:
    fit = FitSettings(
        linear=LinearSettings(scale=0.7, own_scale=1.0), trees=TreeSettings(n_trees=20, n_leaves=7, n_threads=1)
    )
    given = {"journal": place / "journal", "catalog": default_catalog(), "train": TrainSettings(fit=fit)}
    return NightlySettings(place / work, **given | changes)


def night(place: Path, work: str = "work", **changes: Any) -> NightReport:
    return run_nightly(settings_of(place, work, **changes), lambda line: None)


def store() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")


def runs() -> list[Any]:
    client = store()
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def aliases() -> dict[str, int]:
    found = store().search_registered_models("name = 'router'")
    return {name: int(number) for name, number in found[0].aliases.items()} if found else {}


def gate(report: NightReport, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(gate for gate in report.data["gates"] if gate["name"] == name)
    return found


def test_nights_follow_each_other(place: Path) -> None:
    *parts, late, missed, last = days()
    for part in parts:
        write_segment(place / "journal", part)
    write_segment(place / "journal", late, unreported=PER_DAY // 2)
    write_segment(place / "journal", missed, ending=".jsonl.open")
    first = night(place)
    assert first.accepted, first.refused_by
    assert first.data["inputs"]["rows"] == (DAYS - 2) * PER_DAY
    assert first.data["inputs"]["by_day"][-1]["known"] == PER_DAY // 2
    assert aliases() == {"champion": 1}

    again = night(place)
    assert (again.is_repeat, again.data) == (True, first.data)
    assert len(runs()) == 1

    # Two days later the missed one is taken too, and late outcomes find their decisions.
    next((place / "journal").glob("*.open")).unlink()
    write_segment(place / "journal", missed)
    write_segment(place / "journal", last)
    reports = b"".join(report_line(late, i, 0.001) for i in range(PER_DAY // 2))
    (place / "journal" / "20261120T000000.000000Z-simulated-000002.jsonl").write_bytes(reports)
    second = night(place)
    assert second.data["inputs"]["new_rows"] == 2 * PER_DAY
    assert [day["known"] for day in second.data["inputs"]["by_day"][-3:]] == [PER_DAY] * 3
    assert " the champion" in gate(second, "champion")["words"]
    assert aliases() == ({"champion": 2, "previous": 1} if second.accepted else {"champion": 1})
    assert [run.info.status for run in runs()] == ["FINISHED"] * 2


def test_a_day_of_exchanged_outcomes_is_refused(place: Path) -> None:
    *good, last = days()
    for part in good:
        write_segment(place / "journal", part)
    write_segment(place / "journal", last, flipped=True)
    refused = night(place)
    assert not refused.accepted
    day = refused.data["inputs"]["by_day"][-1]["day"]
    assert f"--leave-out-day {day}" in gate(refused, "outcomes against estimates")["advice"]
    assert aliases() == {}
    [run] = runs()
    assert "outcomes against estimates" in run.data.tags["gates"]
    assert run.data.metrics["gate.outcomes_against_estimates.passed"] == 0


def test_too_little_data_is_refused_with_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in days(2, 100):
        write_segment(place / "journal", part)
    assert main(["nightly", "--journal", "journal", "--work", "work", "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["refused_by"] == "enough data"
    assert "200 known outcomes" in report["gates"][0]["words"]
    assert "refused by: enough data" in printed.err and "report.html" in printed.err
    assert "… " not in printed.err  # no progress in a pipe
    [run] = runs()
    assert run.info.status == "FINISHED" and run.data.metrics["gate.enough_data"] == 200
    assert not store().search_registered_models()
    page = (place / "work" / "report.html").read_text()
    assert "Wait for more traffic" in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.long
def test_a_day_that_is_left_out_is_not_learned_from(place: Path) -> None:
    *good, last = days()
    for part in good:
        write_segment(place / "journal", part)
    write_segment(place / "journal", last, flipped=True)
    day = datetime.fromtimestamp(int(last.time_us.min()) / 1e6, UTC).strftime("%Y-%m-%d")
    left_out = night(place, left_out_days=(day,))
    assert left_out.data["inputs"]["rows"] == (DAYS - 1) * PER_DAY
    assert gate(left_out, "outcomes against estimates")["passed"]


@pytest.mark.long
def test_the_same_inputs_make_the_same_version_elsewhere(place: Path) -> None:
    for part in days(5):
        write_segment(place / "journal", part)
    one, other = night(place, "one"), night(place, "other")
    assert one.data["version"] == other.data["version"]
    graphs = set()
    for run in runs():
        folder = Path(run.info.artifact_uri.removeprefix("file://")) / "bundle"
        graphs.add(read_manifest(folder)[2]["graph.onnx"])
    assert len(graphs) == 1


# -- kills ---------------------------------------------------------------------------------------

NIGHT = """
import sys
from pathlib import Path
import importlib.util

spec = importlib.util.spec_from_file_location("nights", sys.argv[1])
nights = importlib.util.module_from_spec(spec)
sys.modules["nights"] = nights
spec.loader.exec_module(nights)
print("ready", flush=True)
report = nights.night(Path.cwd())
print(report.accepted, report.refused_by, flush=True)
"""


def begin() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", NIGHT, __file__], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.stderr.read() if process.stderr else ""
    return process


def kill_in(stage: str, after: float) -> bool:
    """Begin a night and kill it so many seconds into a stage; False when it ended before."""
    before = ("inputs", *STAGES)[STAGES.index(stage)]
    with begin() as process:
        while process.poll() is None and not list(Path("work/nights").glob(f"*/{before}.json")):
            time.sleep(0.002)
        time.sleep(after)
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
    return killed


def check_one_night(place: Path, expected_rows: int) -> None:
    """One run, one version with a whole bundle, all days taken, nothing half-done left."""
    with begin() as process:
        assert process.wait() in (0, 1), process.stderr.read() if process.stderr else ""
    [run] = runs()
    assert run.info.status == "FINISHED"
    [version] = store().search_model_versions("name = 'router'")
    from router_ml.bundle import verify

    verify(Path(version.source.removeprefix("file://")))
    report = json.loads((place / "work" / "report.json").read_text())
    assert report["inputs"]["rows"] == expected_rows
    assert report["registered"] == {"name": "router", "number": 1, "run_id": run.info.run_id}
    assert aliases() == ({"champion": 1} if report["accepted"] else {})
    [folder] = (place / "work" / "nights").iterdir()
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".parquet"]
    assert run.data.tags["promoted"] == str(report["accepted"]).lower()
    names = {entry.path for entry in store().list_artifacts(run.info.run_id)}
    assert {"bundle", "report.html", "report.json", "cost_quality.svg", "calibration.svg"} <= names


@pytest.mark.parametrize(
    "stages",
    [("train", "register"), pytest.param((*STAGES, *STAGES), marks=pytest.mark.long)],
    ids=["two stages", "every stage"],
)
def test_a_night_killed_in_a_stage_is_completed_by_the_next_run(place: Path, stages: tuple[str, ...]) -> None:
    rng = random.Random(11)
    for part in days(5):
        write_segment(place / "journal", part)
    killed = [kill_in(stage, rng.uniform(0.0, 0.4)) for stage in stages]
    assert any(killed)
    check_one_night(place, 5 * PER_DAY)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_a_night_killed_at_any_time_is_completed_by_the_next_run(place: Path, seed: int) -> None:
    rng = random.Random(seed)
    for part in days(5):
        write_segment(place / "journal", part)
    while not list(Path("work/nights").glob("*/done.json")):
        with begin() as process:
            time.sleep(rng.uniform(0.05, 8.0))
            process.send_signal(signal.SIGKILL)
    check_one_night(place, 5 * PER_DAY)


def test_a_second_process_waits_for_nobody_and_does_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in days(5):
        write_segment(place / "journal", part)
    with begin() as process:
        while process.poll() is None and not list(Path("work/nights").glob("*/inputs.json")):
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)  # in the midst of its night, however long the other one takes to begin
        assert main(["nightly", "--journal", "journal", "--work", "work"]) == 1
        assert f"process {process.pid}" in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)
    assert len(list((place / "work" / "nights").iterdir())) == 1
