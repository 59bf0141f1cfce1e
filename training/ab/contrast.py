"""One arm against the control on one metric, look by look, adjusted for covariates.

**Ratios.** R = sum of numerators / sum of denominators. Its error is the mean over units of (Y - R N) / mean N, so
the variance of the difference of two arms is the sum of those squares over units and arms: the delta method,
clustered by unit (Deng, Knoblich & Lu 2018, KDD, arXiv:1803.06336). Breaks where a handful of units carry a sum, which
`is_known` keeps out.

**Covariates.** The difference C of the arms' mean covariates is zero but for chance, since the arm of a unit does not
influence its covariates. Whatever beta is, the estimate minus beta C is unbiased; the best beta takes away
what C explains (CUPED: Deng, Xu, Kohavi & Walker 2013; with this beta it is the interacted regression of Lin 2013).
Each fold of units uses the beta of the other folds, so that no unit's outcome enters its own adjustment
(cross-fitting: Chernozhukov et al. 2018), and the variance is that of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.ab.moments import COVARIATE_DENOMINATOR, COVARIATES, DENOMINATOR, NUMERATOR, Moments

FEWEST_UNITS = 100
"""Per arm, before anything is said."""
_FEWEST_EFFECTIVE = 50
"""Units of equal size that would weigh as evenly as an arm's do (Kish)."""
_FEWEST_NUMERATORS = 20
"""The same for what is summed, cost say, of both arms together; shares have a floor instead."""
_FLOOR_EVENTS = 10
"""The variance of a share is at least that of so many events per arm: few errors, or none, are no proof of none."""
_UNITS_PER_COVARIATE = 20


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm minus the control (or divided by it, minus 1), at t looks; NaN where too little is known."""

    estimate: Float64Array
    """[t]"""
    variance: Float64Array
    """[t]"""
    plain_estimate: Float64Array
    """[t], without covariates."""
    plain_variance: Float64Array
    mean: Float64Array
    """[t], of the arm, without covariates."""
    control_mean: Float64Array
    n_units: NDArray[np.int64]
    """[t, 2], of the arm and of the control."""
    begun: int
    """The first look with a request; t where there is none."""

    @property
    def variance_saved(self) -> float:
        """Share of the variance that the covariates took away at the last look; NaN unknown."""
        return float(1 - self.variance[-1] / self.plain_variance[-1])


def contrast(moments: Moments, arm: int, control: int, *, is_share: bool = False, relative: bool = False) -> Contrast:
    """`arm` minus `control`; with `relative`, `arm` divided by `control`, minus 1. Numerators are 0 or more.

    `is_share`: numerators lie between 0 and the denominator, so their means may be told even where events are few.
    """
    pair = [arm, control]
    n_units, s, q = moments.n_units[:, pair], moments.sums[:, pair], moments.products[:, pair]
    total = s.sum(axis=2)  # [t, 2, k]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = total[..., NUMERATOR] / total[..., DENOMINATOR]
        # Scale of each arm's error in the contrast; arms' shares of their denominators.
        scale = np.ones_like(ratio)
        if relative:
            scale = np.stack([1 / ratio[:, 1], ratio[:, 0] / ratio[:, 1] ** 2], axis=1)
        plain = ratio[:, 0] / ratio[:, 1] - 1 if relative else ratio[:, 0] - ratio[:, 1]
        small = n_units / np.maximum(n_units - 1, 1)
        weight = scale / total[..., DENOMINATOR] * np.sqrt(small)  # [t, 2]
        psi = _contracted(q, NUMERATOR, NUMERATOR, ratio, ratio, DENOMINATOR, DENOMINATOR) * weight[..., None] ** 2
        plain_variance = psi.sum(axis=(1, 2))
        estimate, variance = _adjusted(plain, psi, s, q, total, ratio, weight, small, n_units)
        if is_share:
            # Events come as units do: on average a request's unit has sum N^2 / sum N requests.
            size = q[..., DENOMINATOR, DENOMINATOR].sum(axis=2) / total[..., DENOMINATOR]
            floor = (_FLOOR_EVENTS * size * weight**2).sum(axis=1)
            plain_variance, variance = np.maximum(plain_variance, floor), np.maximum(variance, floor)
    known = _is_known(n_units, total, q.sum(axis=2), is_share)
    begun = np.flatnonzero(n_units.sum(axis=1))
    told = (estimate, variance, plain, plain_variance)
    estimate, variance, plain, plain_variance = (np.where(known, values, np.nan) for values in told)
    first = int(begun[0]) if len(begun) else len(n_units)
    return Contrast(estimate, variance, plain, plain_variance, ratio[:, 0], ratio[:, 1], n_units, first)


def _contracted(
    q: Float64Array, i: int, j: int, r_i: Float64Array, r_j: Float64Array, d_i: int, d_j: int
) -> Float64Array:
    """Sum over units of (v_i - r_i v_{d_i}) (v_j - r_j v_{d_j}), [t, 2, FOLDS]."""
    r_i, r_j = r_i[..., None], r_j[..., None]
    return np.asarray(q[..., i, j] - r_i * q[..., d_i, j] - r_j * q[..., i, d_j] + r_i * r_j * q[..., d_i, d_j])


def _adjusted(
    plain: Float64Array,
    psi: Float64Array,
    s: Float64Array,
    q: Float64Array,
    total: Float64Array,
    ratio: Float64Array,
    weight: Float64Array,
    small: Float64Array,
    n_units: NDArray[np.int64],
) -> tuple[Float64Array, Float64Array]:
    places = range(COVARIATES, q.shape[-1])
    p, d = len(places), COVARIATE_DENOMINATOR
    if not p:
        return plain, psi.sum(axis=(1, 2))
    x_ratio = total[..., COVARIATES:] / total[..., [d]]  # [t, 2, p]
    x_weight = np.sqrt(small) / total[..., d]  # [t, 2]
    shape = (*psi.shape[:1], psi.shape[2])  # [t, FOLDS]
    cross, square = np.empty((*shape, p)), np.empty((*shape, p, p))
    for a, i in enumerate(places):
        part = _contracted(q, NUMERATOR, i, ratio, x_ratio[..., a], DENOMINATOR, d)
        cross[..., a] = (part * (weight * x_weight)[..., None]).sum(axis=1)
        for b, j in enumerate(places):
            part = _contracted(q, i, j, x_ratio[..., a], x_ratio[..., b], d, d)
            square[..., a, b] = (part * (x_weight**2)[..., None]).sum(axis=1)
    beta = _betas(cross, square)
    beta[n_units.min(axis=1) < _UNITS_PER_COVARIATE * p] = 0.0
    # Each fold's part of the difference of the arms' mean covariates; the parts add up to it.
    pooled = total[..., COVARIATES:].sum(axis=1) / total[..., d].sum(axis=1)[:, None]
    centred = s[..., COVARIATES:] - pooled[:, None, None, :] * s[..., [d]]
    part_of = centred / total[:, :, d, None, None]
    chance = part_of[:, 0] - part_of[:, 1]  # [t, FOLDS, p]
    estimate = plain - (beta * chance).sum(axis=(1, 2))
    left = psi.sum(axis=1) - 2 * (beta * cross).sum(axis=-1) + np.einsum("tfa,tfab,tfb->tf", beta, square, beta)
    return estimate, np.asarray(left.sum(axis=1))


def _betas(cross: Float64Array, square: Float64Array) -> Float64Array:
    """Coefficients of each fold, from the other folds, [t, FOLDS, p]; zero where they cannot be had."""
    others_cross = cross.sum(axis=1, keepdims=True) - cross
    others_square = square.sum(axis=1, keepdims=True) - square
    size = np.sqrt(np.einsum("tfaa->tfa", others_square))
    size = np.where(np.isfinite(size) & (size > 0), size, np.inf)  # a constant gets no coefficient
    correlation = np.nan_to_num(others_square / (size[..., :, None] * size[..., None, :]))
    # Covariates that repeat each other share their coefficient instead of blowing it up.
    correlation += 1e-6 * np.eye(cross.shape[-1])
    return np.asarray(np.linalg.solve(correlation, np.nan_to_num(others_cross / size)[..., None])[..., 0] / size)


def _is_known(n_units: NDArray[np.int64], total: Float64Array, q: Float64Array, is_share: bool) -> NDArray[np.bool_]:
    """Whether sums are spread over enough units for their means to be nearly normal, [t]."""
    y, n = total[..., NUMERATOR], total[..., DENOMINATOR]
    with np.errstate(divide="ignore", invalid="ignore"):
        even = n**2 / q[..., DENOMINATOR, DENOMINATOR]
        known = (n_units >= FEWEST_UNITS).all(axis=1) & (even >= _FEWEST_EFFECTIVE).all(axis=1)
        if not is_share:
            known &= y.sum(axis=1) ** 2 / q[..., NUMERATOR, NUMERATOR].sum(axis=1) >= _FEWEST_NUMERATORS
    return np.asarray(known)
