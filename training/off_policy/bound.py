"""An interval that holds at any number of rows: by betting on inverse propensity weighted rewards."""

from __future__ import annotations

import numpy as np

from router_ml.types import Float64Array
from training.betting import mean_above_zero
from training.intervals import LEVEL
from training.off_policy.clusters import sums_by
from training.off_policy.logged import LoggedRows

_STEPS = 200
_MOST_VALUES = 20_000
"""More clusters are summed in random groups: bets one after the other take time, and gain little by then."""


def finite_sample_bound(rows: LoggedRows, estimate: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Lower and upper end for the value of `rows.target`, whose rewards lie in 0 to 1; `estimate` is where to look.

    For a value v, ``w r - v`` is never below -v, however large a weight, so a bet on its mean being above zero needs
    no largest weight (Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro 2022, Anytime-valid off-policy inference,
    sec. 2.2); ``w (1 - r)`` gives the upper end. Either errs in at most half of 1 - level, at any n and for any
    distribution, given right propensities, support, independent clusters of no more rows than the largest seen, and
    outcomes reported whatever they were. It pays for that in width, above all since it leaves q out.
    Clusters count by the first of two ways to group.
    """
    cluster = rows.cluster if rows.cluster.ndim == 1 else rows.cluster[:, 0]
    weight = rows.weight * rows.label_weight
    reward = np.nan_to_num(rows.reward)
    size = sums_by(cluster, np.ones(len(rows)))
    order = np.random.default_rng(0).permutation(len(size))
    group = np.arange(len(size)) % _MOST_VALUES
    sums = [sums_by(group, sums_by(cluster, each)[order]) for each in (weight * reward, weight * (1 - reward))]
    size = sums_by(group, size[order])
    at = min(max(estimate, 0.0), 1.0)
    below = np.linspace(0, at, _STEPS)
    above = np.geomspace(max(at, 1e-9), 1, _STEPS)[::-1]
    low = _furthest(sums[0], size, below, (1 - level) / 2)
    high = 1 - _furthest(sums[1], size, 1 - above, (1 - level) / 2)
    return low, max(low, high)


def _furthest(sums: Float64Array, size: Float64Array, values: Float64Array, alpha: float) -> float:
    """The last of the ascending `values` up to which all are shown to lie below the mean; 0 where none is."""
    largest = float(size.max())

    def draw(start: int, stop: int) -> Float64Array:
        # In units of the largest group at value 1; the reach of a smaller value is smaller.
        stakes = (sums[start:stop] - values[:, None] * size[start:stop]) / largest
        return np.asarray(stakes / np.maximum(values, 1e-12)[:, None])

    above = mean_above_zero(draw, (len(values),), len(sums), reach=1.0, alpha=alpha)
    above |= values <= 0  # no reward is below 0
    count = len(values) if above.all() else int(above.argmin())
    return float(values[count - 1]) if count else 0.0
