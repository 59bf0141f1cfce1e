"""Operating points that keep their quality target with a stated confidence.

Learn then test (Angelopoulos, Bates, Candes, Jordan & Lei 2021): the settings of a rule are tested
in an order fixed in advance, from "whatever it costs" to the cheapest, and the first that fails
ends the sequence; so the chance that any passing setting breaks the promise is at most
1 - confidence. The statement tested of a setting s at target q is: for every offered single model
j, the mean success of s is at least q times that of j. All must pass (an intersection-union test),
so which model is the best need not be known and costs nothing. Per prompt the value is
D = Y_s - q Y_j; the test is `betting.mean_above_zero`, valid at any number of prompts.

Each target and each rule is promised on its own. It breaks where prompts to come differ from those
tested, and where prompts depend on one another. Array letters: n prompts, m models, k settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training.betting import mean_above_zero
from training.evidence import Evidence
from training.operating import willingness_grid

_SETTINGS = 40
"""Few enough that a sequence seldom ends by bad luck, fine enough that the last step costs little."""
_AT_ONCE = 8
"""Settings tested together: most sequences end early."""
_ORDER_SEED = 0
_POWER = 0.8
_PRICE_OF_VALIDITY = 1.3
"""Prompts that the betting test takes for each one that a test of known variance would, in simulation."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Settings of each rule in the order of testing, fixed without a look at what is tested on."""

    willingness: Float64Array
    """[k], ascending."""
    thresholds: Float64Array
    """[k], descending."""

    def of(self, rule: Rule) -> Float64Array:
        return self.willingness if rule is Rule.PROMISE else self.thresholds


@dataclass(frozen=True, slots=True)
class Promise:
    """What can be promised, per quality target."""

    confidence: float
    n_prompts: int
    """Tested on."""
    basis: str
    """What the test rests on, in words."""
    reason: str | None
    """Why nothing at all can be promised; None where the data allow a test."""
    willingness: tuple[float | None, ...]
    """None: cannot be promised."""
    thresholds: tuple[float | None, ...]
    needed_prompts: tuple[int | None, ...]
    """About how many prompts like these the safest setting needs to pass; None: no number would do, since by what
    was seen even that setting does not keep the target."""


def fix_paths(policy: Policy, reference: Estimates) -> Paths:
    """Settings of even steps in expected cost on `reference`, prompts that the test does not use.

    Taken from the tested prompts themselves, the hypotheses would depend on the data that test them.
    """
    expected = policy.price(reference)
    sweeps = {Rule.PROMISE: willingness_grid(expected), Rule.THRESHOLD: np.linspace(1, 0, 401)}
    found = {rule: _even_steps(policy, reference, expected, rule, levels) for rule, levels in sweeps.items()}
    return Paths(found[Rule.PROMISE], found[Rule.THRESHOLD])


def _even_steps(
    policy: Policy, reference: Estimates, expected: Float64Array, rule: Rule, levels: Float64Array
) -> Float64Array:
    rows = np.arange(len(expected))
    cost = np.array(
        [expected[rows, policy.choose_at(reference, rule, level, expected).chosen].mean() for level in levels]
    )
    falling = np.minimum.accumulate(cost)
    steps = np.linspace(falling[0], falling[-1], _SETTINGS)
    first = [int(np.flatnonzero(falling <= step * (1 + 1e-12))[0]) for step in steps]
    return np.asarray(levels[np.unique([0, *first])])


def chosen_models(policy: Policy, estimates: Estimates, rule: Rule, levels: Float64Array) -> NDArray[np.intp]:
    """[k, n], the model that each setting chooses for each prompt."""
    expected = policy.price(estimates)
    return np.stack([policy.column[policy.choose_at(estimates, rule, level, expected).chosen] for level in levels])


def find_promise(
    policy: Policy,
    estimates: Estimates,
    evidence: Evidence,
    paths: Paths,
    *,
    targets: Sequence[float],
    confidence: float,
) -> Promise:
    """The cheapest setting of each rule that passes, per target; estimates and evidence are of the same n prompts.

    Every prompt needs an offer that can serve it.
    """
    estimates, evidence = estimates.take(evidence.known), evidence.take(evidence.known)
    rivals, alpha = np.unique(policy.column), 1 - confidence
    safest = chosen_models(policy, estimates, Rule.PROMISE, np.zeros(1))
    needed = tuple(needed_prompts(safest[0], evidence, rivals, target, alpha) for target in targets)
    levels: dict[Rule, tuple[float | None, ...]] = dict.fromkeys(Rule, (None,) * len(targets))
    if evidence.reason is None:
        for rule in Rule:
            path = paths.of(rule)
            chosen = chosen_models(policy, estimates, rule, path)
            passed = [n_passing(chosen, evidence, rivals, target, alpha) for target in targets]
            levels[rule] = tuple(float(path[count - 1]) if count else None for count in passed)
    return Promise(
        confidence,
        len(evidence),
        evidence.basis,
        evidence.reason,
        levels[Rule.PROMISE],
        levels[Rule.THRESHOLD],
        needed,
    )


def n_passing(
    chosen: NDArray[np.intp], evidence: Evidence, rivals: NDArray[np.intp], target: float, alpha: float
) -> int:
    """How many of the k settings, in their order, pass before the first that fails; `chosen` is [k, n]."""
    order = np.random.default_rng(_ORDER_SEED).permutation(len(evidence))
    evidence, chosen = evidence.take(order), chosen[:, order]
    for begin in range(0, len(chosen), _AT_ONCE):
        some = chosen[begin : begin + _AT_ONCE]
        passed = _passing(some, evidence, rivals, target, alpha)
        if not passed.all():
            return begin + int(passed.argmin())
    return len(chosen)


def _passing(
    chosen: NDArray[np.intp], evidence: Evidence, rivals: NDArray[np.intp], target: float, alpha: float
) -> NDArray[np.bool_]:
    def draw(start: int, stop: int) -> Float64Array:
        return evidence.take(slice(start, stop)).differences(chosen[:, start:stop], rivals, target)

    shape = len(chosen), len(rivals)
    reach = evidence.reach(target)
    return np.asarray(mean_above_zero(draw, shape, len(evidence), reach=reach, alpha=alpha).all(axis=1))


def needed_prompts(
    chosen: NDArray[np.intp], evidence: Evidence, rivals: NDArray[np.intp], target: float, alpha: float
) -> int | None:
    """About how many prompts let a setting that chooses `chosen` [n] pass four times in five; None: no number would.

    The sample size of a one-sided test at the mean and second moment observed, times what validity
    costs. One more lost prompt than was seen is reckoned with: few are seen where settings agree.
    """
    n = len(evidence)
    if not n:
        return None
    mean, moment = evidence.moments(chosen, rivals, target)
    mean, moment = mean - target / n, moment + target**2 / n
    if mean.min() <= 0:
        return None
    normal = NormalDist()
    deviations = normal.inv_cdf(1 - alpha) + normal.inv_cdf(_POWER)
    return math.ceil(_PRICE_OF_VALIDITY * float((moment / mean**2).max()) * deviations**2)
