"""Readings and plans in words."""

from __future__ import annotations

from training.ab.metrics import METRICS, Kind, Metric
from training.ab.planning import POWER, SHOWN_DAYS, Plan
from training.ab.reading import ArmFigures, Challenger, Difference, Range, Reading
from training.text_table import table


def reading_lines(reading: Reading) -> list[str]:
    """What `ab read` prints: verdicts first."""
    lines = []
    for challenger in reading.challengers:
        lines += verdict_lines(challenger)
    lines += [basis_line(reading), "", *table(arm_rows(reading))]
    for challenger in reading.challengers:
        lines += ["", f"{challenger.arm} minus {reading.control}; {interval_words(reading)}:"]
        lines += table(difference_rows(challenger, reading))
        if challenger.promise:
            lines.append(promise_line(challenger))
        if challenger.segments:
            lines += ["by segment; of those marked * a share of 5 % at most is wrong on average:"]
            lines += table(segment_rows(challenger))
    if reading.findings:
        lines += ["", *(f"{finding.weight}: {finding.kind}: {finding.words}" for finding in reading.findings)]
    return lines


def verdict_lines(challenger: Challenger) -> list[str]:
    """The verdict and what it is worth."""
    lines = [f"{challenger.arm}: {str(challenger.verdict.action).upper()}; {challenger.verdict.reason}"]
    if challenger.usd_per_month.estimate is not None:
        lines.append(f"  {money_words(challenger)}")
    return lines


def money_words(challenger: Challenger) -> str:
    """Per month, at the traffic of the test."""
    words = f"on all of this traffic it would cost {_money(challenger.usd_per_month)} a month"
    if challenger.successes_per_month.estimate is not None:
        words += f", with {_count(challenger.successes_per_month)} successes"
    return words


def basis_line(reading: Reading) -> str:
    """What was read."""
    units = sum(arm.units for arm in reading.arms)
    return (
        f"{reading.requests:,} requests of {units:,} {reading.unit}s in {reading.days} "
        f"day{'s' * (reading.days > 1)}, {reading.start:%Y-%m-%d %H:%M} to {reading.end:%Y-%m-%d %H:%M} UTC; "
        f"{reading.requests_per_month:,.0f} requests a month; control: {reading.control}"
    )


def interval_words(reading: Reading) -> str:
    """How intervals are to be understood."""
    k = len(reading.deciding) * len(reading.challengers)
    together = f"the {k} that decide hold together with {1 - reading.alpha:.0%}"
    if reading.fixed_horizon:
        return f"intervals hold at the declared horizon only, {together}"
    return f"intervals hold at every look, {together}"


def arm_rows(reading: Reading) -> list[tuple[str, ...]]:
    """A row per arm."""
    rows = [("", "units", "requests", *(metric.words for metric in METRICS.values()))]
    for arm in reading.arms:
        rows.append((arm.arm, f"{arm.units:,}", f"{arm.requests:,}", *_figures(arm)))
    return rows


def _figures(arm: ArmFigures) -> list[str]:
    return [_plain(metric, arm.metrics[name]) for name, metric in METRICS.items()]


def difference_rows(challenger: Challenger, reading: Reading) -> list[tuple[str, ...]]:
    """A row per metric."""
    rows: list[tuple[str, ...]] = [("", "difference", "relative", "", "saved by covariates")]
    for one in challenger.differences:
        metric = METRICS[one.metric]
        decides = " (decides)" if one.metric in reading.deciding else ""
        saved = "" if one.variance_saved is None or one.variance_saved < 0.005 else f"{one.variance_saved:.0%}"
        rows.append(
            (metric.words + decides, shown(metric, one.difference), _percent(one.relative), standing(one), saved)
        )
    return rows


def standing(one: Difference) -> str:
    """Better, worse, or not told apart."""
    if one.difference.low is None or one.difference.high is None:
        return "too little is known"
    if one.difference.low <= 0 <= one.difference.high:
        return "not told apart"
    better = (one.difference.low > 0) == (METRICS[one.metric].better > 0)
    since = f" since day {one.shown_since}" if one.shown_since else ""
    return f"{'better' if better else 'worse'}{since}"


def segment_rows(challenger: Challenger) -> list[tuple[str, ...]]:
    """A row per segment and metric."""
    rows: list[tuple[str, ...]] = [("", "requests", "metric", "difference", "")]
    for one in challenger.segments:
        d, metric = one.difference, METRICS[one.metric]
        marked = d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)
        rows.append((one.segment, f"{one.requests:,}", metric.words, shown(metric, d), "*" if marked else ""))
    return rows


def promise_line(challenger: Challenger) -> str:
    """Whether the promised quality was kept."""
    promise = challenger.promise
    assert promise is not None
    k = promise.kept
    figures = "unknown" if k.estimate is None else f"{k.estimate:.1%} [{k.low:.1%}, {k.high:.1%}]"
    of_whom = f"of the success of {promise.reference}, target {promise.target:.1%}"
    return f"promised quality: {figures} {of_whom}: {promise.words}"


def shown(metric: Metric, figure: Range) -> str:
    """A difference with its interval, in points for shares."""
    if figure.estimate is None or figure.low is None or figure.high is None:
        return "unknown"
    if metric.kind is Kind.SHARE:
        e, low, high = (100 * x for x in (figure.estimate, figure.low, figure.high))
        return f"{e:+.2f} points [{low:+.2f}, {high:+.2f}]"
    if metric.kind is Kind.USD:
        e, low, high = (1000 * x for x in (figure.estimate, figure.low, figure.high))
        return f"{_dollars(e)} [{_dollars(low)}, {_dollars(high)}] per 1,000"
    return f"{figure.estimate:+,.0f} ms [{figure.low:+,.0f}, {figure.high:+,.0f}]"


def _dollars(usd: float) -> str:
    return f"{'-' if usd < 0 else '+'}${abs(usd):,.3f}"


def _plain(metric: Metric, value: float | None) -> str:
    if value is None:
        return "unknown"
    if metric.kind is Kind.SHARE:
        return f"{value:.2%}"
    return f"${1000 * value:,.3f} per 1,000" if metric.kind is Kind.USD else f"{value:,.0f} ms"


def _percent(figure: Range) -> str:
    if figure.estimate is None or figure.low is None or figure.high is None:
        return ""
    return f"{figure.estimate:+.1%} [{figure.low:+.1%}, {figure.high:+.1%}]"


def _money(figure: Range) -> str:
    e, low, high = (0.0 if x is None else x for x in (figure.estimate, figure.low, figure.high))
    word = "less" if e < 0 else "more"
    return f"${abs(e):,.0f} {word} [{low:+,.0f} to {high:+,.0f}]"


def _count(figure: Range) -> str:
    e, low, high = (0.0 if x is None else x for x in (figure.estimate, figure.low, figure.high))
    return f"{abs(e):,.0f} {'fewer' if e < 0 else 'more'} [{low:+,.0f} to {high:+,.0f}]"


def plan_lines(plan: Plan) -> list[str]:
    """What `ab plan` prints."""
    lines = [
        f"traffic of the latest {plan.days_read:.1f} days: {plan.requests_per_day:,.0f} requests and "
        f"{plan.units_per_day:,.0f} {plan.unit}s a day"
        + (f"; outcomes take {plan.settle_days} days" if plan.settle_days else ""),
        f"{plan.arms} arms, each challenger with {plan.share:.1%} of the {plan.unit}s; a difference is seen with a "
        f"chance of {POWER:.0%}, looked for every day, wrongly with {plan.alpha:.2%} per deciding metric",
    ]
    if plan.returning > 0.5:
        lines.append(
            f"warning: {plan.returning:.0%} of a day's {plan.unit}s had come before; more days bring few new ones, so "
            "the days below are too few"
        )
    if plan.needs:
        rows: list[tuple[str, ...]] = [("to see", "takes days", "requests", "days, with one declared look")]
        for need in plan.needs:
            metric = METRICS[need.metric]
            size = f"{100 * need.effect:.3g} points" if metric.is_share else f"{100 * need.effect:.3g}%"
            rows.append(
                (
                    f"{metric.words} by {size}",
                    "over a year" if need.days is None else f"{need.days:,}",
                    "" if need.requests is None else f"{need.requests:,}",
                    "over a year" if need.days_fixed is None else f"{need.days_fixed:,}",
                )
            )
        lines += table(rows)
    return [*lines, "least difference that would be seen within", *table(_detectable_rows(plan))]


def _detectable_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("", "now", "known of", "saved by covariates", *(f"{day} days" for day in SHOWN_DAYS))
    ]
    for seen in plan.detectable:
        metric = METRICS[seen.metric]
        rows.append(
            (
                metric.words,
                _plain(metric, seen.value),
                f"{seen.known:.0%}",
                f"{seen.variance_saved:.0%}",
                *(_least(metric, seen.value, seen.by_days.get(day)) for day in SHOWN_DAYS),
            )
        )
    return rows


def _least(metric: Metric, value: float, size: float | None) -> str:
    if size is None:
        return "no outcomes yet"
    return f"{100 * size:.2f} points" if metric.is_share else f"{size / value:.1%}"
