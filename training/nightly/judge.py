"""The fourth stage: the new version beside the champion and the simple baselines, on days that neither saw."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from router_ml.bundle import Bundle, load
from router_ml.catalog import Catalog
from router_ml.errors import BundleError, InputError
from router_ml.router import Router
from router_ml.types import Float64Array
from training import metrics
from training.nightly.changes import changes
from training.nightly.check import CONTRADICTION, FEWEST_TO_COMPARE, agreement, date_of
from training.nightly.choices import chosen, open_version, read_requests
from training.nightly.drift import Earlier, look_for_drift
from training.nightly.judges import Judges, estimates_on, judges_of
from training.nightly.others import best_model, others_of
from training.nightly.pictures import draw
from training.nightly.value import compare

_CHANCE_REPEATS = 200
_CALLS, _ROUNDS = 200, 5
_DAYS_A_MONTH = 365.25 / 12
_DAY_US = 86_400_000_000


def judge(
    outcomes: Path,
    folder: Path,
    new_bundle: Path,
    champion_bundle: Path | None,
    catalog: Catalog | None,
    gathered: dict[str, Any],
    confidence: float,
    earlier: Earlier,
) -> dict[str, Any]:
    """Figures of the new version beside others, and two pictures in `folder`.

    A champion that cannot be opened, or cannot read these logs, is told of and not raised.
    """
    new = load(new_bundle)
    champion, trouble = _champion(champion_bundle)
    from_us = int(new.manifest.split["test_from_us"])
    seen_us = _learned_until(champion)
    if seen_us is not None and seen_us >= gathered["newest_us"]:
        trouble = f"it has learned from rows up to {_iso(seen_us)}, and there is none later to judge it by"
    elif seen_us is not None:
        from_us = max(from_us, seen_us + 1)
    sold = catalog or new.catalog
    requests = read_requests(outcomes, from_us, new, champion)
    before = None
    if champion is not None and trouble is None:
        try:
            before = open_version(outcomes, from_us, champion, sold)
        except (InputError, BundleError) as error:
            trouble = str(error)
    judges = judges_of(requests, open_version(outcomes, from_us, new, sold), before, confidence)
    draw(judges, folder)
    return {
        "from": _iso(from_us),
        "requests": len(requests.data.rows),
        "known": int((~np.isnan(requests.data.rows.success)).sum()),
        "basis": judges.evidence.basis,
        "confidence": confidence,
        "willingness": judges.willingness,
        "champion_trouble": trouble,
        "changes": changes(new, champion, catalog),
        "versus": _versus(judges),
        "calibration": _calibration(judges),
        "agreement": _agreement(judges),
        "latency": _latency(judges, sold),
        "traffic": _traffic(judges),
        "drift": None
        if before is None
        else look_for_drift(outcomes, gathered, Router(before.bundle, catalog=sold), earlier),
    } | _money(judges)


def _champion(path: Path | None) -> tuple[Bundle | None, str | None]:
    if path is None:
        return None, None
    try:
        return load(path), None
    except BundleError as error:
        return None, str(error)


def _learned_until(champion: Bundle | None) -> int | None:
    """Newest row that it has learned from, in Unix microseconds; None: it had no times."""
    end = champion.manifest.training_end if champion else None
    return None if end is None else round(datetime.fromisoformat(end).timestamp() * 1e6)


def _versus(judges: Judges) -> dict[str, Any]:
    own = chosen(judges.new, judges.requests.models)
    found = {}
    for name, others in others_of(judges).items():
        pairs = compare(
            judges.requests,
            judges.evidence,
            own,
            others,
            judges.q_success,
            judges.q_cost,
            judges.willingness,
            judges.confidence,
        )
        found[name] = {figure: difference.to_dict() for figure, difference in pairs.items()}
    return found


def _traffic(judges: Judges) -> dict[str, dict[str, float]]:
    """Share of the requests that goes to each model, the most first."""
    versions = {"new": judges.new} | ({"champion": judges.champion} if judges.champion else {})
    names = judges.requests.models
    found = {}
    for name, version in versions.items():
        models = chosen(version, names)
        share = np.bincount(models[models >= 0], minlength=len(names)) / len(models)
        found[name] = {names[j]: float(share[j]) for j in np.argsort(-share, kind="stable") if share[j] > 0}
    return found


def _money(judges: Judges) -> dict[str, Any]:
    """Requests a month at the traffic of these days."""
    times = judges.requests.data.rows.time_us
    days = max((int(times.max()) - int(times.min())) / _DAY_US, 1 / 24)
    asked = len(judges.evidence.row) if judges.evidence.estimator == "direct" else len(times)
    best = judges.requests.models[int(best_model(judges)[0])]
    return {"requests_per_month": asked / days * _DAYS_A_MONTH, "best_model": best}


def _calibration(judges: Judges) -> dict[str, Any]:
    rows, action = judges.requests.data.rows, judges.requests.action
    at = np.arange(len(rows))
    known = ~np.isnan(rows.success)
    own, _ = estimates_on(judges.new, judges.requests)
    p = own[at, action]
    both = known & ~np.isnan(p)
    found: dict[str, Any] = {"n": int(both.sum()), "ece": None, "chance": None, "brier": None, "champion_ece": None}
    if not both.any():
        return found
    found["ece"] = metrics.calibration_error(p[both], rows.success[both])
    found["brier"] = metrics.brier(p[both], rows.success[both])
    found["chance"] = _by_chance(p[both])
    if judges.champion is not None:
        theirs = estimates_on(judges.champion, judges.requests)[0][at, action]
        same = both & ~np.isnan(theirs)
        found["champion_ece"] = metrics.calibration_error(theirs[same], rows.success[same]) if same.any() else None
    return found


def _by_chance(p: Float64Array) -> float:
    """Calibration error that perfect estimates show on so many outcomes, 95th percentile."""
    rng = np.random.default_rng(0)
    drawn = [metrics.calibration_error(p, (rng.random(len(p)) < p).astype(np.float64)) for _ in range(_CHANCE_REPEATS)]
    return float(np.quantile(drawn, 0.95))


def _agreement(judges: Judges) -> dict[str, Any]:
    """Do the outcomes of each day agree with estimates that were made without them? The day that does so least."""
    rows, action = judges.requests.data.rows, judges.requests.action
    version = judges.champion or judges.new
    p = estimates_on(version, judges.requests)[0][np.arange(len(rows)), action]
    known = ~np.isnan(rows.success) & ~np.isnan(p)
    worst: dict[str, Any] = {"day": None, "n": int(known.sum()), "correlation": None, "standard_errors": None}
    contradicting = []
    for number in np.unique(rows.time_us // _DAY_US):
        inside = known & (rows.time_us // _DAY_US == number)
        if inside.sum() < FEWEST_TO_COMPARE:
            continue
        r, z = agreement(p[inside], rows.success[inside], action[inside])
        if worst["standard_errors"] is None or z < worst["standard_errors"]:
            worst = {"day": date_of(int(number)), "n": int(inside.sum()), "correlation": r, "standard_errors": z}
        if z < CONTRADICTION:
            contradicting.append(date_of(int(number)))
    return worst | {"contradicting": contradicting}


def _latency(judges: Judges, catalog: Catalog) -> dict[str, float | None]:
    """Median µs of a decision in this process: best of some rounds, versions in turn, as other work may interfere."""
    texts = judges.requests.text[:_CALLS]
    if not texts:
        return {"new_us": None, "champion_us": None}
    versions = {"new": judges.new} | ({"champion": judges.champion} if judges.champion else {})
    routers = {name: Router(version.bundle, catalog=catalog) for name, version in versions.items()}
    best = dict.fromkeys(routers, np.inf)
    for _ in range(_ROUNDS):
        for name, router in routers.items():
            if router.bundle.tokenizer is not None:
                best[name] = min(best[name], median(_timed(router, texts)))
    return {
        f"{name}_us": float(best[name]) if np.isfinite(best.get(name, np.inf)) else None for name in ("new", "champion")
    }


def _timed(router: Router, texts: tuple[str, ...]) -> list[float]:
    spans = []
    for text in texts:
        begun = time.perf_counter_ns()
        router.route(text)
        spans.append((time.perf_counter_ns() - begun) / 1000)
    return spans


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")
