"""Writes simulated production logs, as `router-ml simulate` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from router_ml.catalog import Catalog
from router_ml.errors import InputError
from training.atomic import fresh_file
from training.outcomes import write_outcomes
from training.synthetic.prices import cheapest_offers, typical_cost_usd
from training.synthetic.reporting import Reporting
from training.synthetic.table import TRUTH_SCHEMA, outcome_batch, truth_batch
from training.synthetic.traffic import Drift, NewModel, Outage, PriceChange, TrafficSettings, TrafficSlice, draw_traffic
from training.synthetic.world import World, WorldSettings


@dataclass(frozen=True, slots=True)
class SimulateSettings:
    """What the command line asks for."""

    days: int = 21
    requests_per_day: int = 1000
    seed: int = 7
    full_information: bool = False
    """Every model answers every prompt."""
    drift: bool = False
    """After half of the days the model of middle price gets worse and the prompts get harder."""
    price_change: bool = False
    """After two thirds of the days the dearest model halves its prices."""
    outage: bool = False
    """After a third of the days the ablest model's provider is down for six hours."""
    reporting: Reporting | None = None
    """Which outcomes are reported and how late; None: all, at once."""
    new_model: bool = False
    """The catalog's last model cannot be called before two thirds of the days have passed."""
    start: datetime | None = None
    """Midnight of the first day; None: so that the log ends on the day of the default prices."""
    catalog: Catalog | None = None
    """Models and prices; None: eight real models at list prices."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What the log holds of one model."""

    model: str
    rows: int
    errors: int
    success: float | None
    """Mean of the known outcomes; None where there are none."""
    cost_usd: float
    """Total of the known costs."""


@dataclass(frozen=True, slots=True)
class SimulateReport:
    """What was written."""

    out: str
    truth: str | None
    rows: int
    requests: int
    first: datetime
    last: datetime
    """Time of the last row."""
    models: tuple[ModelReport, ...]
    events: tuple[str, ...]
    """What happened in these days, in words."""


def run_simulate(
    out: Path,
    settings: SimulateSettings | None = None,
    *,
    truth: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SimulateReport:
    """Write a log as an outcome table in Parquet, and the truth behind it (`TRUTH_SCHEMA`) where asked.

    `progress` is called with the days done and the days in all. InputError on a
    setting out of range and on a file that cannot be written.
    """
    settings = settings or SimulateSettings()
    for name, path in (("out", out), ("truth", truth)):
        if path is not None and path.suffix != ".parquet":
            raise InputError(f"`{name}` must be the name of a .parquet file, found {str(path)!r}")
    world = World.create(settings.seed, WorldSettings(catalog=settings.catalog))
    traffic = make_traffic(world, settings)
    count = _Count(world.models)
    parts = _watched(draw_traffic(world, traffic), settings, progress)
    with ExitStack() as stack:
        writer = None
        if truth is not None:
            scratch = stack.enter_context(fresh_file(truth))
            writer = stack.enter_context(pq.ParquetWriter(scratch, TRUTH_SCHEMA))
        write_outcomes(out, _batches(parts, settings, count, writer))
    return count.report(out, truth, _events(traffic))


def make_traffic(world: World, settings: SimulateSettings) -> TrafficSettings:
    """The traffic that the switches stand for, with events on models that the catalog has.

    A switched-on event falls on day 0 at the earliest, so very short logs hold nothing from before it.
    """
    days, catalog = settings.days, world.catalog
    offers = cheapest_offers(catalog)
    by_price = np.argsort([typical_cost_usd(offer) for offer in offers], kind="stable")
    ablest = int(world.profiles.ability.mean(axis=1).argmax())
    provider = offers[ablest].provider
    if settings.outage and provider is None:
        raise InputError(
            f"offer `{offers[ablest].name}` names no `provider`, so none can be down; add it to the catalog"
        )
    return TrafficSettings(
        days=days,
        requests_per_day=settings.requests_per_day,
        start=settings.start,
        full_information=settings.full_information,
        reporting=settings.reporting,
        drift=Drift(days // 2, world.models[by_price[len(by_price) // 2]]) if settings.drift else None,
        price_change=PriceChange(2 * days // 3, world.models[by_price[-1]]) if settings.price_change else None,
        outage=Outage(days // 3, provider) if settings.outage and provider else None,
        new_model=NewModel(2 * days // 3, world.models[-1]) if settings.new_model else None,
    )


def _watched(
    parts: Iterator[TrafficSlice], settings: SimulateSettings, progress: Callable[[int, int], None] | None
) -> Iterator[TrafficSlice]:
    for part in parts:
        yield part
        if progress is not None:
            progress(part.day + 1, settings.days)


def _batches(
    parts: Iterator[TrafficSlice], settings: SimulateSettings, count: _Count, truth: pq.ParquetWriter | None
) -> Iterator[pa.RecordBatch]:
    for part in parts:
        batch = outcome_batch(part, full_information=settings.full_information)
        count.add(batch, len(part.prompts))
        if truth is not None:
            truth.write_batch(truth_batch(part, full_information=settings.full_information))
        yield batch


def _events(traffic: TrafficSettings) -> tuple[str, ...]:
    texts = []
    if (drift := traffic.drift) is not None:
        texts.append(f"day {drift.day}: {drift.model} {drift.ability_change:+.1f} log-odds of success, harder prompts")
    if (change := traffic.price_change) is not None:
        texts.append(f"day {change.day}: {change.model} at {change.factor:g} times its price")
    if (outage := traffic.outage) is not None:
        texts.append(f"day {outage.day}: {outage.provider} down from {outage.hour:g} h for {outage.hours:g} h")
    if (new := traffic.new_model) is not None:
        texts.append(f"day {new.day}: {new.model} appears")
    return tuple(texts)


class _Count:
    """Sums over the batches that went by, for the report."""

    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = models
        self._requests = 0
        self._rows, self._errors, self._known = (np.zeros(len(models), dtype=np.int64) for _ in range(3))
        self._success, self._cost = np.zeros(len(models)), np.zeros(len(models))
        self._first: datetime | None = None
        self._last: datetime | None = None

    def add(self, batch: pa.RecordBatch, n_requests: int) -> None:
        self._requests += n_requests
        for j, model in enumerate(self._models):
            rows = batch.filter(pc.equal(batch["model"], model))
            self._rows[j] += rows.num_rows
            self._errors[j] += rows.num_rows - rows["error"].null_count
            self._known[j] += rows.num_rows - rows["success"].null_count
            self._success[j] += pc.sum(rows["success"], min_count=0).as_py()
            self._cost[j] += pc.sum(rows["cost_usd"], min_count=0).as_py()
        span = pc.min_max(batch["timestamp"]).as_py()
        self._first = span["min"] if self._first is None else min(self._first, span["min"])
        self._last = span["max"] if self._last is None else max(self._last, span["max"])

    def report(self, out: Path, truth: Path | None, events: tuple[str, ...]) -> SimulateReport:
        assert self._first is not None and self._last is not None  # a day has one request or more
        return SimulateReport(
            out=str(out),
            truth=None if truth is None else str(truth),
            rows=int(self._rows.sum()),
            requests=self._requests,
            first=self._first,
            last=self._last,
            models=tuple(self._model(j) for j in range(len(self._models))),
            events=events,
        )

    def _model(self, j: int) -> ModelReport:
        success = float(self._success[j] / self._known[j]) if self._known[j] else None
        return ModelReport(self._models[j], int(self._rows[j]), int(self._errors[j]), success, float(self._cost[j]))
