"""Whether tonight's prompts and segments are still the same mixture.

Sessions are what is independent, and a few of them hold a great part of the turns, so each counts once,
as the mean over its turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from router_ml.types import Float32Array, Float64Array
from training.drift.clustered import Estimate, Totals, means
from training.drift.observed import Observed
from training.drift.permutation import permutation_p_value

_MOST_SESSIONS = 2500
"""Of each sample, drawn with the seed: bounds the time, and shows what is large enough to matter."""
_FREQUENCIES = 128
_RIDGE = 10.0
"""Of the mean variance of a feature: directions in which sessions always differ a lot count for less, e.g. those
between segments, and what a new topic adds shows besides them."""
_PAIRS = 500
"""To find the typical distance of two prompts."""


def prompts_test(current: Observed, reference: Observed, seed: int) -> tuple[Estimate, float]:
    """How often tonight's sessions are told from the reference's by their prompts, less one half, and the p-value.

    The p-value is that of the kernel Fisher discriminant ratio of the embeddings (Harchaoui, Bach & Moulines 2007:
    the maximum mean discrepancy, with features scaled by their regularised covariance) under a Gaussian kernel as wide
    as their median distance, in random Fourier features (Rahimi & Recht 2007), over permutations of whole sessions.
    The size is what a classifier makes of the same features (a classifier two-sample test: Lopez-Paz & Oquab
    2017): the probability that of two sessions the one from tonight is picked, by the direction in which the means
    of *other* sessions differ. It learns from half of the sessions, so the whole would tell somewhat more.
    """
    rng = np.random.default_rng(seed)
    vectors: list[Float32Array] = []
    sessions: list[NDArray[np.int64]] = []
    for observed in (current, reference):
        assert observed.vector is not None
        rows, session = _drawn(observed, rng)
        vectors.append(observed.vector[observed.prompt[rows]].astype(np.float32))
        sessions.append(session)
    features = _fourier(np.concatenate(vectors), rng)
    now, before = _scaled(
        *(
            _session_means(part, session)
            for part, session in zip(np.split(features, [len(vectors[0])]), sessions, strict=True)
        )
    )
    halves = [rng.permutation(len(part)) % 2 == 1 for part in (now, before)]
    areas = [_area(now, before, *sides) for sides in (halves, [~half for half in halves])]
    value = sum(area.value for area in areas) / 2 - 0.5
    size = Estimate(value, sum(area.variance for area in areas) / 4, sum(area.df for area in areas))
    return size, permutation_p_value(now, before, seed=seed)


def segments_test(current: Observed, reference: Observed, seed: int) -> tuple[str, Estimate, Estimate, float]:
    """The segment whose share of sessions has changed most, its shares now and before, and the p-value of no change.

    Pearson's chi-square distance of the shares, over permutations of whole sessions.
    """
    names = np.unique(np.concatenate([current.segment, reference.segment]))
    rng = np.random.default_rng(seed)
    now, before = (
        _session_means((observed.segment[rows, None] == names).astype(np.float32), session)
        for observed in (current, reference)
        for rows, session in (_drawn(observed, rng),)
    )
    shares = [means(_each_once(one), _each_once(other)) for one, other in zip(now.T, before.T, strict=True)]
    largest = int(np.argmax([abs(one.value - other.value) for one, other in shares]))
    scale = np.float32(1) / np.sqrt(np.concatenate([now, before]).mean(axis=0))
    return str(names[largest]), *shares[largest], permutation_p_value(now * scale, before * scale, seed=seed)


def _drawn(observed: Observed, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of at most `_MOST_SESSIONS` sessions, and their sessions counted from 0."""
    names = np.unique(observed.cluster)
    if len(names) > _MOST_SESSIONS:
        names = rng.choice(names, _MOST_SESSIONS, replace=False)
    rows = np.flatnonzero(np.isin(observed.cluster, names))
    return rows, np.unique(observed.cluster[rows], return_inverse=True)[1].astype(np.int64)


def _session_means(values: Float32Array, session: NDArray[np.int64]) -> Float32Array:
    """[k, f] from rows [r, f]."""
    order = np.argsort(session, kind="stable")
    first = np.flatnonzero(np.diff(session[order], prepend=-1))
    return np.asarray(np.add.reduceat(values[order], first, axis=0) / np.bincount(session)[:, None], dtype=np.float32)


def _fourier(vector: Float32Array, rng: np.random.Generator) -> Float32Array:
    one, other = (vector[rng.integers(0, len(vector), _PAIRS)] for _ in range(2))
    apart = np.sqrt(((one - other) ** 2).sum(axis=1))
    width = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    phase = vector @ (rng.normal(size=(vector.shape[1], _FREQUENCIES)) / width).astype(np.float32)
    return np.asarray(np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / np.float32(np.sqrt(_FREQUENCIES)))


def _scaled(now: Float32Array, before: Float32Array) -> tuple[Float32Array, Float32Array]:
    """By the covariance of both together, which does not know who is from tonight, so permutations stay fair."""
    both = np.concatenate([now, before]).astype(np.float64)
    variance, axes = np.linalg.eigh(np.cov(both.T))
    scale = axes / np.sqrt(np.maximum(variance, 0) + _RIDGE * max(variance.mean(), 1e-12))
    return (now @ scale).astype(np.float32), (before @ scale).astype(np.float32)


def _area(now: Float32Array, before: Float32Array, now_judged: NDArray[Any], before_judged: NDArray[Any]) -> Estimate:
    """Area under the ROC curve over the judged sessions, by the direction in which the means of the others differ."""
    direction = now[~now_judged].mean(axis=0) - before[~before_judged].mean(axis=0)
    scores = now[now_judged] @ direction, before[before_judged] @ direction
    ranks = np.split(rankdata(np.concatenate(scores)), [len(scores[0])])
    # The share of the other sample below each session (DeLong, DeLong & Clarke-Pearson 1988).
    below, above = (
        _each_once((rank - rankdata(own)) / len(other))
        for rank, own, other in zip(ranks, scores, reversed(scores), strict=True)
    )
    return Estimate(below.mean, below.variance() + above.variance(), below.df + above.df)


def _each_once(values: NDArray[np.floating[Any]]) -> Totals:
    """Of sessions, one value each."""
    exact: Float64Array = values.astype(np.float64)
    return Totals(exact, np.ones(len(exact)))
