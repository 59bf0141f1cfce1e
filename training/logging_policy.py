"""With which probability logs chose their models, where they do not say: the logging policy, estimated from them.

The model of a request is predicted from its segment, length, time and prompt by multinomial logistic regression on
top of shrunk frequencies, never from the request itself (cross-fitting: Chernozhukov et al. 2018), and calibrated out
of fold by two numbers: a temperature (Guo et al. 2017) and a share of choices made evenly. An estimate can only know
what these features tell: where something else that bears on success decided as well, say a person who read the prompt,
whatever is weighted by it stays biased, and no diagnosis here shows that. Array letters: r rows, n prompts, m models.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from router_ml.types import Float64Array
from training import metrics
from training.dataset import Dataset

RARE = 0.01
"""A chance below it is taken for none: one outcome would stand for more than a hundred."""
_FOLDS = 3
_MOST_ROWS = 60_000
"""To fit a fold on: a thousand numbers are estimated, and more rows would only cost time."""
_LENGTH_BINS, _TIME_BINS = 8, 8
_EMBEDDING_SIZE = 64
_PRIOR_ROWS = 10.0
"""Rows' worth of the coarser frequency that a finer one is shrunk by."""
_STRENGTHS = (0.003, 0.1, 3.0)
"""Inverse penalties of the regression, tried from strong to weak."""
_GAPS = 3.0
_LEAST = 1e-4
_FEWEST_ROWS = 200
"""Below it frequencies alone are used."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of what another policy would have chosen the log can speak of."""

    smallest: float
    """Least propensity of a choice that was made."""
    share_without: float
    """Share of the rows whose model was all but certain: together the others had less than `RARE`."""
    without_by_segment: dict[str, float]
    """The same share by segment; rows without a segment under an empty name."""
    effective_sample_size: dict[str, float]
    """By model, Kish's: rows of equal weight that say as much of sending it everything as its weighted ones do."""
    never: tuple[tuple[str, str], ...]
    """Segments and models that they never called."""

    @property
    def some(self) -> bool:
        """Whether most rows could have gone elsewhere; if not, what another choice would have brought is a guess."""
        return self.share_without < 0.5

    def line(self) -> str:
        """For the report."""
        model, least = min(self.effective_sample_size.items(), key=lambda pair: pair[1])
        told = f"smallest propensity {self.smallest:.2g}; effective sample size from {least:,.0f} (`{model}`)"
        if self.share_without >= 0.0005:
            told += f"; {self.share_without:.1%} of the rows without overlap"
        if self.never:
            shown = ", ".join(f"`{model}` in `{segment}`" for segment, model in self.never[:3])
            more = f" and {len(self.never) - 3} more" if len(self.never) > 3 else ""
            told += f"; never called: {shown}{more}"
        return told


@dataclass(frozen=True, slots=True)
class LoggedPropensities:
    """The probability with which each row's model was chosen, and what is known of it."""

    propensity: Float64Array
    """[r], logged where logged, else estimated; NaN where no choice was made, since several models answered alike."""
    estimated: NDArray[np.bool_]
    """[r]"""
    overlap: Overlap | None
    """None where no row has a propensity."""
    basis: str
    """What rests on estimates, in a sentence; empty where nothing does."""
    ignored: str
    """Why logged propensities were set aside, in a sentence; empty where none were."""
    calibration_error: float | None = None
    """Expected, of the estimated probabilities of all models, out of fold; None where none were estimated."""

    def logged(self, data: Dataset) -> Dataset:
        """`data`, of which this is, with the propensities that were logged and may be believed."""
        return _with(data, np.where(self.estimated, np.nan, self.propensity))

    def all(self, data: Dataset) -> Dataset:
        """`data` with estimated propensities too: to weigh by, where a bias can be borne, and not to promise on."""
        return _with(data, self.propensity)

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "rows_logged": int((~np.isnan(self.propensity) & ~self.estimated).sum()),
            "rows_estimated": int(self.estimated.sum()),
            "basis": self.basis,
            "ignored": self.ignored,
            "calibration_error": self.calibration_error,
            "overlap": asdict(self.overlap) if self.overlap else None,
        }

    def lines(self) -> list[str]:
        """For a person."""
        found = [self.ignored, self.basis]
        if self.overlap:
            found.append(f"overlap of the logs: {self.overlap.line()}")
        return [line for line in found if line]


def without_certain_answers(data: Dataset) -> tuple[Dataset, str]:
    """`data` with no propensity where several models answered a prompt, each with propensity 1, and a note on it.

    Of one choice only one model can be certain. Such rows are answers of every model that was asked, as in a
    full-information table, or of policies that succeeded one another; either way they weigh one each.
    """
    rows = data.rows
    certain = rows.propensity == 1.0
    m = len(data.models)
    cells = np.unique(rows.prompt[certain] * m + rows.model[certain])
    several = np.bincount(cells // m, minlength=len(data.prompts)) > 1
    wrong = certain & several[rows.prompt]
    if not wrong.any():
        return data, ""
    note = (
        f"propensity 1 on {int(wrong.sum()):,} rows of prompts that several models answered is none: each was asked; "
        "leave it empty there"
    )
    return _with(data, np.where(wrong, np.nan, rows.propensity)), note


def estimate_propensities(data: Dataset, *, seed: int = 0) -> LoggedPropensities:
    """The propensity of every row that was a choice: as logged, or estimated where it is not.

    No choice, so no propensity, are the rows of a prompt that at least half of the models answered equally often.
    A model is taken to be eligible between its first and its last row. Deterministic by `seed`.
    """
    data, ignored = without_certain_answers(data)
    rows = data.rows
    missing = np.isnan(rows.propensity) & ~_answered_alike(data)[rows.prompt]
    propensity, basis, error = rows.propensity.copy(), "", None
    if missing.any():
        part = data.where(missing)
        probability = _cross_fitted(part, seed)
        chosen = probability[np.arange(len(part.rows)), part.rows.model]
        propensity[missing] = np.clip(chosen, _LEAST, 1.0)
        sampled = slice(None, None, -(-len(chosen) // _MOST_ROWS))
        made = np.eye(len(data.models))[part.rows.model[sampled]]
        error = metrics.calibration_error(probability[sampled].ravel(), made.ravel())
        basis = (
            f"the propensities of {missing.mean():.0%} of the rows are not logged but estimated from segment, length, "
            f"time and prompt (calibration error {error:.3f}); what is weighted by them holds only if nothing else "
            "that bears on success decided where requests went"
        )
    known = ~np.isnan(propensity)
    overlap = _overlap(data.where(known), propensity[known]) if known.any() else None
    return LoggedPropensities(propensity, missing, overlap, basis, ignored, error)


def propensities_of_choices(data: Dataset) -> LoggedPropensities:
    """Of the rows by which a policy is judged: as logged where any row has one, estimated where none has.

    Beside logged ones a row without is an answer that nobody chose, as of a fallback; it stays NaN.
    """
    told, ignored = without_certain_answers(data)
    propensity = told.rows.propensity
    if np.isnan(propensity).all():
        return estimate_propensities(data)
    return LoggedPropensities(propensity, np.zeros(len(propensity), dtype=np.bool_), None, "", ignored)


def _with(data: Dataset, propensity: Float64Array) -> Dataset:
    return replace(data, rows=replace(data.rows, propensity=propensity))


def _answered_alike(data: Dataset) -> NDArray[np.bool_]:
    """[n], prompts that two models or more, and at least half of all, answered equally often."""
    m, n = len(data.models), len(data.prompts)
    count = np.bincount(data.rows.prompt * m + data.rows.model, minlength=n * m).reshape(n, m)
    answered = (count > 0).sum(axis=1)
    return np.asarray((answered >= max(2, m / 2)) & (count.sum(axis=1) == answered * count.max(axis=1)))


def _cross_fitted(data: Dataset, seed: int) -> Float64Array:
    """Probability of each model for each row, [r, m], by fits that did not see the row's prompt."""
    rows, m = data.rows, len(data.models)
    rng = np.random.default_rng(seed)
    _, group = np.unique(data.prompts.prompt_id[rows.prompt], return_inverse=True)
    fold = (rng.permutation(group.max() + 1) % _FOLDS)[group]
    features, cell = _features(data)
    inputs = [np.log(_frequencies(data, cell, fold != k)) for k in range(_FOLDS)]
    logits = np.empty((len(rows), m))
    for k in range(_FOLDS):
        logits[fold == k] = inputs[k][fold == k]
    eligible = _eligible(data)
    found, least = _calibrated(logits, eligible, rows.model)
    for strength in _STRENGTHS if len(rows) >= _FEWEST_ROWS else ():
        for k in range(_FOLDS):
            used = np.flatnonzero(fold != k)
            used = np.sort(rng.permutation(used)[:_MOST_ROWS])
            asked = np.flatnonzero(fold == k)
            logits[asked] = _regression(inputs[k], features, rows.model, used, asked, strength)
        tried, loss = _calibrated(logits, eligible, rows.model)
        if loss < least:
            found, least = tried, loss
    return found


def _calibrated(
    logits: Float64Array, eligible: NDArray[np.bool_], model: NDArray[np.int64]
) -> tuple[Float64Array, float]:
    """Probabilities [r, m] of least log loss on the choices made, and that loss.

    Sharpened or blunted by one factor, and mixed with an even chance for all eligible models, which is what
    exploration is and what no sum of features can bend to.
    """
    even = eligible / eligible.sum(axis=1, keepdims=True)
    rows = np.arange(len(model))
    sampled = rows[:: -(-len(rows) // _MOST_ROWS)]

    def probability(at: Float64Array, part: NDArray[np.int64]) -> Float64Array:
        drawn = softmax(np.where(eligible[part], np.exp(at[0]) * logits[part], -np.inf), axis=1)
        share = expit(at[1])
        return np.asarray((1 - share) * drawn + share * even[part])

    def loss(at: Float64Array) -> float:
        chosen = probability(at, sampled)[np.arange(len(sampled)), model[sampled]]
        return float(-np.log(np.maximum(chosen, _LEAST)).mean())

    best = minimize(loss, np.array([0.0, -3.0]), method="L-BFGS-B", bounds=[(-2, 3), (-9, 9)]).x
    return probability(best, rows), loss(best)


def _regression(
    log_frequency: Float64Array,
    features: Float64Array,
    model: NDArray[np.int64],
    used: NDArray[np.int64],
    asked: NDArray[np.int64],
    strength: float,
) -> Float64Array:
    """Log-probabilities [asked, m]; models that the `used` rows lack keep their frequency's."""
    found = np.unique(model[used])
    if len(found) < 2:
        return log_frequency[asked]
    fit = LogisticRegression(C=strength, max_iter=100)
    with warnings.catch_warnings():
        # Where it has not settled it is judged out of fold all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit.fit(np.hstack([log_frequency[used], features[used]]), model[used])
    result = log_frequency[asked].copy()
    result[:, fit.classes_] = fit.predict_log_proba(np.hstack([log_frequency[asked], features[asked]]))
    return result


def _features(data: Dataset) -> tuple[Float64Array, NDArray[np.int64]]:
    """What the regression sees of each row [r, k], and the cell of segment and length that it lies in."""
    p, rows = data.prompts, data.rows
    at = rows.prompt
    segment, length = p.segment[at], _bins(p.n_tokens[at].astype(np.float64), _LENGTH_BINS)
    period = _bins(np.where(rows.time_us < 0, np.nan, rows.time_us), _TIME_BINS)
    dense = np.hstack([p.embedding[at, :_EMBEDDING_SIZE], p.side[at]]).astype(np.float64)
    dense = (dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-6)
    one_hot = [np.eye(each.max() + 1)[each] for each in (segment, length, period)]
    return np.hstack([dense, *one_hot]), segment * (_LENGTH_BINS + 1) + length


def _bins(values: Float64Array, n: int) -> NDArray[np.int64]:
    """[r], the bin of about equal mass that a value lies in, from 1; 0 where it is unknown."""
    known = ~np.isnan(values)
    found = np.zeros(len(values), dtype=np.int64)
    if known.any():
        edges = np.unique(np.quantile(values[known], np.arange(1, n) / n))
        found[known] = 1 + np.searchsorted(edges, values[known])
    return found


def _frequencies(data: Dataset, cell: NDArray[np.int64], used: NDArray[np.bool_]) -> Float64Array:
    """Share of each model in each row's cell among the rows `used`, shrunk to coarser ones, [r, m]."""
    model, segment = data.rows.model, data.prompts.segment[data.rows.prompt]
    m = len(data.models)
    overall = (np.bincount(model[used], minlength=m) + 1.0) / (used.sum() + m)
    shares = np.broadcast_to(overall, (len(model), m))
    for group in (segment, cell):
        count = np.bincount(group[used] * m + model[used], minlength=(group.max() + 1) * m).reshape(-1, m)
        shares = (count[group] + _PRIOR_ROWS * shares) / (count.sum(axis=1)[group, None] + _PRIOR_ROWS)
    return np.asarray(shares)


def _eligible(data: Dataset) -> NDArray[np.bool_]:
    """[r, m], models that had their first row before, and their last after; all where times are unknown.

    A few of its mean gaps beyond them: a model that can be called is not called at once.
    """
    time, model = data.rows.time_us.astype(np.float64), data.rows.model
    m = len(data.models)
    first, last = np.full(m, np.inf), np.full(m, -np.inf)
    np.minimum.at(first, model, time)
    np.maximum.at(last, model, time)
    gap = _GAPS * (last - first) / np.maximum(np.bincount(model, minlength=m) - 1, 1)
    eligible: NDArray[np.bool_] = (time[:, None] >= first - gap) & (time[:, None] <= last + gap)
    eligible[np.arange(len(model)), model] = True
    return eligible


def _overlap(data: Dataset, propensity: Float64Array) -> Overlap:
    model, segment = data.rows.model, data.prompts.segment[data.rows.prompt]
    m, s = len(data.models), len(data.segments)
    weight = 1 / propensity
    total, square = (np.bincount(model, values, m) for values in (weight, weight**2))
    sizes = np.divide(total**2, square, out=np.zeros(m), where=square > 0)
    alone = propensity > 1 - RARE
    rows = np.bincount(segment, minlength=s + 1)
    without = np.bincount(segment, alone, s + 1)
    calls = np.bincount(segment * m + model, minlength=(s + 1) * m).reshape(s + 1, m)
    names = ("", *data.segments)
    return Overlap(
        smallest=float(propensity.min()),
        share_without=float(alone.mean()),
        without_by_segment={names[k]: float(without[k] / rows[k]) for k in range(s + 1) if rows[k]},
        effective_sample_size=dict(zip(data.models, sizes.tolist(), strict=True)),
        never=tuple(
            (names[k], data.models[j]) for k in range(1, s + 1) if rows[k] for j in range(m) if not calls[k, j]
        ),
    )
