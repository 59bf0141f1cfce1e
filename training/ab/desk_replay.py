"""Last week's requests through two versions on the desk: agreement, predicted saving, an off-policy estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from router_ml.errors import InputError
from router_ml.router import Router
from router_ml.types import Float64Array, Request
from training.ab.predictor import requests_in
from training.appraise import EvaluateSettings, estimate_logs
from training.off_policy.lines import off_policy_lines
from training.off_policy.policy_report import OffPolicyReport, report_policy
from training.off_policy.policy_rows import NotJudged
from training.outcomes import read_outcomes, write_outcomes
from training.sources import REJECTS_SUFFIX
from training.text_table import table

_MOST_SWITCHES = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """What one version expects of a version's choices, per request."""

    p_success: float | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class DeskReplay:
    """Champion and challenger on the same requests."""

    champion: str
    challenger: str
    first: datetime
    last: datetime
    requests: int
    unread: int
    """That one of the two cannot read: no text, or an embedding of another encoder."""
    unserved: int
    """For which one of the two has no offer that fits."""
    agrees: float
    """Share for which both choose the same model."""
    switches: tuple[tuple[str, str, int], ...]
    """Champion's model, challenger's model, requests; most frequent first."""
    by_challenger: tuple[Judged, Judged]
    """Choices of champion and challenger by the challenger's estimates, which flatter its own choices."""
    by_champion: tuple[Judged, Judged]
    """The same by the champion's."""
    off_policy: OffPolicyReport | None
    """The challenger against what was done, by what came of it, on requests that its training did not see."""
    not_judged: str | None
    rows_used: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay_on_desk(
    tables: Sequence[Path],
    champion: Router,
    challenger: Router,
    *,
    days: int,
    settings: EvaluateSettings,
    scratch: Path,
    say: Callable[[str], None],
) -> DeskReplay:
    """The requests of the latest `days` days of outcome tables; InputError where there is none that both can read.

    Both decide by the prices of their catalogs, for one request at a time; what single requests demanded (regions,
    price caps, models denied) is not in the table.
    """
    say("reading the requests")
    path = scratch / "latest.parquet"
    first, last = _latest(tables, days, settings, path, scratch)
    counts: Counter[tuple[str, str]] = Counter()
    figures: list[Float64Array] = []
    unread = 0
    for batch in read_outcomes([path], prompt_column=settings.prompt_column).batches():
        say("deciding")
        ours, theirs = _both(batch, champion, challenger)
        unread += len(batch) - len(ours)
        if ours:
            models, judged = _decide(champion, challenger, ours, theirs)
            counts.update(models)
            figures.append(judged)
    if not figures:
        raise InputError(
            "no request can be read by both versions: their texts were not kept, and their embeddings are of another "
            "encoder; replay versions that share one (train --encoder BUNDLE)"
        )
    all_figures = np.concatenate(figures)
    served = {pair: n for pair, n in counts.items() if all(pair)}
    n_served = max(sum(served.values()), 1)
    off_policy, why, used = _off_policy(path, challenger, settings, scratch, say)
    means = [_mean(all_figures[:, k]) for k in range(8)]
    switches = sorted(((a, b, n) for (a, b), n in served.items() if a != b), key=lambda row: -row[2])
    return DeskReplay(
        champion=champion.bundle.manifest.version,
        challenger=challenger.bundle.manifest.version,
        first=first,
        last=last,
        requests=len(all_figures),
        unread=unread,
        unserved=sum(counts.values()) - sum(served.values()),
        agrees=sum(n for (a, b), n in served.items() if a == b) / n_served,
        switches=tuple(switches),
        by_challenger=(Judged(means[0], means[1]), Judged(means[2], means[3])),
        by_champion=(Judged(means[4], means[5]), Judged(means[6], means[7])),
        off_policy=off_policy,
        not_judged=why,
        rows_used=used,
    )


def _latest(
    tables: Sequence[Path], days: int, settings: EvaluateSettings, out: Path, scratch: Path
) -> tuple[datetime, datetime]:
    """Write the decided rows of the latest days; when they begin and end."""
    read = read_outcomes(tables, prompt_column=settings.prompt_column, rejects=scratch / f"replay{REJECTS_SUFFIX}")
    found = pa.Table.from_batches(read.batches())
    times = found["timestamp"]
    if times.null_count == len(times):
        raise InputError("no row has a `timestamp`, so the latest days cannot be told; give each request its time")
    last = pc.max(times).as_py()
    found = found.filter(pc.greater(times, pa.scalar(last - timedelta(days=days), times.type)))
    # A fallback's answer is a row of its own, without a propensity, of the same request.
    if found["propensity"].null_count < len(found):
        found = found.filter(pc.is_valid(found["propensity"]))
    first = pc.min(found["timestamp"]).as_py()
    write_outcomes(out, iter(found.to_batches()))
    return first, last


def _both(batch: pa.RecordBatch, champion: Router, challenger: Router) -> tuple[list[Request], list[Request]]:
    """The requests that both can read, as each reads them."""
    asked, read = requests_in(batch, champion)
    theirs, rows = requests_in(batch, challenger)
    by_row = dict(zip(rows, theirs, strict=True))
    pairs = [(one, by_row[row]) for one, row in zip(asked, read, strict=True) if row in by_row]
    return [one for one, _ in pairs], [other for _, other in pairs]


def _decide(
    champion: Router, challenger: Router, ours: list[Request], theirs: list[Request]
) -> tuple[list[tuple[str, str]], Float64Array]:
    """Models chosen by both ("" where nothing fits), and p and cost of both choices by both versions, [n, 8]."""
    routers = champion, challenger
    estimates = champion.estimate(ours), challenger.estimate(theirs)
    choices = [router.policy.choose(each) for router, each in zip(routers, estimates, strict=True)]
    offers = [
        [router.policy.offers[k].name if k >= 0 else "" for k in choice.chosen.tolist()]
        for router, choice in zip(routers, choices, strict=True)
    ]
    models = [
        [router.policy.offers[k].model if k >= 0 else "" for k in choice.chosen.tolist()]
        for router, choice in zip(routers, choices, strict=True)
    ]
    columns = []
    at = np.arange(len(ours))
    for judge in (1, 0):
        policy = routers[judge].policy
        place = {offer.name: k for k, offer in enumerate(policy.offers)}
        for names in offers:
            index = np.array([place.get(name, -1) for name in names])
            known = index >= 0
            p = estimates[judge].p_success[at, policy.column[index]].astype(np.float64)
            columns += [np.where(known, p, np.nan), np.where(known, choices[judge].cost_usd[at, index], np.nan)]
    figures = np.column_stack(columns)
    for pair in (slice(0, 4), slice(4, 8)):
        # Only requests of which both choices are known, so that the two are compared on the same.
        figures[:, pair] = np.where(np.isnan(figures[:, pair]).any(axis=1, keepdims=True), np.nan, figures[:, pair])
    return list(zip(*models, strict=True)), figures


def _off_policy(
    path: Path, challenger: Router, settings: EvaluateSettings, scratch: Path, say: Callable[[str], None]
) -> tuple[OffPolicyReport | None, str | None, str]:
    try:
        found = estimate_logs([path], challenger.bundle, settings, scratch / f"policy{REJECTS_SUFFIX}", say)
    except InputError as error:
        return None, str(error), ""
    judged = report_policy(found.data, found.index, challenger.policy, found.estimates)
    if isinstance(judged, NotJudged):
        return None, judged.reason, found.rows_used
    return judged, None, found.rows_used


def replay_lines(replay: DeskReplay) -> list[str]:
    """For a person."""
    lines = [
        f"{replay.requests:,} requests, {replay.first:%Y-%m-%d %H:%M} to {replay.last:%Y-%m-%d %H:%M} UTC, through "
        f"{replay.champion} and {replay.challenger}",
        f"  both choose the same model in {replay.agrees:.1%}",
    ]
    lines += [f"  {n:,}: {a} -> {b}" for a, b, n in replay.switches[:_MOST_SWITCHES]]
    if replay.unread:
        lines.append(f"  {replay.unread:,} left out: one of the two cannot read them")
    if replay.unserved:
        lines.append(f"  {replay.unserved:,} for which one of the two has no offer that fits")
    rows: list[tuple[str, ...]] = [
        (
            "predicted",
            f"success: {replay.champion}",
            replay.challenger,
            f"$ per 1,000: {replay.champion}",
            replay.challenger,
            "saving",
        )
    ]
    for judge, (old, new) in ((replay.challenger, replay.by_challenger), (replay.champion, replay.by_champion)):
        saving = "unknown" if old.usd is None or new.usd is None or not old.usd else f"{1 - new.usd / old.usd:+.1%}"
        rows.append((f"by {judge}", _share(old), _share(new), _usd(old), _usd(new), saving))
    lines += table(rows)
    lines.append("  each version flatters its own choices; what came of the requests does not:")
    if replay.off_policy is None:
        return [*lines, f"  no off-policy estimate: {replay.not_judged}"]
    return [*lines, f"rows: {replay.rows_used}", *off_policy_lines(replay.off_policy)]


def _share(judged: Judged) -> str:
    return "unknown" if judged.p_success is None else f"{judged.p_success:.1%}"


def _usd(judged: Judged) -> str:
    return "unknown" if judged.usd is None else f"{1000 * judged.usd:,.3f}"


def _mean(values: Float64Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
