"""The fifth stage: the gates on a trained version; one that says no keeps the champion in force."""

from __future__ import annotations

from typing import Any

from training.export import TOLERANCE
from training.nightly.check import CONTRADICTION
from training.nightly.gates import Gate
from training.off_policy import Verdict

_CALIBRATION = 0.05
_FEWEST_JUDGED = 100
_SLOWER = 2.0


def gates_on(trained: dict[str, Any], judged: dict[str, Any], latency_budget_us: float) -> list[Gate]:
    """What the stages `train` and `judge` told, held against the limits."""
    return [
        _judged_enough(judged),
        _verdict(trained),
        _parity(trained),
        _calibration(judged["calibration"]),
        _baselines(judged),
        _champion(judged),
        _agreement(judged["agreement"]),
        _drift(judged["drift"]),
        _latency(judged["latency"], latency_budget_us),
    ]


def _judged_enough(judged: dict[str, Any]) -> Gate:
    n = judged["known"]
    return Gate(
        "enough to judge by",
        n >= _FEWEST_JUDGED,
        n,
        _FEWEST_JUDGED,
        f"{n:,} known outcomes since {judged['from'][:16]} that no version saw; {_FEWEST_JUDGED} are needed",
        "Wait for more traffic, or take more history (--days)",
    )


def _verdict(trained: dict[str, Any]) -> Gate:
    verdict = trained["verdict"]
    gain = verdict["over_single_models"]["estimate"]
    return Gate(
        "evidence for a router",
        verdict["deploy"],
        gain,
        0.0,
        verdict["reason"],
        "Add logs, or let more traffic explore; until then the simpler rule is as good",
    )


def _parity(trained: dict[str, Any]) -> Gate:
    worst = max(trained["parity"].values())
    return Gate(
        "parity of the bundle",
        worst <= TOLERANCE,
        worst,
        TOLERANCE,
        f"graph and native models differ by {worst:.1g} at most (limit {TOLERANCE:g}); bundle read back",
        "Please report this",
    )


def _calibration(found: dict[str, Any]) -> Gate:
    ece, theirs = found["ece"], found["champion_ece"]
    if ece is None:
        return Gate("calibration", False, None, _CALIBRATION, "no known outcome to judge by", "Report outcomes")
    limit = _CALIBRATION + found["chance"]
    words = f"error {ece:.3f} (ECE) on {found['n']:,} outcomes, at most {limit:.3f} ({found['chance']:.3f} for chance)"
    if theirs is not None:
        words += f"; the champion's is {theirs:.3f}"
        # Where the world has just changed, a version that is less wrong than the one that serves is a gain.
        limit = max(limit, theirs)
    return Gate(
        "calibration",
        ece <= limit,
        ece,
        limit,
        words,
        "Look at the calibration picture and the drift: the newest days may differ from those learned from",
    )


def _baselines(judged: dict[str, Any]) -> Gate:
    """Not shown to be worse than the simplest that one could do instead, at the same willingness to pay."""
    found = {name: judged["versus"][name]["value"] for name in ("segment means", "single model")}
    told = [against(difference, _NAMES[name]) for name, difference in found.items()]
    known = [d["difference"] for d in found.values() if d["difference"] is not None]
    return Gate(
        "simple baselines",
        all(difference["verdict"] != Verdict.WORSE for difference in found.values()),
        min(known, default=None),
        0.0,
        "; ".join(told),
        "Prompts tell nothing that segments do not: add logs, or check the text that is routed on",
    )


def _champion(judged: dict[str, Any]) -> Gate:
    found = judged["versus"].get("champion")
    name, confidence = "champion", judged["confidence"]
    if judged["champion_trouble"]:
        return Gate(
            name,
            False,
            None,
            None,
            f"the champion could not be judged on these logs: {judged['champion_trouble']}",
            "Mend that, or move the alias `champion` to a version that can be read",
        )
    if found is None:
        return Gate(name, True, None, None, "there is none yet, so the other gates alone decide")
    value = found["value"]
    words = (
        f"{against(value, 'the champion')} in value by {value['estimator']} estimates, confidence {confidence:.0%}; "
        f"success {points(found['success'])} points, cost per 1,000 requests {_dollars(found['cost_usd'])} US dollars"
    )
    advice = f"The champion stays, as the logs speak for it: {value['reason']}"
    passed = value["verdict"] in (Verdict.BETTER, Verdict.NO_DIFFERENT)
    if value["verdict"] == Verdict.CANNOT_TELL:
        # Most nights of a small team end here. To keep the champion until the logs can tell would keep it for good, and
        # a version grows worse by growing old; so where nothing is shown the estimate itself decides.
        passed = value["difference"] is not None and value["difference"] >= 0
        words += "; nothing is shown, and the estimate is not below the champion's" if passed else ""
        more = value["more_requests"]
        settles = "More exploration (serve --explore)" if more is None else f"About {more:,} more requests, or more"
        settles += " settles it" if more is None else " exploration (serve --explore), would settle it"
        advice = f"The logs cannot tell: {value['reason']}. {settles}"
    return Gate(name, passed, value["difference"], None, words, advice)


def _agreement(found: dict[str, Any]) -> Gate:
    name, z = "outcomes against estimates", found["standard_errors"]
    if z is None:
        return Gate(name, True, None, CONTRADICTION, "too few outcomes a day to compare")
    options = " ".join(f"--leave-out-day {day}" for day in found["contradicting"])
    return Gate(
        name,
        not found["contradicting"],
        z,
        CONTRADICTION,
        f"they agree least on {found['day']}: correlation within models {found['correlation']:+.2f} ({z:+.1f} standard "
        f"errors, at least {CONTRADICTION:g}) on {found['n']:,} outcomes that the estimates have not seen",
        f"Success and failure may have been exchanged: report these outcomes again, corrected, or run with {options}",
    )


def _drift(found: dict[str, Any] | None) -> Gate:
    """Told, and no reason to refuse: a router is trained again because the world has changed."""
    if found is None:
        return Gate("drift", True, None, None, "no champion yet whose estimates would show it")
    alarms = [finding["words"] for finding in found["findings"] if finding["alarm"]]
    n = sum(found["n_tests"].values())
    words = f"{len(alarms)} of {n} tests found drift that matters" + "".join(f"; {alarm}" for alarm in alarms[:3])
    return Gate("drift", True, float(len(alarms)), None, words + ("; and more, below" if len(alarms) > 3 else ""))


def _latency(found: dict[str, Any], budget_us: float) -> Gate:
    new, champion = found["new_us"], found["champion_us"]
    if new is None:
        return Gate("latency", True, None, budget_us, "the logs hold no text to time decisions on")
    limit = budget_us
    words = f"half of all decisions take {new:.0f} µs or less in one process, budget {budget_us:.0f} µs"
    if champion is not None:
        limit = min(limit, _SLOWER * champion)
        words += f", the champion {champion:.0f} µs, {new / champion:.2f} times as long (at most {_SLOWER:g})"
    return Gate(
        "latency",
        new <= limit,
        new,
        limit,
        words,
        "Run again on a quiet machine; if it stays, see `router-ml bench`, or raise --latency-budget-us",
    )


_NAMES = {"segment means": "mean success by segment", "single model": "the best-value single model"}


def against(difference: dict[str, Any], name: str) -> str:
    """Verdict and difference in points of success, of the new version against `name`."""
    if difference["difference"] is None:
        return f"cannot be told from {name}: {difference['reason']}"
    return f"{_VERDICTS[difference['verdict']]} {name}, {points(difference)} points"


_VERDICTS = {
    Verdict.BETTER: "better than",
    Verdict.WORSE: "worse than",
    Verdict.NO_DIFFERENT: "no different beyond noise from",
    Verdict.CANNOT_TELL: "cannot be told from",
}


def points(difference: dict[str, Any]) -> str:
    """A difference in success or value with its interval, in points (hundredths)."""
    if difference["difference"] is None:
        return "unknown"
    estimate, low, high = (100 * difference[name] for name in ("difference", "low", "high"))
    return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]"


def _dollars(difference: dict[str, Any]) -> str:
    if difference["difference"] is None:
        return "unknown"
    estimate, low, high = (1000 * difference[name] for name in ("difference", "low", "high"))
    return f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
