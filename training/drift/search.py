"""All tests of one night, held to one rate of false alarms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from training.drift.clustered import FEWEST_CLUSTERS, Estimate, means
from training.drift.figures import figures, label_totals
from training.drift.findings import FACTORS, LAST_NIGHT, TRAINING, DriftReport, DriftSettings, Finding, Kind
from training.drift.mixture import prompts_test, segments_test
from training.drift.nights import WINDOWS, DriftState, NightMean, figure_name, pooled, remember
from training.drift.observed import Observed
from training.drift.words import in_words

_REMEMBERED = (Kind.SUCCESS, Kind.OUTPUT_LENGTH)
"""What is noisy by night and adds up over nights."""


def find_drift(
    current: Observed,
    *,
    last_night: Observed | None,
    training: Observed | None,
    night: str,
    state: DriftState | None = None,
    settings: DriftSettings | None = None,
) -> DriftReport:
    """Compare tonight's rows with those of the night before and with those that the champion was judged on.

    `training` are rows that the champion did not fit on, as `observe` says; either reference may be lacking.
    `night` names tonight, e.g. its date, and `state` is that of the report of the night before.

    On a night on which nothing has changed the probability of any alarm is at most `settings.false_alarms`: half
    of it belongs to the tests since last night, half to those since training (success and length also over the
    last 3, 7 and 14 nights together), each half by Holm's method, which holds however the tests depend on each
    other. Over N nights that makes N times as many false alarms at most on average; they come in clumps, since
    nights share a reference. What has alarmed over several nights begins anew, so that it is not told twice.
    """
    settings, state = settings or DriftSettings(), state or DriftState.empty()
    references = {LAST_NIGHT: last_night, TRAINING: training}
    found: list[Finding] = []
    notes: list[str] = []
    n_tests: dict[str, int] = {}
    tonight: dict[str, NightMean] = {}
    for since, reference in references.items():
        if reference is None:
            notes.append(f"nothing to compare with since {since}")
            continue
        search = _Search(current, reference, since, settings)
        tests = [*search.mixture(), *search.presence(), *search.means()]
        if since == TRAINING:
            tonight = search.night_means(night)
            tests += search.over_nights(tonight, state)
        if not state.nights.get(Kind.LABELS) or since == LAST_NIGHT:
            tests += search.labels(state.of(Kind.LABELS, night))
        n_tests[since] = len(tests)
        notes += search.notes
        found += _one_each(_judged(tests, settings.false_alarms / 2))
    told = frozenset(figure_name(one.kind, one.subject) for one in found if one.alarm and one.since == TRAINING)
    labels = label_totals(current)
    if len(labels.rows) >= FEWEST_CLUSTERS:
        tonight[Kind.LABELS] = NightMean(night, labels.mean, labels.variance(), labels.df, labels.n, 0.0, 1.0)
    late = any(one.kind is Kind.LABELS and one.alarm for one in found)
    findings = tuple(replace(one, words=in_words(one, labels_changed=late)) for one in found)
    kept = remember(state, tonight, night, told)
    return DriftReport(night, settings.false_alarms, findings, n_tests, tuple(dict.fromkeys(notes)), kept)


class _Search:
    """The tests against one reference."""

    def __init__(self, current: Observed, reference: Observed, since: str, settings: DriftSettings) -> None:
        self._current, self._reference, self._since, self._settings = current, reference, since, settings
        self._compared = [
            (kind, subject, now, before, *means(now, before))
            for kind, subject, now, before in figures(current, reference)
            if min(len(now.rows), len(before.rows)) >= FEWEST_CLUSTERS
        ]
        self.notes: list[str] = []

    def mixture(self) -> Iterator[Finding]:
        """Prompts and segments."""
        current, reference, seed = self._current, self._reference, self._settings.seed
        if min(len(np.unique(each.cluster)) for each in (current, reference)) < FEWEST_CLUSTERS:
            self.notes.append(f"too few sessions to look for new prompts and segments since {self._since}")
            return
        if current.vector is None or reference.vector is None or current.vector.shape[1] != reference.vector.shape[1]:
            self.notes.append("the champion's graph gives no embeddings, so prompts were not compared; train it anew")
        else:
            size, p_value = prompts_test(current, reference, seed)
            yield self._finding(Kind.PROMPTS, "", size, p_value, len(current), None, None, offset=0.5)
        segment, now, before, p_value = segments_test(current, reference, seed)
        yield self._finding(Kind.SEGMENTS, segment, now.minus(before), p_value, len(current), before.value, now.value)

    def presence(self) -> Iterator[Finding]:
        """Models and segments that are only in one of the samples, by Fisher's exact test over sessions."""
        for kind, now, before in (
            (Kind.MODEL_PRESENCE, self._current.model, self._reference.model),
            (Kind.SEGMENT_PRESENCE, self._current.segment, self._reference.segment),
        ):
            for name in np.unique(np.concatenate([now, before])):
                p_value = self._absence(now == name, before == name)
                shares = float((now == name).mean()), float((before == name).mean())
                size = Estimate(shares[0] - shares[1], 0.0, 1.0)
                n_rows = int((now == name).sum())
                yield self._finding(kind, str(name), size, p_value, n_rows, shares[1], shares[0], exact=True)

    def _absence(self, now: NDArray[np.bool_], before: NDArray[np.bool_]) -> float:
        clusters = [
            np.unique(each.cluster[rows]).size for each, rows in ((self._current, now), (self._reference, before))
        ]
        if all(clusters):
            return 1.0
        of_all = [np.unique(each.cluster).size for each in (self._current, self._reference)]
        absent = 0 if clusters[0] == 0 else 1
        return min(1.0, 2 * float(hypergeom.pmf(0, sum(of_all), sum(clusters), of_all[absent])))

    def means(self) -> Iterator[Finding]:
        """What tonight alone shows of every model and column."""
        for kind, subject, current, reference, now, before in self._compared:
            tested = now.minus(before)
            # The variance under no change is far too large for a price that has jumped, which has none at all.
            size = current.estimate().minus(reference.estimate()) if kind in FACTORS else tested
            yield self._finding(kind, subject, size, tested.p_value, int(current.n), before.value, now.value)

    def night_means(self, night: str) -> dict[str, NightMean]:
        """By figure, what is to be remembered of tonight."""
        return {
            figure_name(kind, subject): NightMean(
                night, now.value - before.value, now.variance, now.df, totals.n, before.variance, before.df
            )
            for kind, subject, totals, _, now, before in self._compared
            if kind in _REMEMBERED
        }

    def over_nights(self, tonight: dict[str, NightMean], state: DriftState) -> Iterator[Finding]:
        """What tonight and the nights before show together."""
        for kind, subject, totals, _, _, before in self._compared:
            mean = tonight.get(figure_name(kind, subject))
            if mean is None:
                continue
            nights = (*state.of(figure_name(kind, subject), mean.night), mean)
            for window in WINDOWS[1:]:
                if len(nights) < window:
                    break
                size = pooled(nights[-window:])
                now, n_rows = before.value + size.value, int(totals.n)
                finding = self._finding(kind, subject, size, size.p_value, n_rows, before.value, now)
                yield replace(finding, nights=window)

    def labels(self, nights: tuple[NightMean, ...]) -> Iterator[Finding]:
        """The share of known outcomes; where a night before is remembered, as it stood on that night.

        Outcomes come in late, so tonight's share is always below that of days whose outcomes have all come.
        """
        now, before = label_totals(self._current), label_totals(self._reference)
        if min(len(now.rows), len(before.rows)) < FEWEST_CLUSTERS:
            return
        share, other = means(now, before)
        if nights:
            last = nights[-1]
            other = Estimate(last.value, max(last.variance, share.variance * now.n / last.rows), last.df)
        size = share.minus(other)
        yield self._finding(Kind.LABELS, "", size, size.p_value, int(now.n), other.value, share.value)

    def _finding(
        self,
        kind: Kind,
        subject: str,
        size: Estimate,
        p_value: float,
        n_rows: int,
        before: float | None,
        now: float | None,
        *,
        offset: float = 0.0,
        exact: bool = False,
    ) -> Finding:
        low, high = (None, None) if exact else size.interval()
        numbers = [size.value, low, high, before, now]
        if kind in FACTORS:
            numbers = [None if one is None else float(np.exp(np.clip(one, -50, 50))) for one in numbers]
        value, low, high, before, now = (None if one is None else one + offset for one in numbers)
        assert value is not None
        return Finding(
            kind=kind,
            subject=subject,
            since=self._since,
            size=value,
            low=low,
            high=high,
            before=before,
            now=now,
            floor=self._settings.floor(kind),
            p_value=p_value,
            n_rows=n_rows,
        )


def _judged(tests: list[Finding], level: float) -> list[Finding]:
    """Which are beyond noise, by Holm's method (1979), and which of them matter."""
    order = sorted(range(len(tests)), key=lambda i: tests[i].p_value)
    judged = list(tests)
    for rank, i in enumerate(order):
        if tests[i].p_value > level / (len(tests) - rank):
            break
        alarm = tests[i].matters and not _agrees_again(tests[i])
        judged[i] = replace(tests[i], beyond_noise=True, alarm=alarm)
    return judged


def _agrees_again(finding: Finding) -> bool:
    """Whether a price is what the catalog says, though it was not before: then the catalog has followed."""
    if finding.kind is not Kind.PRICE or finding.now is None:
        return False
    return max(finding.now, 1 / finding.now) < finding.floor


def _one_each(findings: list[Finding]) -> list[Finding]:
    """Of the windows of one figure the one that says most."""
    best: dict[tuple[Kind, str], Finding] = {}
    for finding in findings:
        key = finding.kind, finding.subject
        if key not in best or (finding.alarm, -finding.p_value) > (best[key].alarm, -best[key].p_value):
            best[key] = finding
    return list(best.values())
