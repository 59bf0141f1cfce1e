"""The arithmetic of A/B readings against plain computations on small arrays, where the truth can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from training.ab.contrast import contrast
from training.ab.moments import FOLDS, Units, moments
from training.ab.sequence import e_level, fixed_half_width, half_width, log_e_value, progress
from training.ab.split_test import constancy_evidence, split_evidence
from training.ab.trend import Steps, halves, trend_evidence

LOOKS = 6


def drawn(seed: int = 0, u: int = 1000) -> tuple[Units, dict[str, np.ndarray]]:
    """Units with several requests on several looks, one covariate that tells something."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 6, size=u)
    unit = np.repeat(np.arange(u), size)
    covariate = rng.normal(size=u)
    units = Units(rng.integers(2, size=u), rng.integers(FOLDS, size=u), np.ones(u), covariate[:, None])
    return units, {
        "unit": unit,
        "look": np.minimum(rng.integers(LOOKS, size=u)[unit] + rng.integers(3, size=len(unit)), LOOKS - 1),
        "numerator": 5 + covariate[unit] + rng.normal(size=len(unit)),
        "denominator": rng.random(len(unit)) + 0.5,
    }


def per_unit(rows: dict[str, np.ndarray], name: str, look: int, u: int) -> np.ndarray:
    now = rows["look"] <= look
    return np.bincount(rows["unit"][now], rows[name][now], u)


def test_variance_is_that_of_the_delta_method_over_units_at_every_look() -> None:
    units, rows = drawn()
    found = contrast(moments(units, **rows, n_looks=LOOKS, n_arms=2), 0, 1)
    for look in (2, LOOKS - 1):
        y, n = (per_unit(rows, name, look, len(units)) for name in ("numerator", "denominator"))
        ratios, variances = [], []
        for arm in (0, 1):
            here = (units.arm == arm) & (n > 0)
            ratio = y[here].sum() / n[here].sum()
            error = (y[here] - ratio * n[here]) / n[here].mean()
            ratios.append(ratio)
            variances.append(error.var(ddof=1) / here.sum())
        assert found.plain_estimate[look] == pytest.approx(ratios[0] - ratios[1])
        assert found.plain_variance[look] == pytest.approx(sum(variances))


def test_the_relative_difference_agrees_with_a_bootstrap_over_units() -> None:
    rng = np.random.default_rng(1)
    units, rows = drawn(1, 1500)
    found = contrast(moments(units, **rows, n_looks=LOOKS, n_arms=2), 0, 1, relative=True)
    y, n = (per_unit(rows, name, LOOKS - 1, len(units)) for name in ("numerator", "denominator"))
    drawn_again = []
    for _ in range(400):
        w = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units))
        ratio = [(w * y)[units.arm == arm].sum() / (w * n)[units.arm == arm].sum() for arm in (0, 1)]
        drawn_again.append(ratio[0] / ratio[1] - 1)
    assert np.sqrt(found.plain_variance[-1]) == pytest.approx(np.std(drawn_again), rel=0.15)


def test_covariates_shrink_the_variance_by_what_they_explain() -> None:
    units, rows = drawn(2, 4000)
    rows = {name: values[np.unique(rows["unit"], return_index=True)[1]] for name, values in rows.items()}
    rows["denominator"] = np.ones(len(units))
    found = contrast(moments(units, **rows, n_looks=LOOKS, n_arms=2), 0, 1)
    # Covariate and noise have variance 1 each.
    assert found.variance_saved == pytest.approx(0.5, abs=0.04)


def test_a_covariate_that_tells_nothing_or_never_varies_leaves_the_estimate() -> None:
    units, rows = drawn(3)
    flat = Units(units.arm, units.fold, units.weight, np.full((len(units), 2), 3.0))
    found = contrast(moments(flat, **rows, n_looks=LOOKS, n_arms=2), 0, 1)
    assert found.estimate[-1] == pytest.approx(found.plain_estimate[-1])
    assert found.variance[-1] == pytest.approx(found.plain_variance[-1])


def test_looks_with_few_units_are_withheld() -> None:
    units, rows = drawn(4, 150)
    found = contrast(moments(units, **rows, n_looks=LOOKS, n_arms=2), 0, 1)
    assert np.isnan(found.estimate).all()


def test_no_events_are_no_proof_of_none() -> None:
    units, rows = drawn(5, 1000)
    rows["numerator"] = np.zeros(len(rows["unit"]))
    rows["denominator"] = np.ones(len(rows["unit"]))
    found = contrast(moments(units, **rows, n_looks=LOOKS, n_arms=2), 0, 1, is_share=True)
    assert found.estimate[-1] == 0
    n = len(rows["unit"]) / 2
    assert np.sqrt(found.variance[-1]) > np.sqrt(2 * 10) / n


def test_the_sequence_excludes_zero_exactly_where_the_evidence_says_so() -> None:
    variance = np.geomspace(1, 1e-3, 20)
    x = progress(variance, 0)
    for estimate in np.linspace(-1, 1, 41):
        shown = np.abs(estimate) > half_width(variance, x, 0.05)
        evidence = log_e_value(np.full(20, estimate), variance, x) > np.log(20)
        assert (shown == evidence).all()


def test_the_sequence_is_wider_than_the_interval_for_one_look_and_tuned_once() -> None:
    variance = 1 / np.arange(1.0, 31.0)
    x = progress(variance, 0)
    assert x[13] == pytest.approx(1.0)
    ratio = half_width(variance, x, 0.05) / fixed_half_width(variance, 0.05)
    assert 1.4 < ratio.min() < 1.7
    withheld = np.r_[np.nan, np.nan, variance[2:]]
    # Three days until the first look that counts, so a fourteen-thirds of its information is the tuned one.
    assert progress(withheld, 0)[13] == pytest.approx(1.0)


def test_more_marked_segments_are_read_at_a_wider_level_and_none_at_the_strictest() -> None:
    alpha, k = 0.05, 10
    assert e_level(np.zeros(k), alpha) == pytest.approx(alpha / k)
    three = np.r_[np.full(3, np.log(k / (3 * alpha)) + 1e-9), np.zeros(k - 3)]
    assert e_level(three, alpha) == pytest.approx(3 * alpha / k)
    assert e_level(three - 0.01, alpha) == pytest.approx(alpha / k)


def test_split_evidence_is_a_ratio_of_probabilities() -> None:
    # One unit, and two arms that should get half each: under any prior around one half it tells nothing.
    assert split_evidence(np.array([[[1, 0]]]), np.array([[0.5, 0.5]]))[0] == pytest.approx(0.0, abs=1e-9)
    # Summed over all sequences of three units, evidence times probability is one.
    total = 0.0
    for n, sequences in zip(range(4), (1, 3, 3, 1), strict=True):
        counts, share = np.array([[[n, 3 - n]]]), np.array([[0.3, 0.7]])
        total += sequences * 0.3**n * 0.7 ** (3 - n) * np.exp(split_evidence(counts, share)[0])
    assert total == pytest.approx(1.0)


def test_a_unit_in_an_arm_that_should_get_none_is_a_broken_split() -> None:
    assert split_evidence(np.array([[[500, 500, 1]]]), np.array([[0.5, 0.5, 0.0]]))[0] == np.inf


def test_shares_that_move_are_seen_and_shares_that_stay_are_not() -> None:
    rng = np.random.default_rng(6)
    units = np.full(20, 500)
    steady = rng.binomial(units, 0.1)
    ramp = rng.binomial(units, np.where(np.arange(20) < 10, 0.1, 0.2))
    for mine, seen in ((steady, False), (ramp, True)):
        evidence = constancy_evidence(np.column_stack([mine, units - mine]))
        assert (evidence.max() > np.log(100)) == seen


def test_an_effect_that_fades_is_seen_and_one_that_stays_is_not() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(scale=0.01, size=30)
    steady = Steps(0.03 + noise, np.full(30, 1e-4))
    fading = Steps(0.06 * np.exp(-np.arange(30) / 5) + noise, np.full(30, 1e-4))
    assert trend_evidence(steady) < np.log(100) < trend_evidence(fading)
    early, late = halves(fading)
    assert early > late
    assert trend_evidence(Steps(np.zeros(1), np.ones(1))) == 0
