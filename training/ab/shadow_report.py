"""What a shadow tells: agreement, predicted saving, an off-policy estimate, how long it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.off_policy import LoggedRows, clusters_of, compare
from training.off_policy.compare import PolicyComparison, Standard
from training.off_policy.overlap import overlap_of
from training.off_policy.policy_rows import RELATIVE_MARGIN, SUCCESS_MARGIN, label_propensity
from training.registry import Point
from training.shadow_table import read_shadows
from training.text_table import table

_FEWEST = 30
"""Known rewards, as wherever a policy is judged."""


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """Of one shadow."""

    test: str
    decisions: int
    failed: dict[str, int]
    """Why nothing was chosen -> decisions."""
    agrees: float | None
    """Share of the decisions for the model that was served."""
    usd_per_request: float | None
    """Expected of its choices, by its own estimates, which flatter them."""
    served_usd_per_request: float | None
    """Expected of what was served, by the same estimates."""
    p_success: float | None
    served_p_success: float | None
    median_us: float
    p99_us: float
    off_policy: dict[str, PolicyComparison]
    """`success` and `cost_usd` -> its policy against the one that served, by what came of the requests."""
    not_judged: str | None
    """Why there is no off-policy estimate."""
    first: datetime
    last: datetime

    @property
    def saving(self) -> float | None:
        """Predicted, as a share of the expected cost of what was served."""
        if self.usd_per_request is None or not self.served_usd_per_request:
            return None
        return 1 - self.usd_per_request / self.served_usd_per_request

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"saving": self.saving}

    def points(self) -> list[Point]:
        """For the charts of its run."""
        day = (self.last.date() - self.first.date()).days + 1
        values = {
            "shadow.decisions": self.decisions,
            "shadow.agrees": self.agrees,
            "shadow.predicted_saving": self.saving,
            "shadow.median_us": self.median_us,
            "shadow.p99_us": self.p99_us,
        }
        for name, found in self.off_policy.items():
            d = found.difference
            values |= {f"{name}/difference": d.estimate, f"{name}/low": d.low, f"{name}/high": d.high}
        return [Point(name, float(value), day, self.last) for name, value in values.items() if value is not None]


def report_shadow(test: str, journal: Sequence[Path], outcomes: Path) -> ShadowReport:
    """Of the shadow `test` in `journal`, whose outcome table is `outcomes`; InputError where it has not decided yet."""
    shadows = read_shadows(journal)
    shadows = shadows.filter(pc.equal(shadows["test"], test))
    if not len(shadows):
        raise InputError(f"the journal holds no decision of shadow `{test}`")
    errors = shadows["error"].drop_null().to_pylist()
    chosen = shadows.filter(pc.is_null(shadows["error"]))
    both = chosen.filter(pc.and_(pc.is_valid(chosen["cost_usd"]), pc.is_valid(chosen["served_cost_usd"])))
    micros = shadows["decision_us"].to_numpy()
    off_policy, why = _off_policy(chosen, outcomes)
    times = pc.min_max(shadows["timestamp"]).as_py()
    return ShadowReport(
        test=test,
        decisions=len(shadows),
        failed=dict(Counter(errors)),
        agrees=_mean(chosen["agrees"].cast(pa.float64())),
        usd_per_request=_mean(both["cost_usd"]),
        served_usd_per_request=_mean(both["served_cost_usd"]),
        p_success=_mean(both["p_success"]),
        served_p_success=_mean(both["served_p_success"]),
        median_us=float(np.median(micros)),
        p99_us=float(np.quantile(micros, 0.99)),
        off_policy=off_policy,
        not_judged=why,
        first=times["min"].astimezone(UTC),
        last=times["max"].astimezone(UTC),
    )


def _off_policy(shadows: pa.Table, outcomes: Path) -> tuple[dict[str, PolicyComparison], str | None]:
    columns = ["request_id", "prompt_id", "session_id", "segment", "model", "propensity", "success", "cost_usd"]
    served = pq.read_table(outcomes, columns=columns)
    served = served.filter(pc.is_valid(served["propensity"])).rename_columns(
        [f"was_{name}" if name in ("success", "cost_usd", "model") else name for name in columns]
    )
    mine = shadows.drop_columns(["timestamp", "test", "version", "offer", "agrees", "decision_us", "error"])
    rows = mine.join(served, "request_id", join_type="inner").sort_by("request_id")
    if len(rows) < _FEWEST:
        return {}, f"only {len(rows)} of its requests have a propensity; {_FEWEST} are needed"
    models = sorted({*_names(rows["was_model"]), *_names(rows["model"])})
    called, chosen = (_codes(rows[name], models) for name in ("was_model", "model"))
    at = np.arange(len(rows))
    # Where it explores and yet chose as was served, what else it might have chosen is not told: the last column.
    target = np.zeros((len(rows), len(models) + 1))
    same = np.clip(_floats(rows["served_propensity"]), 0.0, 1.0)
    target[at, np.where(chosen == called, len(models), chosen)] = 1 - same
    target[at, called] = same
    segments = _names(rows["segment"])
    segment = _codes(rows["segment"], segments) + 1
    prompt, session = (_codes(rows[name], _names(rows[name])) for name in ("prompt_id", "session_id"))
    cluster = clusters_of(prompt, session)
    found: dict[str, PolicyComparison] = {}
    for name, own, theirs in (
        ("success", "p_success", "served_p_success"),
        ("cost_usd", "cost_usd", "served_cost_usd"),
    ):
        reward = _floats(rows[f"was_{name}"])
        known = ~np.isnan(reward)
        if known.sum() < _FEWEST:
            continue
        q = np.full(target.shape, reward[known].mean())
        for column, estimates in ((chosen, _floats(rows[own])), (called, _floats(rows[theirs]))):
            q[at, column] = np.where(np.isnan(estimates), q[at, column], estimates)
        logged = LoggedRows(
            reward=reward,
            action=called,
            propensity=_floats(rows["propensity"]),
            target=target,
            q=q,
            cluster=cluster,
            label_propensity=None if known.all() else label_propensity(known, called, segment),
        )
        found[name] = compare(logged, overlap_of(logged, segment, segments), standard=_standard(name, reward))
    return found, None if found else f"neither success nor cost is known of {_FEWEST} of its requests"


def _standard(name: str, reward: Float64Array) -> Standard:
    if name == "success":
        return Standard(SUCCESS_MARGIN)
    mean, largest = float(np.nanmean(reward)), float(np.nanmax(reward))
    return Standard(RELATIVE_MARGIN * mean, higher_is_better=False, largest=largest)


def shadow_lines(report: ShadowReport) -> list[str]:
    """For a person."""
    lines = [
        f"shadow {report.test}: {report.decisions:,} decisions, {report.first:%Y-%m-%d %H:%M} to "
        f"{report.last:%Y-%m-%d %H:%M} UTC; median {report.median_us:,.0f} us, 99 % within {report.p99_us:,.0f} us"
    ]
    if report.agrees is not None:
        lines.append(f"  chooses the model that was served in {report.agrees:.1%}")
    if report.saving is not None and report.usd_per_request is not None and report.served_usd_per_request is not None:
        lines.append(
            f"  by its own estimates, which flatter what it chose: ${1000 * report.usd_per_request:,.3f} per 1,000 "
            f"requests instead of ${1000 * report.served_usd_per_request:,.3f} ({-report.saving:+.1%})"
            + (
                ""
                if report.p_success is None or report.served_p_success is None
                else f", success {report.p_success:.1%} instead of {report.served_p_success:.1%}"
            )
        )
    for reason, count in sorted(report.failed.items()):
        lines.append(f"  nothing chosen in {count:,}: {reason}")
    if report.off_policy:
        rows: list[tuple[str, ...]] = [("by what came of the requests", "it", "as served", "difference", "verdict")]
        for name, found in report.off_policy.items():
            words, scale = ("success", 1.0) if name == "success" else ("$ per 1,000 requests", 1000.0)
            d, e = found.difference, found.estimate
            rows.append(
                (
                    words,
                    f"{scale * e.value:.4g}",
                    f"{scale * found.baseline.estimate:.4g}",
                    f"{scale * d.estimate:+.4g} [{scale * d.low:+.4g}, {scale * d.high:+.4g}]",
                    str(found.verdict),
                )
            )
        lines += table(rows)
        lines += [f"  {name}: {found.verdict}, since {found.reason}" for name, found in report.off_policy.items()]
    else:
        lines.append(f"  no off-policy estimate: {report.not_judged}")
    return lines


def _mean(values: pa.ChunkedArray) -> float | None:
    found = pc.mean(values).as_py()
    return None if found is None else float(found)


def _floats(values: pa.ChunkedArray) -> Float64Array:
    return np.asarray(values.cast(pa.float64()).fill_null(np.nan).to_numpy(), dtype=np.float64)


def _names(values: pa.ChunkedArray) -> list[str]:
    return sorted(pc.unique(values.drop_null()).to_pylist())


def _codes(values: pa.ChunkedArray, names: Sequence[str]) -> NDArray[np.int64]:
    """Index into the names, -1 for null."""
    index = pc.index_in(values, pa.array(names, pa.string()))
    return np.asarray(index.fill_null(-1).to_numpy(), dtype=np.int64)
