"""How sure a difference is, at every look at once.

An estimate with variance V carries information I = 1 / V. Over the looks of a test, I times the error of an
efficient estimate moves like a Brownian motion at time I (Jennison & Turnbull 2000, Group Sequential Methods, section
3.1). Mixing over a normal prior (Robbins 1970) gives a curve that such a motion leaves at any time with
probability at most alpha. With variances that are estimated and data that are not normal, that is the asymptotic
confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024, Annals of Statistics 52(6),
arXiv:2103.06476), their Gaussian-mixture boundary in terms of progress x = I / I*, where I* is the information at
which the curve is tuned. Wide enough for small samples it is not: `contrast` withholds a look until each arm
holds enough units.

**Units that keep growing.** A session that has been seen may add requests, and late outcomes, at later looks, so the
estimate is not a sum of independent pieces in order of time. Its looks are nevertheless jointly normal in large
samples, with the variances V_t that are used here; and requests of one unit resemble each other, so looks are at
least as correlated as those of a Brownian motion with the same variances. By Slepian's inequality (1962) the chance
that any look leaves the curve is then no greater. `tests/benchmarks/ab_study.py` measures it, with sessions of heavy
tail over several days and late outcomes.

Arrays are [t], looks in order of time; NaN marks a look that is withheld.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from router_ml.types import Float64Array

TUNED_DAYS = 14
"""The sequence is narrowest, beside what could be had, after so many days of traffic like the first."""
_PRIOR = 10.0
"""Information at the tuned time over that of the prior; the best for alpha near 0.02, and flat around it."""


def progress(variance: Float64Array, begun: int, tuned_days: float = TUNED_DAYS) -> Float64Array:
    """Information of each look over that at which the sequence is tuned, [t].

    The latter is fixed by the first look that is not withheld and the days since `begun`, the look at which the
    metric got its first request; later looks do not move it, as they must not.
    """
    known = np.flatnonzero(variance > 0)
    if not len(known):
        return np.full(len(variance), np.nan)
    first = int(known[0])
    tuned = tuned_days / (variance[first] * (first - begun + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(variance > 0, 1 / (variance * tuned), np.nan))


def half_width(variance: Float64Array, progress: Float64Array, alpha: float) -> Float64Array:
    """Half the width of the confidence sequence at each look: all looks hold the truth with probability 1 - alpha."""
    scaled = _PRIOR * progress
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(variance * (1 + 1 / scaled) * (np.log1p(scaled) - 2 * np.log(alpha))))


def fixed_half_width(variance: Float64Array, alpha: float) -> Float64Array:
    """Half the width of the interval for one look that was declared before the test; of no use at any other look."""
    return np.asarray(norm.ppf(1 - alpha / 2) * np.sqrt(variance))


def log_e_value(estimate: Float64Array, variance: Float64Array, progress: Float64Array) -> Float64Array:
    """Logarithm of the evidence against a difference of zero; NaN is none, 0.

    Its exponential has mean 1 at most at any stopping time if there is no difference, and reaches 1 / alpha exactly
    where `half_width` excludes zero at that alpha.
    """
    scaled = _PRIOR * progress
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = estimate**2 / variance
        return np.asarray(np.nan_to_num((squared * scaled / (1 + scaled) - np.log1p(scaled)) / 2))


def e_level(log_e: ArrayLike, alpha: float) -> float:
    """The alpha at which each of K intervals is to be read, so that looking at many does no harm.

    e-BH (Wang & Ramdas 2022, JRSS B 84(3)) marks the k largest of K e-values, k as large as K / (k alpha) allows: of
    what it marks at most a share alpha is wrong, on average, however the K depend on each other and at any stopping
    time. Intervals at alpha k / K exclude zero exactly for those, and cover in the same sense (e-BY; Xu, Wang &
    Ramdas 2022, arXiv:2203.12572). With none marked the level is alpha / K.
    """
    ranked = np.sort(np.atleast_1d(np.asarray(log_e, dtype=np.float64)))[::-1]
    k = np.arange(1, len(ranked) + 1)
    marked = np.flatnonzero(ranked + np.log(k * alpha / len(ranked)) >= 0)
    return alpha * (int(marked[-1]) + 1 if len(marked) else 1) / len(ranked)
