"""Three weeks of a simulated company: a real server that explores, a night after each day, a world that changes.

Week one: imported logs, then the first champion serves. Week two: a supplier quietly makes a model worse and harder
prompts come in; on one day success and failure are exchanged. Week three: a new model, tried on a small share of
the traffic. The server's clock is the wall clock, so each day's journal is set to the simulated day before its night.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from router_ml.bundle import load
from router_ml.client import RouterClient
from router_ml.journal import OutcomeReport
from training.nightly.choices import open_version
from training.nightly.inputs import NightlySettings
from training.nightly.run import NightReport, run_nightly
from training.outcomes import write_outcomes
from training.registry import RegistrySettings, champion_number, resolve
from training.synthetic.prices import default_catalog
from training.synthetic.table import outcome_batch
from training.synthetic.traffic import Drift, NewModel, TrafficSettings, TrafficSlice, draw_traffic
from training.synthetic.world import World, WorldSettings

DAYS, PER_DAY = 21, 800
LOGGED_DAYS = 4
"""Served by the company's old rule, as are later ones until there is a champion; the first night follows them."""
DRIFT_DAY, SABOTAGED_DAY, NEW_MODEL_DAY = 8, 11, 14
TRIED = 60
"""Requests a day that try the new model, from its day on."""
PRICE_OF_SUCCESS = 0.05
"""US dollars that a success is worth, for regret: at this price, choosing by the truth keeps 97 to 98 % of the best
model's success on the first days, which is what versions are asked for."""
EXPLORE = ("--explore", "15%", "--explore-cost-multiple", "100", "--explore-floor", "0.2")


@dataclass
class Day:
    """One simulated day, and what the router did on it."""

    part: TrafficSlice
    regret: float | None = None
    """Mean success per request that the best choice would have brought more, net of cost; None: not routed."""
    old_regret: float = 0.0
    """The same of the company's old rule."""
    night: NightReport | None = None

    @property
    def alarms(self) -> list[str]:
        drift = self.night.data["drift"] if self.night else None
        return [f["words"] for f in drift["findings"] if f["alarm"]] if drift else []


def net_value(part: TrafficSlice) -> np.ndarray:
    """[n, m], true probability of success less the cost in successes; minus infinity where a model cannot be called."""
    value = part.world.true_success(part.prompts) - part.expected_cost() / PRICE_OF_SUCCESS
    return np.where(part.available, value, -np.inf)


def old_regret(part: TrafficSlice) -> float:
    value = net_value(part)
    return float(np.mean(value.max(axis=1) - value[np.arange(len(value)), part.chosen]))


@contextmanager
def server(journal: Path) -> Iterator[str]:
    options = ("--model", "models:/router@champion", "--listen", "127.0.0.1:0", "--journal", str(journal), *EXPLORE)
    command = [sys.executable, "-m", "router_ml.cli", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" on (\S+:\d+);", process.stdout.readline())
            assert found is not None
            yield found[1]
        finally:
            process.terminate()


def serve_day(day: Day, wall: Path, *, flipped: bool) -> dict[str, int]:
    """Route the day's requests through a real server and report what came of them; decision id -> request."""
    part, names = day.part, day.part.world.models
    value, best = net_value(day.part), net_value(day.part).max(axis=1)
    made: dict[str, int] = {}
    regret = []
    tokens = part.world.input_tokens(part.prompts)
    cost = part.world.price(tokens, part.outcomes.output_tokens, part.cached_tokens)
    with server(wall) as address, RouterClient(address, timeout_s=10.0) as client:
        reports = []
        for i, text in enumerate(part.prompts.texts):
            segment = part.world.segments[part.prompts.segment[i]].name
            decision = client.route(text, segment=segment, session_id=part.session_ids[i])
            model = names.index(decision.model)
            success = float(part.outcomes.success[i, model])
            made[decision.decision_id] = i
            regret.append(best[i] - value[i, model])
            reports.append(
                OutcomeReport(
                    decision.decision_id,
                    success=1 - success if flipped else success,
                    output_tokens=int(part.outcomes.output_tokens[i, model]),
                    cost_usd=float(cost[i, model]),
                    input_tokens=int(tokens[i, model]),
                    latency_ms=float(part.outcomes.latency_ms[i, model]),
                )
            )
        assert client.report(reports).accepted == len(reports)
    day.regret = float(np.mean(regret))
    return made


def to_simulated_clock(wall: Path, journal: Path, part: TrafficSlice, made: dict[str, int]) -> None:
    """The closed segments of a day, each record at the time of its request in the simulated world."""
    journal.mkdir(exist_ok=True)
    begin = datetime.fromtimestamp(int(part.time_us.min()) / 1e6, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    for number, segment in enumerate(sorted(wall.glob("*.jsonl")), 1):
        lines = []
        for line in segment.read_text().splitlines():
            [(kind, record)] = json.loads(line).items()
            if "decision_id" in record:
                later = 1_000_000 * (kind == "outcome")
                record["time_unix_micros"] = str(int(part.time_us[made[record["decision_id"]]]) + later)
            lines.append(json.dumps({kind: record}) + "\n")
        (journal / f"{begin}-server-{number:06d}.jsonl").write_text("".join(lines))


def true_success_of(day: Day, days: list[Day], outcomes: Path) -> float:
    """Mean true success of what tonight's version would do with the requests that it was judged on."""
    assert day.night is not None
    number = day.night.data["registered"]["number"]
    opened = load(resolve(f"models:/router/{number}", RegistrySettings()))
    since = datetime.fromisoformat(day.night.data["judged"]["from"]).timestamp() * 1e6
    found = []
    for other in days:
        rows = other.part.time_us >= since
        if other.part.day == SABOTAGED_DAY or other.part.day > day.part.day or not rows.any():
            continue
        write_outcomes(outcomes, [outcome_batch(other.part, full_information=False)])
        version = open_version(outcomes, 0, opened, default_catalog())
        chosen = version.policy.column[version.policy.choose(version.estimates).chosen][version.data.rows.prompt]
        place = [other.part.world.models.index(name) for name in version.policy.models]
        order = np.argsort(other.part.time_us, kind="stable")
        truth = other.part.world.true_success(other.part.prompts)[order, np.array(place)[chosen]]
        found.append(truth[rows[order]])
    return float(np.concatenate(found).mean())


@pytest.mark.long
def test_three_weeks_of_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = default_catalog()
    world = World.create(7, WorldSettings())
    new_model = world.models[-1]
    settings = TrafficSettings(
        days=DAYS,
        requests_per_day=PER_DAY,
        drift=Drift(DRIFT_DAY, "gpt-5.4"),
        new_model=NewModel(NEW_MODEL_DAY, new_model),
    )
    days = [Day(part, old_regret=old_regret(part)) for part in draw_traffic(world, settings)]
    assert len(days) == DAYS
    imported = tmp_path / "imported"
    imported.mkdir()
    left_out: tuple[str, ...] = ()
    for day in days:
        number = day.part.day
        if number < LOGGED_DAYS or champion_number() is None:
            batch = outcome_batch(day.part, full_information=False)
            write_outcomes(imported / f"day-{number:02d}.parquet", [batch])
            if number < LOGGED_DAYS - 1:
                continue
        else:
            wall = tmp_path / f"wall-{number}"
            made = serve_day(day, wall, flipped=number == SABOTAGED_DAY)
            to_simulated_clock(wall, tmp_path / "journal", day.part, made)
        if number >= NEW_MODEL_DAY:
            tried = outcome_batch(day.part, full_information=False).slice(0, TRIED)
            write_outcomes(imported / f"tried-{number:02d}.parquet", [tried])
        journal = tmp_path / "journal" if (tmp_path / "journal").exists() else None
        day.night = run_nightly(
            NightlySettings(tmp_path / "work", journal, (imported,), catalog, left_out_days=left_out),
            lambda line: None,
        )
        print(
            f"day {number}: regret {day.regret if day.regret is None else round(day.regret, 4)} "
            f"(old rule {day.old_regret:.4f}), "
            f"{'accepted' if day.night.accepted else 'refused by ' + day.night.refused_by}; "
            f"{[gate['words'] for gate in day.night.data['gates'] if not gate['passed']]} "
            f"{len(day.alarms)} alarms {day.alarms[:2]}",
            flush=True,
        )
        if number == SABOTAGED_DAY:
            left_out = (day.night.data["inputs"]["by_day"][-1]["day"],)

    sabotaged = days[SABOTAGED_DAY].night
    assert sabotaged is not None and not sabotaged.accepted
    assert any(left_out[0] in gate["advice"] for gate in sabotaged.data["gates"] if not gate["passed"])

    assert any(days[DRIFT_DAY + k].alarms for k in range(2)), "drift is told on its night"
    # The change from the old rule to the router is one too, so the first days that it serves are left out.
    steady = [day for day in days[LOGGED_DAYS + 2 : DRIFT_DAY] if day.night]
    assert not any(day.alarms for day in steady)

    routed = {day.part.day: day for day in days if day.regret is not None}
    regrets = {number: day.regret for number, day in routed.items()}
    assert np.mean([*regrets.values()]) < np.mean([day.old_regret for day in routed.values()])
    # The new model is better for many prompts, so regret leaps on its day and falls as the nights learn of it.
    came, last = (
        np.mean([regrets[k] for k in span]) for span in ((NEW_MODEL_DAY, NEW_MODEL_DAY + 1), (DAYS - 2, DAYS - 1))
    )
    assert last < 0.9 * came, regrets
    assert new_model in next(day.night for day in reversed(days) if day.night).data["traffic"]["new"]

    accepted = [day for day in days if day.night is not None and day.night.accepted]
    assert len(accepted) >= 3
    agree = []
    for day in accepted:
        assert day.night is not None
        found = day.night.data["versus"]["best model"]["success"]
        if found["new_low"] is not None:
            truth = true_success_of(day, days, tmp_path / "judged.parquet")
            agree.append(found["new_low"] <= truth <= found["new_high"])
            print(f"day {day.part.day}: {found['new_low']:.3f} <= {truth:.3f} <= {found['new_high']:.3f}", flush=True)
    # Each interval holds the truth with 95 % probability, so of some twelve one may miss it.
    assert np.mean(agree) >= 0.8
