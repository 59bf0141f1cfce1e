"""Verdicts: what is said, when nothing can be said, and what would settle it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.off_policy import LoggedRows, Verdict, clusters_of, compare
from training.off_policy.bound import finite_sample_bound
from training.off_policy.compare import PolicyComparison, Standard
from training.off_policy.overlap import Overlap, effective_sample_size, overlap_of
from training.off_policy.policy_rows import label_propensity
from training.off_policy.uncertainty import standard_error, studentised_intervals

SUCCESS = np.array([0.5, 0.9, 0.5])


def logs(n: int = 3000, *, logging: tuple[float, ...] = (0.5, 0.4, 0.1), to: int = 1, seed: int = 0) -> LoggedRows:
    """One kind of prompt, three models; the target always calls the model `to`."""
    rng = np.random.default_rng(seed)
    action = rng.choice(3, size=n, p=logging)
    reward = (rng.random(n) < SUCCESS[action]).astype(float)
    q = np.tile(SUCCESS, (n, 1))
    return LoggedRows(reward, action, np.array(logging)[action], np.tile(np.eye(3)[to], (n, 1)), q, np.arange(n))


def overlap(rows: LoggedRows) -> Overlap:
    return overlap_of(rows, np.zeros(len(rows), dtype=int), ())


def judged(rows: LoggedRows, baseline: int | None = None, **options: object) -> PolicyComparison:
    theirs = None if baseline is None else np.tile(np.eye(3)[baseline], (len(rows), 1))
    return compare(rows, overlap(rows), baseline=theirs, repeats=400, **options)  # type: ignore[arg-type]


def test_better_worse_and_no_different() -> None:
    assert judged(logs(to=1)).verdict is Verdict.BETTER
    assert judged(logs(to=0)).verdict is Verdict.WORSE
    assert judged(logs(to=0), baseline=1).verdict is Verdict.WORSE
    assert judged(logs(to=1), baseline=0).verdict is Verdict.BETTER
    assert judged(logs(60_000, logging=(0.4, 0.2, 0.4), to=0), baseline=2).verdict is Verdict.NO_DIFFERENT
    cost = Standard(higher_is_better=False)
    assert judged(logs(to=0), standard=cost).verdict is Verdict.BETTER


@pytest.mark.parametrize("seed", range(3))
def test_a_difference_too_wide_says_how_many_more_requests_would_settle_it(seed: int) -> None:
    found = judged(logs(1000, to=0, seed=seed), baseline=2)
    assert found.verdict is Verdict.CANNOT_TELL
    assert "too wide" in found.reason
    assert found.more_requests is not None
    assert found.more_requests < 100_000
    assert judged(logs(1000 + found.more_requests, to=0, seed=seed), baseline=2).verdict is not Verdict.CANNOT_TELL


def test_few_deciding_rows_cannot_tell_and_say_what_exploration_would() -> None:
    rows = logs(1000, logging=(0.99, 0.009, 0.001), to=1)
    found = judged(rows)
    assert found.deciding_rows == pytest.approx((rows.action == 1).sum())
    assert found.verdict is Verdict.CANNOT_TELL
    assert "seen on too few requests" in found.reason
    assert found.propensity == pytest.approx(0.009)
    assert found.needed_propensity is not None
    assert 0.02 < found.needed_propensity < 0.5


def test_choices_that_had_no_chance_cannot_tell_however_many_rows_there_are() -> None:
    rows = logs(20_000, logging=(0.6, 0.4, 0.0), to=2)
    found = judged(rows)
    assert found.verdict is Verdict.CANNOT_TELL
    assert found.more_requests is None
    assert overlap(rows).unsupported == 1.0
    half = replace(rows, target=np.tile([0.0, 0.8, 0.2], (len(rows), 1)))
    assert overlap(half).mean_weight == pytest.approx(0.8, abs=0.02)
    assert judged(half).verdict is Verdict.CANNOT_TELL


def test_wrong_propensities_are_noticed_by_their_mean_weight() -> None:
    rows = logs(5000)
    wrong = replace(rows, propensity=rows.propensity / 2)
    assert "too low" in (overlap(wrong).problem or "")
    assert judged(wrong).verdict is Verdict.CANNOT_TELL
    assert overlap(rows).problem is None


def test_a_policy_that_decides_alike_makes_no_difference() -> None:
    rows = logs(300)
    assert judged(rows, baseline=1).verdict is Verdict.NO_DIFFERENT
    assert judged(rows, baseline=1).difference.estimate == 0


def test_overlap_is_told_by_segment() -> None:
    rows = logs(1000, logging=(0.5, 0.5, 0.0), to=1)
    segment = np.where(np.arange(1000) < 400, 1, 2)
    rows = replace(rows, action=np.where(segment == 2, 0, rows.action), target=rows.target.copy())
    found = overlap_of(rows, segment, ("chat", "code"))
    assert found.by_segment["chat"].rows == 400
    assert found.by_segment["chat"].unsupported == 0
    assert found.by_segment["code"].unsupported == 1
    assert found.unsupported == pytest.approx(0.6)


def test_effective_sample_size_is_kishs() -> None:
    assert effective_sample_size(np.ones(7)) == 7
    assert effective_sample_size(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.zeros(3)) == 0


def test_rows_of_a_cluster_count_once() -> None:
    rows = logs(400)
    twice = LoggedRows(
        *(np.concatenate([getattr(rows, name)] * 2) for name in ("reward", "action", "propensity", "target", "q")),
        cluster=np.tile(np.arange(400), 2),
    )
    one, two = judged(rows), judged(twice)
    assert two.estimate.value == pytest.approx(one.estimate.value)
    assert two.estimate.high - two.estimate.low == pytest.approx(one.estimate.high - one.estimate.low, rel=1e-6)
    apart = judged(replace(twice, cluster=np.arange(800)))
    assert apart.estimate.high - apart.estimate.low < 0.8 * (one.estimate.high - one.estimate.low)


def test_prompts_and_sessions_join_rows() -> None:
    prompt = np.array([0, 0, 1, 2, 3, 4, *range(5, 40)])
    session = np.array([7, 8, 8, -1, -1, 9, *range(100, 135)])
    found = clusters_of(prompt, session)
    assert found.ndim == 1
    assert len({*found[:3]}) == 1
    assert len({*found[2:6]}) == 4
    assert len(np.unique(found)) == len(prompt) - 2


def test_a_prompt_that_everyone_sends_does_not_join_all_sessions() -> None:
    prompt = np.where(np.arange(200) % 2, 0, np.arange(200))
    session = np.arange(200) // 2
    found = clusters_of(prompt, session)
    assert found.shape == (200, 2)
    influence = np.random.default_rng(0).normal(size=200)
    wide = standard_error(influence, found)
    assert wide == max(standard_error(influence, found[:, 0]), standard_error(influence, found[:, 1]))
    (interval,) = studentised_intervals(np.zeros(1), influence[:, None], found, repeats=200)
    assert np.isfinite(interval.high)


def test_too_few_clusters_leave_everything_open() -> None:
    (interval,) = studentised_intervals(np.ones(1), np.ones((5, 1)), np.zeros(5, dtype=int))
    assert (interval.low, interval.high) == (-np.inf, np.inf)


def test_an_interval_is_as_wide_as_resampled_deviations_are_large() -> None:
    """By hand, one resample after the other; skewed values, for which Student's t would be shorter."""
    values = np.random.default_rng(4).exponential(size=12) ** 2
    sums = values - values.mean()
    (interval,) = studentised_intervals(np.zeros(1), sums[:, None], np.arange(12), repeats=4000)
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        drawn = sums[rng.integers(12, size=12)]
        found.append(abs(drawn.sum()) / max(np.sqrt(12 * drawn.var(ddof=1)), 1e-12))
    half = np.quantile(found, 0.95) * np.sqrt(12 * sums.var(ddof=1))
    assert interval.high == pytest.approx(half, rel=0.05)
    assert interval.low == -interval.high


def test_the_finite_sample_bound_holds_and_narrows() -> None:
    covered, widths = [], {200: [], 3000: []}
    for seed in range(12):
        for n, found in widths.items():
            rows = logs(n, seed=seed)
            low, high = finite_sample_bound(rows, rows.reward[rows.action == 1].mean())
            found.append(high - low)
            covered.append(low <= SUCCESS[1] <= high)
    assert sum(covered) >= 23
    assert np.mean(widths[3000]) < 0.5 * np.mean(widths[200])
    assert np.mean(widths[3000]) < 0.15


def test_label_propensities_follow_model_and_segment_and_are_never_zero() -> None:
    rng = np.random.default_rng(0)
    model, segment = rng.integers(3, size=6000), rng.integers(2, size=6000)
    rate = np.array([[0.9, 0.5, 0.2], [0.9, 0.1, 0.2]])[segment, model]
    known = rng.random(6000) < rate
    assert np.abs(label_propensity(known, model, segment) - rate).max() < 0.06
    assert label_propensity(np.arange(50) == 0, np.zeros(50, int), np.zeros(50, int)).min() > 0
