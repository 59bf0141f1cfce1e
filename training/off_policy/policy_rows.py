"""From an outcome table and a version to what estimators take: one set of rows per metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.exploration import choice_probabilities
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array
from training.dataset import Dataset, Rows
from training.logging_policy import propensities_of_choices
from training.off_policy.clusters import clusters_of
from training.off_policy.compare import Standard
from training.off_policy.logged import LoggedRows

SUCCESS_MARGIN = 0.02
"""A difference in success that would not matter."""
RELATIVE_MARGIN = 0.05
"""The same of costs and latency, as a share of the mean that was logged."""
_FEWEST_KNOWN = 30
"""Rewards; with fewer a figure is not worth printing."""
_SHRINK = 10.0
"""Rows' worth of a wider group's label rate in a narrower one's."""


@dataclass(frozen=True, slots=True)
class NotJudged:
    """Why the logs cannot be used."""

    reason: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of the rows, and how it is judged."""

    name: str
    rows: LoggedRows
    standard: Standard
    reported: float
    """Share of the rows whose value is known."""


@dataclass(frozen=True, slots=True)
class PolicyRows:
    """The rows on which a policy is judged."""

    metrics: dict[str, Metric]
    """By column: `success`, `cost_usd`, `latency_ms`; those that were logged. At least one."""
    rows: Rows
    at: NDArray[np.int64]
    """[rows], place of each row's prompt among those that were estimated."""
    segment: NDArray[np.int64]
    """[rows], index into the segments plus one; 0 unknown."""
    rests_on: tuple[str, ...]
    """What must hold for the figures to be right."""

    def __len__(self) -> int:
        return len(self.rows)


def policy_rows(
    data: Dataset, index: NDArray[np.int64], policy: Policy, estimates: Estimates
) -> PolicyRows | NotJudged:
    """The rows of `data` that can judge `policy`; `estimates` are of the prompts `index` and saw none of the rows."""
    found = propensities_of_choices(data)
    propensity = found.propensity
    if np.isnan(propensity).all():
        return NotJudged("the rows are answers of several models to each prompt, and no choices of one")
    basis = found.basis or "; ".join(filter(None, ("logged propensities", found.ignored)))
    place = np.full(len(data.prompts), -1)
    place[index] = np.arange(len(index))
    # The server's own policy decides; constraints of single requests are not in the outcome table.
    target = choice_probabilities(policy, estimates)
    served = (target.sum(axis=1) > 0)[place[data.rows.prompt]]
    usable = ~np.isnan(propensity) & served
    if usable.sum() < _FEWEST_KNOWN:
        return NotJudged(f"only {int(usable.sum())} requests have a propensity; {_FEWEST_KNOWN} are needed")
    rows = data.where(usable).rows
    at, segment = place[rows.prompt], data.prompts.segment[rows.prompt]
    _, prompt = np.unique(data.prompts.prompt_id, return_inverse=True)
    cluster = clusters_of(prompt[rows.prompt], rows.session)
    expected = {
        "success": estimates.p_success.astype(np.float64),
        "cost_usd": policy.cheapest(policy.price(estimates)),
        "latency_ms": estimates.latency_ms.astype(np.float64),
    }
    metrics, rests = {}, [basis, "beside chance, the logging policy chose by the prompt alone, or its propensities say"]
    for name, q in expected.items():
        reward = getattr(rows, name)
        known = ~np.isnan(reward)
        if known.sum() < _FEWEST_KNOWN:
            continue
        logged = LoggedRows(
            reward=reward,
            action=rows.model,
            propensity=propensity[usable],
            target=target[at],
            q=_filled(q[at], rows.model, reward),
            cluster=cluster,
            label_propensity=None if known.all() else label_propensity(known, rows.model, segment),
        )
        metrics[name] = Metric(name, logged, _standard(name, reward), float(known.mean()))
        if not known.all():
            rests.append(f"{name} was reported of {known.mean():.0%} of the requests, by model and segment alone")
    if not metrics:
        return NotJudged(f"none of success, cost and latency is known of {_FEWEST_KNOWN} requests with a propensity")
    if not served.all():
        rests.append(f"{int((~served).sum())} requests that fit no offer's limits are left out")
    return PolicyRows(metrics, rows, at, segment, tuple(rests))


def label_propensity(known: NDArray[np.bool_], model: NDArray[np.int64], segment: NDArray[np.int64]) -> Float64Array:
    """Probability [n] that an outcome was reported: its share by model and segment, shrunk to the model's and to all's.

    In (0, 1]; right where nothing else about a request decides whether its outcome is reported.
    """
    rate = np.full(len(known), (known.sum() + 1) / (len(known) + 1))
    for group in (model, segment * (model.max() + 1) + model):
        _, place = np.unique(group, return_inverse=True)
        count, seen = np.bincount(place), np.bincount(place, known)
        rate = (seen[place] + _SHRINK * rate) / (count[place] + _SHRINK)
    return np.asarray(rate)


def _filled(q: Float64Array, action: NDArray[np.int64], reward: Float64Array) -> Float64Array:
    """Estimates without gaps: what is unknown of a model is its mean of the logs, or that of all models.

    Only the direct method would rest on it: the choices of a policy are priced.
    """
    known = ~np.isnan(reward)
    count = np.bincount(action[known], minlength=q.shape[1])
    total = np.bincount(action[known], reward[known], q.shape[1])
    mean = np.where(count > 0, total / np.maximum(count, 1), reward[known].mean())
    return np.where(np.isnan(q), mean, q)


def _standard(name: str, reward: Float64Array) -> Standard:
    if name == "success":
        return Standard(SUCCESS_MARGIN)
    return Standard(
        RELATIVE_MARGIN * float(np.nanmean(reward)), higher_is_better=False, largest=float(np.nanmax(reward))
    )
