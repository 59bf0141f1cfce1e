"""The whole benchmark: every table, every split, every study, in one report. Tables run side by side on the cores."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from router_ml.errors import InputError
from training import metrics
from training.benchmark.contest import Round, fit_router, play
from training.benchmark.little_data import SmallTable, little_data
from training.benchmark.speed import Speed, measure_speed
from training.benchmark.stability import Flips, stability
from training.benchmark.standings import Draws, Standing, pooled, standing
from training.benchmark.tables import Parts, Table, read_table, split_parts, text_column
from training.encoder import EncoderSettings, prepare_encoder
from training.fit import FitSettings
from training.metrics import SweepPoints
from training.pipeline import Say, TrainSettings, train
from training.promise import fix_paths
from training.resplit import ResplitSettings, ResplitStudy, study_promise
from training.split import SplitSettings
from training.synthetic.simulate import SimulateSettings, run_simulate
from training.trees import TreeSettings

STUDIES = ("little-data", "promise", "stability", "speed")
_FIRST_SEED = 101
"""Of the random splits; the defaults were chosen on others."""
_TEST_SHARE = 0.3
_SIMULATED = SimulateSettings(days=5, requests_per_day=800, seed=2026, full_information=True)
_LIKE_ELEVEN_MODELS = 11


@dataclass(frozen=True, slots=True)
class BenchmarkSettings:
    """What the command line asks for."""

    tables: tuple[Path, ...] = ()
    prompt_columns: tuple[str, ...] = ("prompt",)
    """The first that a file of `tables` holds is its text."""
    simulated: bool = True
    n_splits: int = 5
    studies: tuple[str, ...] = STUDIES
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)

    def prompt_columns_of(self, path: Path) -> tuple[str, ...]:
        """Those of a file; the simulated one has its own, whatever the columns of `tables` are."""
        return self.prompt_columns if path in self.tables else ("prompt",)


@dataclass(frozen=True, slots=True)
class Curves:
    """Sweeps of one split, for a picture."""

    points: dict[str, SweepPoints]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableReport:
    """All that one table gave."""

    name: str
    standings: dict[bool, Standing]
    """Of the random splits, by whether the segment is known."""
    draws: dict[bool, Draws]
    own_split: dict[bool, Standing]
    """Of the file's own split; empty where it has none."""
    curves: dict[bool, Curves]
    """Of the first random split."""
    little_data: tuple[SmallTable, ...]
    promise: ResplitStudy | None
    flips: tuple[Flips, ...]
    counts_calls: bool
    fingerprint: str
    """Of the rows."""


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """Tables, and all of them together."""

    tables: tuple[TableReport, ...]
    pooled: tuple[Standing, ...]
    """With the segment known, and hidden."""
    speed: Speed | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        tables = {
            table.name: {
                "standings": [each.to_dict() for each in table.standings.values()],
                "own_split": [each.to_dict() for each in table.own_split.values()],
                "little_data": [each.to_dict() for each in table.little_data],
                "promise": table.promise.to_dict() if table.promise else None,
                "stability": [each.to_dict() for each in table.flips],
            }
            for table in self.tables
        }
        speed = asdict(self.speed) if self.speed else None
        return {"tables": tables, "pooled": [each.to_dict() for each in self.pooled], "speed": speed}

    def metrics(self) -> dict[str, float]:
        """Figures that MLflow compares between runs: AIQ, cost at 99 % and Brier of everyone on every table."""
        found: dict[str, float | None] = {}
        for name, one in self._named():
            for contestant, line in one.lines.items():
                figures = {"aiq": line.aiq, "cost_share_99": line.cost_share_99, "brier": line.brier}
                found |= {f"{name}.{_key(contestant)}.{figure}": value for figure, value in figures.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _named(self) -> Iterator[tuple[str, Standing]]:
        for known in (True, False):
            kind = "known" if known else "hidden"
            yield from ((f"{_key(table.name)}.{kind}", table.standings[known]) for table in self.tables)
            yield f"all.{kind}", self.pooled[0 if known else 1]


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w]+", "_", name).strip("_")


def run_benchmark(settings: BenchmarkSettings, say: Say) -> BenchmarkReport:
    """Play everything; InputError names a table that cannot be read or judged by."""
    if not settings.tables and not settings.simulated:
        raise InputError("there is nothing to benchmark on: give outcome tables, or leave out --no-simulated")
    prepare_encoder(settings.encoder)  # once, not in every process
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        paths = list(settings.tables)
        if settings.simulated:
            paths.append(Path(scratch) / "simulated.parquet")
            run_simulate(paths[-1], _SIMULATED)
        tables = _all_tables(paths, settings, say)
        speed = None
        if "speed" in settings.studies:
            say("training a bundle and measuring decisions")
            speed = _speed(paths, tables, settings, Path(scratch))
    together = [
        pooled([table.standings[known] for table in tables], [table.draws[known] for table in tables])
        for known in (True, False)
    ]
    return BenchmarkReport(tuple(tables), tuple(together), speed)


def _all_tables(paths: Sequence[Path], settings: BenchmarkSettings, say: Say) -> list[TableReport]:
    """In order of `paths`, in as many processes as asked for."""
    say(f"playing {len(paths)} tables with {settings.n_splits} random splits each; this takes minutes a table")
    if settings.jobs == 1 or len(paths) == 1:
        return [_one_table(path, settings) for path in paths]
    with ProcessPoolExecutor(min(settings.jobs, len(paths)), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(_one_table, path, settings): path for path in paths}
        try:
            for done in as_completed(running):
                done.result()
                say(f"{running[done].stem} is done")
        except BaseException:
            for process in active_children():  # or whoever mistyped a column would wait minutes to be told
                process.terminate()
            raise
        return [done.result() for done in running]


def _one_table(path: Path, settings: BenchmarkSettings) -> TableReport:
    """One thread of mathematics, so that tables side by side do not wait for each other."""
    with threadpool_limits(1), tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        table = read_table(path, settings.prompt_columns_of(path), Path(scratch) / "rejects.jsonl", settings.encoder)
        return table_report(table, settings)


def table_report(table: Table, settings: BenchmarkSettings) -> TableReport:
    """All contests and studies of one table."""
    fit = FitSettings(trees=TreeSettings(n_threads=1))
    seeds = range(_FIRST_SEED, _FIRST_SEED + settings.n_splits)
    splits = [split_parts(table, SplitSettings(test_share=_TEST_SHARE, by="random", seed=seed)) for seed in seeds]
    own = _own_split(table)
    views = {True: table, False: table.hidden()}
    standings, draws, own_split, curves = {}, {}, {}, {}
    for known, view in views.items():
        rounds = [play(view, parts, fit) for parts in splits]
        standings[known], draws[known] = standing(rounds, len(table.texts))
        curves[known] = _curves(rounds[0])
        if own:
            own_split[known] = standing([play(view, own, fit)], len(table.texts))[0]
    studies = settings.studies
    return TableReport(
        name=table.name,
        standings=standings,
        draws=draws,
        own_split=own_split,
        curves=curves,
        little_data=tuple(little_data(table, splits, fit)) if "little-data" in studies else (),
        promise=promise_study(table, splits[0], fit) if "promise" in studies else None,
        flips=tuple(stability(view, splits[0], fit) for view in views.values()) if "stability" in studies else (),
        counts_calls=table.counts_calls,
        fingerprint=table.data.fingerprint,
    )


def promise_study(table: Table, parts: Parts, settings: FitSettings) -> ResplitStudy:
    """Points set on random halves of what was not fitted on, and judged on the rest; see `training.resplit`."""
    router = fit_router(table, parts.fit, settings)
    index = np.sort(np.concatenate([parts.tune, parts.test]))
    block = metrics.complete_block(~np.isnan(table.success[index]) & ~np.isnan(table.cost_usd[index]))
    index = index[block.rows]
    policy = router.policy(block.columns)
    paths = fix_paths(policy, router.estimates(table, parts.fit))
    estimates = router.estimates(table, index)
    return study_promise(policy, estimates, table.success[index], table.cost_usd[index], paths, ResplitSettings())


def _own_split(table: Table) -> Parts | None:
    """The file's own, or by time; None where it has neither."""
    parts = split_parts(table, SplitSettings())
    return None if parts.name.startswith("seed") else parts


def _curves(one: Round) -> Curves:
    points = {name: metrics.sweep_points(one.success, one.cost_usd, each) for name, each in one.choices.items()}
    return Curves(points, one.compared)


def _speed(paths: Sequence[Path], tables: Sequence[TableReport], settings: BenchmarkSettings, scratch: Path) -> Speed:
    """Of the table whose number of models is nearest to eleven and that logs costs."""
    priced = [k for k, table in enumerate(tables) if not table.counts_calls]
    if not priced:
        raise InputError("to measure speed, a table with logged costs is needed; leave out that study")
    at = min(priced, key=lambda k: abs(tables[k].standings[True].n_models - _LIKE_ELEVEN_MODELS))
    columns = settings.prompt_columns_of(paths[at])
    table = read_table(paths[at], columns, scratch / "rejects.jsonl", settings.encoder)
    chosen = TrainSettings(encoder=settings.encoder, prompt_column=text_column(paths[at], columns))
    train([paths[at]], None, chosen, scratch / "rejects.jsonl", lambda line: None).write(scratch / "bundle")
    return measure_speed(table.name, scratch / "bundle", table.texts)
