"""What readings of A/B tests are worth: `python tests/benchmarks/ab_study.py [--tests 2000] [--jobs 2]`.

Simulates tests whose truth is known (`training/synthetic/experiment.py`: sessions of heavy tail that last for
days, outcomes that come late for some requests only) and prints, as tables of docs/ab.md: wrong verdicts of tests of
two equal arms, looked at every day; coverage; power and time to decision with and without covariates; how soon a
broken split is found; after how many requests a harmful challenger is stopped. Some ten minutes of processor time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.stats import norm

from training.ab.contrast import Contrast, contrast
from training.ab.health import Weight
from training.ab.metrics import COST, FAILED, SUCCESS, Metric
from training.ab.moments import FOLDS, Units, moments
from training.ab.reading import read_test
from training.ab.requests import DAY_US, Requests, UnitKind
from training.ab.sequence import TUNED_DAYS, half_width, progress
from training.ab.split_test import split_evidence
from training.ab.trial import ReadSettings, Share
from training.ab.verdict import Action, Judged, judge
from training.report import table
from training.synthetic.experiment import MEAN_COST_USD, Experiment, ExperimentSettings, draw_experiment

NEVER = np.iinfo(np.int64).max
ALPHA = 0.05
LEVEL = ALPHA / len(ReadSettings().deciding)
SETTLE_DAYS = 2
"""What `settled_after` finds for these delays."""
PARTS = ("equal", "coverage", "power", "guardrail", "whole", "split")
MODES = ("without", "first request", "every request")
AA = ExperimentSettings(days=30, sessions_per_day=200, label_rate=0.5, delayed=True)


def read(e: Experiment, settings: ExperimentSettings, metric: Metric, mode: str, per_day: int = 1) -> Contrast:
    """The challenger minus the control after every look, `per_day` a day."""
    n, n_looks = len(e.session), settings.days * per_day
    came = (e.time * per_day).astype(np.int64)
    look, numerator = came, e.cost_usd
    if metric == FAILED:
        numerator = 1 - e.success
    if metric == SUCCESS:
        known = np.where(np.isfinite(e.known), e.known * per_day, n_looks).astype(np.int64)
        look = np.maximum(known, came + (SETTLE_DAYS * per_day if settings.delayed else 0))
        numerator = e.success
    first = np.searchsorted(e.session, np.arange(len(e.arm)))
    own = e.predicted[np.minimum(first, n - 1)] if mode == MODES[1] else np.empty((len(e.arm), 0))
    every = e.predicted if mode == MODES[2] else None
    fold = np.random.default_rng(1).integers(FOLDS, size=len(e.arm))
    # Arm 0 is the challenger, as `contrast` is called.
    units = Units(1 - e.arm, fold, np.ones(len(e.arm)), own)
    found = moments(units, e.session, look, numerator, np.ones(n), n_looks, 2, every)
    return contrast(found, 0, 1, is_share=metric.is_share)


def outside(found: Contrast, truth: float, alpha: float) -> np.ndarray:
    """Whether the sequence misses `truth` at each look."""
    width = half_width(found.variance, progress(found.variance, found.begun), alpha)
    return np.abs(found.estimate - truth) > width


def first_day(hit: np.ndarray) -> int:
    """Day, from 1; 0: never."""
    return int(np.argmax(hit)) + 1 if hit.any() else 0


# -- equal arms ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EqualArms:
    """One test of two equal arms, looked at on each of 30 days."""

    sequence: bool
    """Success, alone at 5 %, was called different at some look."""
    sequence_cost: bool
    t_test: bool
    """The same by a t-test each day, clustered by session."""
    t_test_requests: bool
    """By a t-test that takes requests for independent."""
    wrong_verdict: bool
    """Some look said promote, or stop for harm."""
    last_look: bool
    """The last look alone, by a t-test clustered by session."""
    split: bool
    """A sound split was called broken."""


def equal_arms(seed: int, settings: ExperimentSettings, mode: str) -> EqualArms:
    e = draw_experiment(np.random.default_rng(seed), settings)
    success, cost = read(e, settings, SUCCESS, mode), read(e, settings, COST, mode)
    plain = read(e, settings, SUCCESS, MODES[0])
    clustered = np.abs(plain.estimate) > norm.ppf(0.975) * np.sqrt(plain.variance)
    day = e.time.astype(np.int64)[np.searchsorted(e.session, np.arange(e.session[-1] + 1))]
    arm = e.arm[: len(day)]
    counts = np.bincount(day * 2 + arm, minlength=2 * settings.days).reshape(-1, 1, 2).cumsum(axis=0)
    evidence = split_evidence(counts, np.array([[1 - settings.share, settings.share]]))
    return EqualArms(
        sequence=bool(outside(success, 0, ALPHA).any()),
        sequence_cost=bool(outside(cost, 0, ALPHA).any()),
        t_test=bool(clustered.any()),
        t_test_requests=bool(request_t_test(e, settings).any()),
        wrong_verdict=wrong_verdict(e, settings, success, cost),
        last_look=bool(clustered[-1]),
        split=bool((evidence >= -np.log(0.01)).any()),
    )


def request_t_test(e: Experiment, settings: ExperimentSettings) -> np.ndarray:
    """Two-sided 5 % t-test of success on every day, requests taken for independent."""
    known = np.isfinite(e.known) & (e.known < settings.days)
    day, arm, y = e.known[known].astype(np.int64), e.arm[e.session][known], e.success[known]
    cell = day * 2 + arm
    n = np.bincount(cell, minlength=2 * settings.days).reshape(-1, 2).cumsum(axis=0)
    mean = np.bincount(cell, y, 2 * settings.days).reshape(-1, 2).cumsum(axis=0) / n
    error = np.sqrt((mean * (1 - mean) / n).sum(axis=1))
    return np.abs(mean[:, 1] - mean[:, 0]) > norm.ppf(0.975) * error


def wrong_verdict(e: Experiment, settings: ExperimentSettings, success: Contrast, cost: Contrast) -> bool:
    """Whether `judge` advises to promote or sees harm after any day."""
    failed = read(e, settings, FAILED, MODES[0])
    margins = {SUCCESS: 0.01, COST: 0.05 * float(cost.control_mean[-1]), FAILED: 0.01}
    bounds = {}
    for metric, found in ((SUCCESS, success), (COST, cost), (FAILED, failed)):
        width = half_width(found.variance, progress(found.variance, found.begun), LEVEL)
        gain = metric.better * found.estimate
        bounds[metric] = np.stack([gain - width, gain + width])
    for day in range(settings.days):
        judged = [
            Judged(metric.words, _known(low), _known(high), margins[metric], metric != FAILED, 1.0)
            for metric, (low, high) in ((metric, bound[:, day]) for metric, bound in bounds.items())
        ]
        verdict = judge(judged, [], never_seen={})
        if verdict.is_harm or verdict.action is Action.PROMOTE:
            return True
    return False


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# -- the whole reading ---------------------------------------------------------------------------


def requests_of(e: Experiment, settings: ExperimentSettings) -> Requests:
    """The test as `read_requests` gives it, at its end."""
    order = np.argsort(e.time, kind="stable")
    n = len(order)
    _, first, inverse = np.unique(e.session[order], return_index=True, return_inverse=True)
    none, zero, unknown = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64), np.full(n, np.nan)
    known = e.known[order] < settings.days
    return Requests(
        arms=("champion", "challenger"),
        segments=("chat", "coding", "legal"),
        versions=(),
        unit_kind=UnitKind.SESSION,
        time_us=(e.time[order] * DAY_US).astype(np.int64),
        arm=e.arm[e.session[order]],
        unit=np.argsort(np.argsort(first))[inverse],
        segment=e.session[order] % 3,
        version=zero - 1,
        success=np.where(known, e.success[order], np.nan),
        cost_usd=e.cost_usd[order],
        latency_ms=unknown,
        input_tokens=unknown,
        cached_input_tokens=unknown,
        failed=none,
        fell_back=none,
        hit_limit=none,
        predicted=e.predicted[order],
        rows_left_out={},
    )


def whole(seed: int, settings: ExperimentSettings) -> tuple[str, tuple[str, ...]]:
    """What `read_test` advises after the last day, and the findings that are more than notes."""
    e = draw_experiment(np.random.default_rng(seed), settings)
    shares = (Share("challenger", settings.share),)
    found = read_test(requests_of(e, settings), ReadSettings(control="champion", shares=shares))
    [challenger] = found.challengers
    harm = " for harm" if challenger.verdict.is_harm else ""
    kinds = tuple(finding.kind for finding in found.findings if finding.weight is not Weight.NOTES)
    return f"{challenger.verdict.action}{harm}", kinds


# -- coverage ------------------------------------------------------------------------------------


def misses(seed: int, settings: ExperimentSettings) -> list[bool]:
    """Whether the sequence missed the true difference at any look: success and cost, by each mode."""
    e = draw_experiment(np.random.default_rng(seed), settings)
    true_cost = settings.cost_effect * MEAN_COST_USD
    return [
        bool(outside(read(e, settings, metric, mode), truth, ALPHA).any())
        for metric, truth in ((SUCCESS, settings.success_effect), (COST, true_cost))
        for mode in MODES
    ]


# -- power ---------------------------------------------------------------------------------------


def days_to_see(seed: int, settings: ExperimentSettings, metric: Metric) -> list[float]:
    """Day on which the sequence leaves zero on the right side (0 never), by each mode; then the variance saved."""
    e = draw_experiment(np.random.default_rng(seed), settings)
    days, saved = [], []
    for mode in MODES:
        found = read(e, settings, metric, mode)
        right = found.estimate * (settings.success_effect + settings.cost_effect) > 0
        days.append(float(first_day(outside(found, 0, LEVEL) & right)))
        saved.append(found.variance_saved)
    return days + saved


# -- guardrail -----------------------------------------------------------------------------------


def requests_to_stop(seed: int, settings: ExperimentSettings, metric: Metric) -> float:
    """Requests of both arms until harm beyond a margin of one point is shown, with a look every hour; or infinite."""
    e = draw_experiment(np.random.default_rng(seed), settings)
    found = read(e, settings, metric, MODES[0], per_day=24)
    # As `progress` has it when a test is read within its days: the first day's end fixes the tuning.
    information = 1 / found.variance
    x = np.where(np.arange(len(information)) < 24, 1, information / information[23]) / TUNED_DAYS
    gain = metric.better * found.estimate
    hit = gain + half_width(found.variance, x, LEVEL) < -0.01
    if not hit.any():
        return float("inf")
    return float((e.time < (first_day(hit) / 24)).sum())


# -- split ---------------------------------------------------------------------------------------


def split_found(rng: np.random.Generator, due: float, got: float, units: int, runs: int, alpha: float) -> float:
    """Share of runs in which a wrong split is found within a day of so many units, looked for every hour."""
    hours = rng.multinomial(units, np.full(24, 1 / 24), size=runs)
    mine = rng.binomial(hours, got)
    counts = np.stack([hours - mine, mine], axis=-1).cumsum(axis=1)
    found = [split_evidence(run[:, None, :], np.array([[1 - due, due]])).max() >= -np.log(alpha) for run in counts]
    return float(np.mean(found))


# -- the study -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=int, default=2000, help="of equal arms; others in proportion")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    begun = time.perf_counter()
    with ProcessPoolExecutor(args.jobs) as pool:

        def over(run: Callable[[int], object], n: int) -> Iterable[object]:
            return pool.map(run, range(n), chunksize=max(1, n // (8 * args.jobs)))

        if "equal" in args.parts:
            print_equal_arms(over, args.tests)
        if "coverage" in args.parts:
            print_coverage(over, args.tests)
        if "power" in args.parts:
            print_power(over, max(2, args.tests // 10))
        if "guardrail" in args.parts:
            print_guardrail(over, max(2, args.tests // 5))
        if "whole" in args.parts:
            print_whole(over, max(2, args.tests // 10))
    if "split" in args.parts:
        print_split(args.tests)
    print(f"\n{time.perf_counter() - begun:.0f} s with {args.jobs} processes")


Over = Callable[[Callable[[int], object], int], Iterable[object]]


def print_equal_arms(over: Over, n: int) -> None:
    print(f"\nequal arms, {n:,} tests each, a look on each of 30 days, {AA.sessions_per_day} sessions a day,")
    print("outcomes known for half of the requests, and late:")
    rows: list[Sequence[str]] = [("called different, or worse", "half and half", "challenger 10 %", "with covariates")]
    columns = [
        list(over(partial(equal_arms, settings=settings, mode=mode), n))
        for settings, mode in (
            (AA, MODES[0]),
            (replace(AA, share=0.1, sessions_per_day=400), MODES[0]),
            (AA, MODES[1]),
        )
    ]
    for name, words in (
        ("wrong_verdict", "verdict (promote, or stop for harm)"),
        ("sequence", "success by the sequence at 95 %"),
        ("sequence_cost", "cost by the sequence at 95 %"),
        ("t_test", "success by a t-test every day, clustered"),
        ("t_test_requests", "success by a t-test every day, requests as independent"),
        ("last_look", "success by one t-test at the end, clustered"),
        ("split", "sound split called broken (at 1 %)"),
    ):
        rows.append((words, *(percent([getattr(run, name) for run in column]) for column in columns)))
    print("\n".join(table(rows)), flush=True)


def print_coverage(over: Over, n: int) -> None:
    print(f"\ntruth inside the sequence at all of 30 looks, nominal 95 %, {n:,} tests each:")
    names = [f"{metric}, {mode}" for metric in ("success", "cost") for mode in MODES]
    rows: list[Sequence[str]] = [("", *names)]
    for words, settings in (
        ("no effect, outcomes late", AA),
        ("success -2 points, cost -20 %, outcomes late", replace(AA, success_effect=-0.02, cost_effect=-0.2)),
        ("the same at once, challenger 10 %", replace(AA, success_effect=-0.02, cost_effect=-0.2, delayed=False,
                                                      label_rate=1.0, share=0.1, sessions_per_day=400)),
    ):  # fmt: skip
        missed = np.array(list(over(partial(misses, settings=settings), n)))
        rows.append((words, *(percent(~column) for column in missed.T)))
    print("\n".join(table(rows)), flush=True)


def print_power(over: Over, n: int) -> None:
    base = ExperimentSettings(days=30, sessions_per_day=4000)
    e = draw_experiment(np.random.default_rng(0), base)
    a_day = len(e.session) / base.days
    print(f"\neffects seen within 30 days at {1 - LEVEL:.2%} (one of three deciding metrics), {n:,} tests each,")
    print(f"half and half, {a_day:,.0f} requests a day in {base.sessions_per_day:,} sessions, all outcomes known:")
    rows: list[Sequence[str]] = [
        ("effect", *(f"{mode}: seen, median day" for mode in MODES), "variance saved: first", "every")
    ]
    for effect in (0.005, 0.01, 0.02):
        settings = replace(base, success_effect=-effect)
        rows.append((f"success -{100 * effect:g} points", *power(over, settings, SUCCESS, n)))
    small = replace(base, sessions_per_day=400)
    rows.append(("with a tenth of that traffic", *[""] * 5))
    for effect in (0.05, 0.1, 0.2):
        settings = replace(small, cost_effect=-effect)
        rows.append((f"cost -{effect:.0%}", *power(over, settings, COST, n)))
    print("\n".join(table(rows)), flush=True)


def power(over: Over, settings: ExperimentSettings, metric: Metric, n: int) -> list[str]:
    found = np.array(list(over(partial(days_to_see, settings=settings, metric=metric), n)))
    cells = []
    for days in found[:, :3].T:
        middle = np.median(np.where(days > 0, days, np.inf))
        cells.append(f"{np.mean(days > 0):.0%}, {'-' if np.isinf(middle) else f'{middle:.0f}'}")
    return cells + [f"{saved:.0%}" for saved in found[:, 4:].mean(axis=0)]


def print_guardrail(over: Over, n: int) -> None:
    print(f"\na challenger that fails 5 points more, looked at every hour, margin 1 point, {n:,} tests each:")
    rows: list[Sequence[str]] = [("", "stopped", "requests of both arms: median", "in 95 % of runs within")]
    for words, settings, metric in (
        ("success 70 %, challenger 50 %", ExperimentSettings(days=4, sessions_per_day=8000), SUCCESS),
        ("success 70 %, challenger 10 %", ExperimentSettings(days=8, sessions_per_day=8000, share=0.1), SUCCESS),
        ("errors 1 %, challenger 50 %", ExperimentSettings(days=5, sessions_per_day=2000, base_success=0.99), FAILED),
        ("errors 1 %, challenger 10 %",
         ExperimentSettings(days=10, sessions_per_day=2000, share=0.1, base_success=0.99), FAILED),
    ):  # fmt: skip
        run = partial(requests_to_stop, settings=replace(settings, success_effect=-0.05), metric=metric)
        stopped = np.array(list(over(run, n)))
        quantile = np.quantile(stopped, [0.5, 0.95], method="higher")
        rows.append((words, f"{np.mean(np.isfinite(stopped)):.1%}", *(f"{q:,.0f}" for q in quantile)))
    print("\n".join(table(rows)), flush=True)


def print_whole(over: Over, n: int) -> None:
    print(f"\nthe whole reading after the last of 30 days, {n:,} tests each, outcomes late:")
    rows: list[Sequence[str]] = [("", *Action, "stop for harm", "any finding")]
    large = replace(AA, sessions_per_day=1000)
    for words, settings in (
        ("equal arms", AA),
        ("equal arms, five times the traffic", large),
        ("cost -20 %, five times the traffic", replace(large, cost_effect=-0.2)),
        ("success -5 points, five times the traffic", replace(large, success_effect=-0.05)),
    ):
        found = list(over(partial(whole, settings=settings), n))
        cells = [percent(action == name for action, _ in found) for name in (*Action, "stop for harm")]
        rows.append((words, *cells, percent(bool(kinds) for _, kinds in found)))
    print("\n".join(table(rows)), flush=True)


def print_split(n: int) -> None:
    rng = np.random.default_rng(3)
    print(
        f"\na wrong split found within a day, looked at every hour, {n:,} runs each (at 1 %, half of it for the whole):"
    )
    sizes = (1_000, 3_000, 10_000, 30_000)
    rows: list[Sequence[str]] = [("should be, is", *(f"{size:,} units a day" for size in sizes))]
    for due, got in ((0.5, 0.5), (0.5, 0.47), (0.5, 0.45), (0.5, 0.4), (0.1, 0.1), (0.1, 0.08), (0.1, 0.05)):
        cells = (f"{split_found(rng, due, got, size, n, 0.005):.1%}" for size in sizes)
        rows.append((f"{due:.0%}, {got:.0%}", *cells))
    print("\n".join(table(rows)), flush=True)


def percent(hits: Iterable[bool]) -> str:
    values = np.array(list(hits), dtype=np.float64)
    return f"{values.mean():.1%} ± {1.96 * np.sqrt(values.mean() * (1 - values.mean()) / len(values)):.1%}"


if __name__ == "__main__":
    main()
