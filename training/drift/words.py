"""One sentence for each finding: what has changed, and what to do."""

from __future__ import annotations

from training.drift.findings import FACTORS, Finding, Kind


def in_words(finding: Finding, *, labels_changed: bool) -> str:
    """For a person; `labels_changed`: the share of known outcomes has changed too, which can explain a success."""
    what = _WHAT[finding.kind](finding)
    since = f"since {finding.since}" + (f", over {finding.nights} nights" if finding.nights > 1 else "")
    if finding.low is not None and finding.high is not None:
        since += f"; 95 % interval {_interval(finding, finding.low, finding.high)}"
    if finding.alarm:
        advice = _advice(finding)
        if labels_changed and finding.kind is Kind.SUCCESS:
            advice = "more or fewer outcomes are known than before, which may explain it: look at the label rate first"
    elif finding.beyond_noise and finding.matters:
        advice = "the catalog says so by now, so there is nothing to do"
    elif finding.beyond_noise:
        advice = f"beyond noise, but less than {_floor(finding)}, so it does not matter"
    else:
        advice = "within noise"
    return f"{what} ({since}): {advice}"


def _interval(finding: Finding, low: float, high: float) -> str:
    if finding.kind in FACTORS:
        return f"{low:.2f} to {high:.2f} times"
    if finding.kind is Kind.PROMPTS:
        return f"{low:.0%} to {high:.0%}"
    return f"{100 * low:+.1f} to {100 * high:+.1f} points"


def _floor(finding: Finding) -> str:
    if finding.kind in FACTORS:
        return f"{100 * (finding.floor - 1):.0f} %"
    if finding.kind is Kind.PROMPTS:
        return f"{finding.floor:.0%} of pairs"
    return f"{100 * finding.floor:.0f} points"


def _moved(finding: Finding) -> str:
    return f"from {finding.before or 0:.1%} to {finding.now or 0:.1%}"


def _points(value: float) -> str:
    return f"{100 * abs(value):.1f} points {'less' if value < 0 else 'more'}"


def _presence(what: str, finding: Finding) -> str:
    name = f"{what} `{finding.subject}`" if finding.subject else f"no {what}"
    if finding.before and finding.now:
        return f"{name} has {finding.now:.1%} of the requests"
    return f"{name} is {'gone' if finding.before else 'new'}, {_moved(finding)} of the requests"


_WHAT = {
    Kind.PROMPTS: lambda f: (
        f"prompts differ: of two sessions tonight's is told in {f.size:.0%} of cases, 50 % is a guess"
    ),
    Kind.SEGMENTS: lambda f: f"segments have moved, most of all `{f.subject}`, {_moved(f)} of the sessions",
    Kind.SUCCESS: lambda f: f"`{f.subject}` succeeds {_points(f.size)} often on like prompts",
    Kind.PRICE: lambda f: f"`{f.subject}` costs {f.now or 0:.2f} times its catalog price, {f.before or 0:.2f} before",
    Kind.OUTPUT_LENGTH: lambda f: f"answers of `{f.subject}` are {f.size:.2f} times as long on like prompts",
    Kind.ERRORS: lambda f: f"calls of `{f.subject}` that fail went {_moved(f)}",
    Kind.LABELS: lambda f: f"answered calls whose success is known went {_moved(f)}",
    Kind.MISSING: lambda f: f"answered calls without `{f.subject}` went {_moved(f)}",
    Kind.MODEL_PRESENCE: lambda f: _presence("model", f),
    Kind.SEGMENT_PRESENCE: lambda f: _presence("segment", f),
}


_ADVICE = {
    Kind.PROMPTS: ("look at the newest prompts, and retrain on days that hold them",) * 2,
    Kind.SEGMENTS: ("if the new mix is to last, retrain so that estimates and quality target fit it",) * 2,
    Kind.SUCCESS: (
        "its supplier may have changed it; compare its answers, deny it if they are bad, and retrain",
        "its supplier may have changed it; retrain so that it gets the traffic it deserves",
    ),
    Kind.PRICE: ("correct its prices in the catalog; that needs no retraining",) * 2,
    Kind.OUTPUT_LENGTH: ("its expected costs are off by as much, so retrain",) * 2,
    Kind.ERRORS: (
        "if it was denied while its calls failed, allow it again",
        "ask its provider, and deny its offers while that lasts",
    ),
    Kind.LABELS: ("see whether outcomes are still reported in full, and trust figures of success only then",) * 2,
    Kind.MISSING: (
        "nothing to do if the application logs that column since",
        "see whether the application still logs that column",
    ),
    Kind.MODEL_PRESENCE: (
        "see whether it is denied, down or no longer offered; nothing to do if the policy dropped it",
        "put its offers into the catalog and retrain, so that it can be judged and chosen",
    ),
    Kind.SEGMENT_PRESENCE: (
        "ask the application that sent it whether that is meant",
        "its prompts are estimated as of an unknown segment; retrain on days that hold it",
    ),
}
"""Where the figure fell, and where it rose."""


def _advice(finding: Finding) -> str:
    fell, rose = _ADVICE[finding.kind]
    return fell if finding.size < (1 if finding.kind in FACTORS else 0) else rose
