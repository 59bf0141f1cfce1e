"""How often drift is reported where there is none, and how soon where there is some.

`python tests/benchmarks/drift_study.py [--nights N] [--made N] [--replications K] [--requests R]`

Trains a champion on 14 simulated days of R requests (default 1000), then judges nights of fresh worlds against
7 days that it did not fit on and against the night before, as `nightly` does. Prints, as tables of Markdown,
1. false alarms over N nights without any change (default 400, 20 to a world), of which the third column is a champion
   that decides itself, with a tenth of the traffic explored, after a reference that another policy logged;
2. the same over many more made nights: no world, but residuals, lengths and embeddings of known distribution;
3. the nights until a change is reported, over K worlds for each change (default 10).
An hour on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import stats

from router_ml.router import Router
from router_ml.types import Request
from training.drift import DriftReport, DriftSettings, DriftState, Kind, Observed, find_drift, observe
from training.outcomes import write_outcomes
from training.pipeline import TrainSettings, train
from training.synthetic.table import outcome_batch, simulate
from training.synthetic.traffic import (
    Drift,
    LongerAnswers,
    NewModel,
    Outage,
    PriceChange,
    PromptDrift,
    TrafficSettings,
    TrafficSlice,
    draw_traffic,
)
from training.synthetic.world import World

TRAINED_DAYS, REFERENCE_DAYS, QUIET_NIGHTS, MOST_NIGHTS = 14, 7, 3, 14
NIGHTS_A_WORLD = 20
EXPLORED = 0.1
MAIN, RARE = "claude-opus-4-6", "claude-haiku-4-5"
"""56 % and 5 % of the requests."""

Table = Callable[[TrafficSlice], pa.Table]


@dataclass(frozen=True)
class Change:
    """One kind of drift, as it starts on a day, and the finding that is to tell it."""

    name: str
    kind: Kind
    subject: str | None
    """None: any."""
    settings: Callable[[int], TrafficSettings]
    spoil: Callable[[pa.Table, np.random.Generator], pa.Table] | None = None
    """What happens to the logs from that day on."""


def changes() -> list[Change]:
    def of(**event: object) -> TrafficSettings:
        return replace(TrafficSettings(), **event)

    def worse(model: str, by: float) -> Callable[[int], TrafficSettings]:
        return lambda day: of(drift=Drift(day, model, -by, segment_shares=None))

    def without(column: str, share: float) -> Callable[[pa.Table, np.random.Generator], pa.Table]:
        def spoil(table: pa.Table, rng: np.random.Generator) -> pa.Table:
            lost = pa.array(rng.random(len(table)) < share)
            place = table.schema.get_field_index(column)
            values = pa.compute.if_else(lost, pa.scalar(None, table.schema.field(column).type), table[column])
            return table.set_column(place, table.schema.field(column), values)

        return spoil

    quiet = lambda day: of()  # noqa: E731
    return [
        Change("main model 1.2 worse in log-odds", Kind.SUCCESS, MAIN, worse(MAIN, 1.2)),
        Change("main model 0.6 worse", Kind.SUCCESS, MAIN, worse(MAIN, 0.6)),
        Change("rare model 1.2 worse", Kind.SUCCESS, RARE, worse(RARE, 1.2)),
        Change("rare model 2.4 worse", Kind.SUCCESS, RARE, worse(RARE, 2.4)),
        Change(
            "30 % of sessions on one topic a segment", Kind.PROMPTS, "", lambda day: of(prompt_drift=PromptDrift(day))
        ),
        Change(
            "10 % of sessions on one topic a segment",
            Kind.PROMPTS,
            "",
            lambda day: of(prompt_drift=PromptDrift(day, 0.1)),
        ),
        Change(
            "segments from 40/25/20/15 % to 28/20/32/20 %",
            Kind.SEGMENTS,
            None,
            lambda day: of(drift=Drift(day, RARE, 0.0)),
        ),
        Change("price of the rare model halved", Kind.PRICE, RARE, lambda day: of(price_change=PriceChange(day, RARE))),
        Change(
            "price of the rare model up by 10 %",
            Kind.PRICE,
            RARE,
            lambda day: of(price_change=PriceChange(day, RARE, 1.1)),
        ),
        Change(
            "answers of the main model 1.3 times as long",
            Kind.OUTPUT_LENGTH,
            MAIN,
            lambda day: of(longer_answers=LongerAnswers(day, MAIN)),
        ),
        Change(
            "answers of the rare model 1.3 times as long",
            Kind.OUTPUT_LENGTH,
            RARE,
            lambda day: of(longer_answers=LongerAnswers(day, RARE)),
        ),
        Change("provider down for six hours", Kind.ERRORS, None, lambda day: of(outage=Outage(day, "anthropic"))),
        Change("a new model", Kind.MODEL_PRESENCE, RARE, lambda day: of(new_model=NewModel(day, RARE))),
        Change("a tenth of the outcomes no longer reported", Kind.LABELS, "", quiet, without("success", 0.1)),
        Change("a tenth of the costs no longer logged", Kind.MISSING, "cost_usd", quiet, without("cost_usd", 0.1)),
    ]


def days(world: World, settings: TrafficSettings, table: Table) -> Iterator[pa.Table]:
    """One table a day."""
    parts: list[pa.Table] = []
    day = 0
    for part in draw_traffic(world, settings):
        if part.day != day:
            yield pa.concat_tables(parts)
            parts, day = [], part.day
        parts.append(table(part))
    yield pa.concat_tables(parts)


def logged(part: TrafficSlice) -> pa.Table:
    return pa.Table.from_batches([outcome_batch(part, full_information=False)])


def by_champion(router: Router) -> Table:
    """Rows as they would be logged if the champion decided, and explored a tenth of the traffic evenly."""

    def decide(part: TrafficSlice) -> pa.Table:
        if part.day < REFERENCE_DAYS:
            return logged(part)
        segments = [part.world.segments[k].name for k in part.prompts.segment]
        requests = [Request(text=text, segment=name) for text, name in zip(part.prompts.texts, segments, strict=True)]
        chosen = router.policy.column[router.policy.choose(router.estimate(requests)).chosen]
        place = np.array([part.world.models.index(name) for name in router.policy.models])
        rng = np.random.default_rng([part.world.seed, part.day])
        m = len(place)
        explored = rng.random(len(chosen)) < EXPLORED
        model = np.where(explored, rng.integers(0, m, len(chosen)), place[chosen])
        return logged(replace(part, chosen=model))

    return decide


def champion(requests: int, folder: Path) -> Router:
    world, logs = World.create(7), folder / "logs.parquet"
    write_outcomes(logs, simulate(world, TrafficSettings(days=TRAINED_DAYS, requests_per_day=requests)))
    trained = train([logs], world.catalog, TrainSettings(), folder / "rejects.jsonl", lambda line: None)
    trained.write(folder / "bundle")
    return Router.load(folder / "bundle")


def run(tables: Iterator[pa.Table], router: Router) -> Iterator[DriftReport]:
    """The reports of all nights after the days of reference."""
    training = observe(pa.concat_tables([next(tables) for _ in range(REFERENCE_DAYS)]), router)
    yield from reports(training, (observe(table, router) for table in tables))


def reports(training: Observed, nights: Iterator[Observed]) -> Iterator[DriftReport]:
    last, state = next(nights), DriftState.empty()
    for k, current in enumerate(nights):
        report = find_drift(current, last_night=last, training=training, night=str(k), state=state)
        yield report
        last, state = current, report.state


# -- nights without change -----------------------------------------------------------------------


@dataclass
class Count:
    """Nights with an alarm, and with anything beyond noise whatever its size."""

    nights: int = 0
    alarms: int = 0
    noise: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, report: DriftReport) -> None:
        self.nights += 1
        self.alarms += bool(report.alarms)
        self.noise += any(finding.beyond_noise for finding in report.findings)
        self.kinds.update(f"{one.kind.value} since {one.since}" for one in report.findings if one.beyond_noise)

    def row(self, name: str) -> str:
        cells = []
        for count in (self.alarms, self.noise):
            low, high = stats.binomtest(count, self.nights).proportion_ci(method="exact")
            cells.append(f"{count} ({count / self.nights:.2%}) [{low:.2%}, {high:.2%}]")
        what = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common()) or "none"
        return f"| {name} | {self.nights:,} | {cells[0]} | {cells[1]} | {what} |"


HEADER = """| nights without change | nights | with an alarm [95 %] | beyond noise, any size [95 %] | which |
|---|---|---|---|---|"""


def quiet_worlds(router: Router, nights: int, requests: int, table: Table) -> Count:
    count = Count()
    for seed in range(-(-nights // NIGHTS_A_WORLD)):
        settings = TrafficSettings(days=REFERENCE_DAYS + 1 + NIGHTS_A_WORLD, requests_per_day=requests)
        for report in run(days(World.create(1000 + seed), settings, table), router):
            count.add(report)
    return count


def made_night(rng: np.random.Generator, requests: int, models: int = 8, size: int = 16) -> Observed:
    """Rows of one night under a champion that is right on average, in sessions of the simulated world's lengths.

    Turns of a session share their segment, much of their embedding, and a part of their difficulty and length.
    """
    turns = np.minimum(np.floor((1 - rng.random(requests)) ** (-1 / 1.5)), 60).astype(int)
    cluster = np.repeat(np.arange(requests), turns)[:requests]
    shared = rng.normal(size=(requests, size))[cluster]
    vector = shared + 0.5 * rng.normal(size=(requests, size))
    vector = (vector / np.linalg.norm(vector, axis=1, keepdims=True)).astype(np.float32)
    share = np.array([0.5, 0.2, *[0.3 / (models - 2)] * (models - 2)])
    model = rng.choice(models, size=requests, p=share)
    # The champion sees a part of the difficulty; the other part is shared by the turns of a session.
    seen, hidden = shared[:, 0], rng.normal(size=requests)[cluster]
    ability = np.linspace(0.5, 3.5, models)[model]
    success = (ability - seen - 0.8 * hidden + rng.logistic(size=requests) > 0).astype(np.float64)
    grid = 0.8 * np.sqrt(2) * np.polynomial.hermite.hermgauss(20)[0]
    weights = np.polynomial.hermite.hermgauss(20)[1] / np.sqrt(np.pi)
    p_success = (weights / (1 + np.exp(-(ability - seen)[:, None] + grid))).sum(axis=1)
    expected = np.exp(5 + 0.3 * seen)
    noise = 0.3 * rng.normal(size=requests)[cluster] + 0.4 * rng.normal(size=requests)
    failed = rng.random(requests) < 0.005
    lost = failed | (rng.random(requests) < 0.2)
    nothing = np.where(failed, np.nan, 1.0)
    return Observed(
        cluster=cluster,
        prompt=np.arange(requests),
        vector=vector,
        segment=np.array(["support", "extraction", "coding", "legal"])[rng.integers(0, 4, requests)[cluster]],
        model=np.array([f"model-{j}" for j in range(models)])[model],
        success=np.where(lost, np.nan, success),
        p_success=p_success,
        output_tokens=nothing * expected * np.exp(noise),
        expected_tokens=expected,
        cost_usd=nothing * 0.01 * np.exp(noise),
        expected_cost=nothing * 0.01 * np.exp(noise),
        billed=~failed,
        failed=failed,
        missing={"success": lost, "cost_usd": failed, "latency_ms": rng.random(requests) < 0.01},
    )


def made_nights(nights: int, requests: int, *, a_reference: int = 20) -> Count:
    count = Count()
    for seed in range(-(-nights // a_reference)):
        rng = np.random.default_rng([5, seed])
        training = made_night(rng, REFERENCE_DAYS * requests)
        for report in reports(training, (made_night(rng, requests) for _ in range(1 + a_reference))):
            count.add(report)
    return count


# -- nights until a change is told ---------------------------------------------------------------


def delays(router: Router, change: Change, worlds: int, requests: int) -> tuple[list[int | None], int, str]:
    """Nights until the right finding alarms (1: on the first night), other alarms before, and its words once."""
    start = REFERENCE_DAYS + 1 + QUIET_NIGHTS
    found: list[int | None] = []
    before, words = 0, ""
    for seed in range(worlds):
        settings = replace(change.settings(start), days=start + MOST_NIGHTS, requests_per_day=requests)
        rng = np.random.default_rng([6, seed])

        def table(part: TrafficSlice, rng: np.random.Generator = rng) -> pa.Table:
            rows = logged(part)
            return change.spoil(rows, rng) if change.spoil and part.day >= start else rows

        found.append(None)
        for k, report in enumerate(run(days(World.create(2000 + seed), settings, table), router)):
            if k < QUIET_NIGHTS:
                before += bool(report.alarms)
                continue
            right = [f for f in report.alarms if f.kind is change.kind and change.subject in (None, f.subject)]
            if right:
                found[-1], words = k - QUIET_NIGHTS + 1, right[0].words
                break
    return found, before, words


def delay_row(name: str, found: list[int | None]) -> str:
    nights = sorted(MOST_NIGHTS + 1 if one is None else one for one in found)
    shown = [f"more than {MOST_NIGHTS}" if night > MOST_NIGHTS else str(night) for night in nights]
    told = sum(one is not None for one in found)
    first = sum(one == 1 for one in found)
    return f"| {name} | {first} of {len(found)} | {shown[len(shown) // 2]} | {shown[-1]} | {told} of {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nights", type=int, default=400, help="of full worlds, without change")
    parser.add_argument("--made", type=int, default=2000, help="made nights without change")
    parser.add_argument("--replications", type=int, default=10, help="worlds for each change")
    parser.add_argument("--requests", type=int, default=1000, help="a day")
    parser.add_argument("--bundle", type=Path, help="a champion trained before, instead of training one")
    args = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        router = Router.load(args.bundle) if args.bundle else champion(args.requests, Path(scratch))
    print(f"allowed: {DriftSettings().false_alarms:.0%} of nights\n\n{HEADER}", flush=True)
    if args.nights:
        print(quiet_worlds(router, args.nights, args.requests, logged).row("worlds"), flush=True)
        print(
            quiet_worlds(router, args.nights, args.requests, by_champion(router)).row("the champion decides"),
            flush=True,
        )
    if args.made:
        print(made_nights(args.made, args.requests).row("made"), flush=True)
    print(
        "\n| change | told on the first night | median night | last | within 14 nights |\n|---|---|---|---|---|",
        flush=True,
    )
    sentences, other = [], 0
    for change in changes() if args.replications else ():
        found, before, words = delays(router, change, args.replications, args.requests)
        print(delay_row(change.name, found), flush=True)
        sentences.append(words)
        other += before
    print(f"\nalarms on the quiet nights before these changes: {other}\n")
    print(*(f"- {words}" for words in sentences if words), sep="\n")
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
