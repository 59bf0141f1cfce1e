"""A night as one table of plain figures and words, which the page and the terminal show."""

from __future__ import annotations

from typing import Any

from training.nightly.decide import against
from training.nightly.gates import Gate
from training.nightly.inputs import Inputs, NightlySettings


def report_of(
    night: str,
    settings: NightlySettings,
    inputs: Inputs,
    told: dict[str, dict[str, Any] | None],
    gates: list[dict[str, Any]],
) -> dict[str, Any]:
    """What is kept of a night; `told` is what each stage left, None where it was not reached."""
    gathered, checked = told["gather"] or {}, told["check"] or {}
    trained, judged = told["train"] or {}, told["judge"] or {}
    decided, registered = told["decide"] or {}, told["register"] or {}
    return {
        "night": night,
        "started": inputs.started.isoformat(timespec="seconds"),
        "accepted": decided["accepted"],
        "refused_by": decided["refused_by"],
        "version": trained.get("version"),
        "bundle_sha256": trained.get("bundle_sha256"),
        "registered": {"name": registered["name"], "number": registered["number"], "run_id": registered["run_id"]},
        "champion": inputs.champion,
        "confidence": settings.confidence,
        "quality_target": settings.train.quality_target,
        "inputs": {
            "segments": len(inputs.segments),
            "logs": [path.name for path in inputs.logs],
            "sha256": inputs.sha256,
            "rows": gathered["rows"],
            "new_rows": checked["new_rows"],
            "new_labels": checked["new_labels"],
            "days": checked["days"],
            "left_out": gathered["left_out"],
            "by_day": gathered["by_day"],
        },
        "gates": gates,
        "changes": judged.get("changes", []),
        "judged": {name: judged.get(name) for name in ("from", "requests", "known", "basis", "willingness")},
        "versus": judged.get("versus"),
        "savings": _savings(judged),
        "calibration": judged.get("calibration"),
        "latency": judged.get("latency"),
        "traffic": judged.get("traffic"),
        "drift": _drift(judged.get("drift")),
        "notes": trained.get("notes", []),
        "evaluation": trained.get("evaluation"),
    }


def _drift(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without what only the next night needs."""
    return {name: value for name, value in found.items() if name != "state"} if found else None


def _savings(judged: dict[str, Any]) -> dict[str, Any] | None:
    """US dollars a month at the traffic of the days judged, against each alternative; None: nothing was judged."""
    if not judged:
        return None
    n = judged["requests_per_month"]
    found: dict[str, Any] = {"requests_per_month": n, "best_model": judged["best_model"], "against": {}}
    for name in ("champion", "best model"):
        cost = judged["versus"].get(name, {}).get("cost_usd")
        if cost and cost["difference"] is not None:
            found["against"][name] = {
                "usd_per_month": -n * cost["difference"],
                "low": -n * cost["high"],
                "high": -n * cost["low"],
                "usd_before": n * cost["old"],
                "usd_after": n * cost["new"],
            }
    return found


def headline(report: dict[str, Any]) -> str:
    """What happened, in one sentence."""
    number, champion = report["registered"]["number"], report["champion"]
    if report["accepted"]:
        instead = f"in place of version {champion}" if champion else "the first"
        return f"Version {number} is the champion now, {instead}."
    stays = f"Version {champion} stays the champion" if champion else "There is still no champion"
    return f"{stays}: refused by {report['refused_by']}."


def saving_words(savings: dict[str, Any] | None, other: str) -> str:
    """Dollars a month against the champion or the best model."""
    found = savings["against"].get(other) if savings else None
    if found is None:
        return "cannot be told"
    sign = "saves" if found["usd_per_month"] >= 0 else "costs"
    low, high = (found["low"], found["high"]) if sign == "saves" else (-found["high"], -found["low"])
    return f"{sign} {_dollars(abs(found['usd_per_month']))} a month [{_dollars(low)}, {_dollars(high)}]"


def _dollars(usd: float) -> str:
    cents = 2 if abs(usd) < 100 else 0
    return f"{'-' if usd < 0 else ''}${abs(usd):,.{cents}f}"


def night_lines(report: dict[str, Any], page: str) -> list[str]:
    """What the command prints."""
    inputs, versus = report["inputs"], report["versus"] or {}
    lines = [
        headline(report),
        f"{inputs['rows']:,} rows of {inputs['days']:.0f} days, {inputs['new_rows']:,} of them new",
        *(Gate(**gate).line for gate in report["gates"]),
    ]
    for name, figures in versus.items():
        lines.append(f"value: {against(figures['value'], name)}")
    if report["savings"]:
        best = report["savings"]["best_model"]
        lines.append(
            f"at {report['savings']['requests_per_month']:,.0f} requests a month: "
            f"{saving_words(report['savings'], 'champion')} against the champion, "
            f"{saving_words(report['savings'], 'best model')} against always {best}"
        )
    return [*lines, *(f"changed: {change}" for change in report["changes"]), f"report: {page}"]
