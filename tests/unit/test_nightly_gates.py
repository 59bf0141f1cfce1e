"""Each gate says yes to what is in order and no to what is not, with its figure and with what to do."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from training.nightly.check import agreement, check
from training.nightly.decide import gates_on
from training.nightly.gates import Gate, refusal
from training.outcomes import OUTCOME_SCHEMA, write_outcomes

DAYS, PER_DAY = 6, 400
START = datetime(2026, 11, 1, tzinfo=UTC)
GATHERED = {"rows_read": DAYS * PER_DAY, "rows_rejected": 0, "since_us": None}


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """Two models in two segments, one of which is hard."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(DAYS * PER_DAY):
        hard, able = rng.random() < 0.5, rng.random() < 0.5
        found.append(
            {
                "request_id": str(i),
                "prompt_id": str(i),
                "timestamp": START + timedelta(days=i / PER_DAY),
                "prompt": "x",
                "segment": "hard" if hard else "easy",
                "model": "able" if able else "small",
                "propensity": 0.5,
                "success": float(rng.random() < (0.3 if hard else 0.8) + 0.15 * able),
                "output_tokens": 10,
                "cost_usd": 0.001,
                "latency_ms": 100.0,
            }
        )
    return found


def checked(
    tmp_path: Path, found: list[dict[str, Any]], gathered: dict[str, Any] = GATHERED, earlier: Any = ()
) -> dict[str, Gate]:
    path = tmp_path / "outcomes.parquet"
    write_outcomes(path, [pa.RecordBatch.from_pylist(found, schema=OUTCOME_SCHEMA)])
    told = check(path, gathered, earlier)
    return {gate["name"]: Gate(**gate) for gate in told["gates"]}


def newest(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return found[-PER_DAY:]


def test_a_table_in_order_passes(tmp_path: Path) -> None:
    gates = checked(tmp_path, rows(), earlier=[{"new_labels": 1.0}])
    assert refusal(list(gates.values())) == ""
    assert gates["models"].words.startswith("2 called in the new rows; none new, none gone")


def test_too_few_outcomes(tmp_path: Path) -> None:
    found = rows()
    for row in found[400:]:
        row["success"] = None
    gate = checked(tmp_path, found)["enough data"]
    assert not gate.passed and "400 known outcomes of 2,400 rows" in gate.words and "report more" in gate.advice


def test_outcomes_of_one_class(tmp_path: Path) -> None:
    found = [row | {"success": 1.0} for row in rows()]
    gate = checked(tmp_path, found)["enough data"]
    assert not gate.passed and gate.words == "every known success is 1"


def test_many_rows_that_were_not_valid(tmp_path: Path) -> None:
    gate = checked(tmp_path, rows(), GATHERED | {"rows_rejected": 240})["valid rows"]
    assert not gate.passed and "240 of 2,400 rows were not valid (10.0%" in gate.words


def test_a_column_that_is_no_longer_written(tmp_path: Path) -> None:
    found = rows()
    for row in newest(found):
        row["cost_usd"] = None
    gate = checked(tmp_path, found)["missing values"]
    assert not gate.passed and gate.words.startswith("`cost_usd` is missing in 100.0% of the new rows, 0.0% before")


def test_calls_that_failed_or_wait_for_their_outcome_miss_nothing(tmp_path: Path) -> None:
    found = rows()
    nothing = {"success": None, "cost_usd": None, "output_tokens": None, "latency_ms": None}
    for i, row in enumerate(newest(found)):
        row.update(nothing | ({"error": "timeout"} if i % 2 else {}))
    assert checked(tmp_path, found)["missing values"].passed


@pytest.mark.parametrize(("usual", "passed"), [(1.0, False), (0.3, True), (None, True)])
def test_fewer_outcomes_than_usual_at_this_time(tmp_path: Path, usual: float | None, passed: bool) -> None:
    found = rows()
    for row in newest(found)[: 3 * PER_DAY // 4]:
        row["success"] = None
    gate = checked(tmp_path, found, earlier=[{"new_labels": usual}])["outcomes reported"]
    assert gate.passed is passed


def test_a_day_of_exchanged_outcomes_is_found_wherever_it_lies(tmp_path: Path) -> None:
    found = rows()
    for row in found[PER_DAY : 2 * PER_DAY]:
        row["success"] = 1 - row["success"]
    gate = checked(tmp_path, found)["plausible outcomes"]
    assert not gate.passed
    assert "outcomes of 2026-11-02 contradict" in gate.words and "--leave-out-day 2026-11-02" in gate.advice


def test_a_model_that_got_much_worse_overnight_is_not_implausible(tmp_path: Path) -> None:
    found = rows()
    rng = np.random.default_rng(1)
    for row in newest(found):
        if row["model"] == "able":
            row["success"] = float(rng.random() < (0.05 if row["segment"] == "hard" else 0.35))
    assert checked(tmp_path, found)["plausible outcomes"].passed


def test_days_of_pure_chance_are_seldom_called_implausible(tmp_path: Path) -> None:
    """The stated rate is one day in thirty thousand; here estimates are worth nothing, the worst case."""
    rng = np.random.default_rng(2)
    z = [
        agreement(rng.random(300), (rng.random(300) < 0.5).astype(float), rng.integers(0, 3, 300))[1]
        for _ in range(4000)
    ]
    assert np.mean(np.array(z) < -2) == pytest.approx(0.0228, abs=0.008)
    assert min(z) > -4.5


def test_new_and_vanished_models_are_told(tmp_path: Path) -> None:
    found = rows()
    for row in newest(found):
        row["model"] = "brand-new" if row["model"] == "able" else row["model"]
    gate = checked(tmp_path, found)["models"]
    assert gate.passed and "new: brand-new; no longer called: able" in gate.words


# -- gates on a version ----------------------------------------------------------------------------

DIFFERENCE = {
    "estimator": "doubly robust",
    "new": 0.9,
    "old": 0.88,
    "difference": 0.02,
    "low": 0.01,
    "high": 0.03,
    "effective_sample_size": 900.0,
    "verdict": "better",
    "reason": "",
    "more_requests": None,
}
TRAINED = {
    "verdict": {"deploy": True, "over_single_models": {"estimate": 0.05}, "reason": "it is better"},
    "parity": {"p_success": 1e-7, "relative": 1e-6},
}
JUDGED: dict[str, Any] = {
    "known": 500,
    "from": "2026-11-15T00:00:00+00:00",
    "confidence": 0.95,
    "champion_trouble": None,
    "calibration": {"n": 500, "ece": 0.02, "chance": 0.02, "champion_ece": 0.03},
    "versus": {
        name: dict.fromkeys(("success", "cost_usd", "value"), DIFFERENCE)
        for name in ("champion", "segment means", "single model", "best model")
    },
    "agreement": {"day": "2026-11-19", "n": 300, "correlation": 0.3, "standard_errors": 5.0, "contradicting": []},
    "drift": {"findings": [], "n_tests": {"last night": 9}},
    "latency": {"new_us": 130.0, "champion_us": 120.0},
}


def decided(trained: dict[str, Any] = TRAINED, budget: float = 1000.0, **changes: Any) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates_on(trained, deepcopy(JUDGED) | changes, budget)}


def against(name: str, **changes: Any) -> dict[str, Any]:
    versus = deepcopy(JUDGED["versus"])
    versus[name]["value"] = DIFFERENCE | changes
    return {"versus": versus}


def test_a_version_in_order_passes_every_gate() -> None:
    assert refusal(list(decided().values())) == ""


WORSE = {"difference": -0.03, "low": -0.04, "high": -0.02, "verdict": "worse"}
UNKNOWN = {"difference": None, "low": None, "high": None, "verdict": "cannot tell", "reason": "too few rows"}


@pytest.mark.parametrize(
    ("gate", "changes", "words"),
    [
        ("enough to judge by", {"known": 99}, "99 known outcomes"),
        ("calibration", {"calibration": JUDGED["calibration"] | {"ece": 0.08}}, "error 0.080 (ECE)"),
        ("simple baselines", against("segment means", **WORSE), "worse than mean success by segment, -3.00 [-4.00"),
        ("simple baselines", against("single model", **WORSE), "worse than the best-value single model"),
        ("champion", against("champion", **WORSE), "worse than the champion, -3.00 [-4.00, -2.00] points"),
        ("champion", against("champion", **UNKNOWN), "cannot be told from the champion"),
        ("champion", {"champion_trouble": "it is damaged"}, "it is damaged"),
        (
            "outcomes against estimates",
            {"agreement": JUDGED["agreement"] | {"standard_errors": -6.0, "contradicting": ["2026-11-19"]}},
            "-6.0 standard errors",
        ),
        ("latency", {"latency": {"new_us": 1500.0, "champion_us": None}}, "1500 µs"),
        ("latency", {"latency": {"new_us": 300.0, "champion_us": 120.0}}, "2.50 times as long"),
    ],
)
def test_a_gate_says_no_with_its_figure_and_what_to_do(gate: str, changes: dict[str, Any], words: str) -> None:
    gates = decided(**changes)
    assert refusal(list(gates.values())) == gate
    assert words in gates[gate].words and gates[gate].advice


@pytest.mark.parametrize(("difference", "passed"), [(0.02, True), (-0.02, False)])
def test_where_the_logs_cannot_tell_the_estimate_decides(difference: float, passed: bool) -> None:
    unsure = {"difference": difference, "low": difference - 0.1, "high": difference + 0.1, "verdict": "cannot tell"}
    gate = decided(**against("champion", **unsure, reason="too few rows", more_requests=4000))["champion"]
    assert gate.passed is passed
    assert ("nothing is shown" in gate.words) is passed
    assert "4,000 more requests" in gate.advice


def test_a_version_that_no_evidence_carries_and_one_that_differs_from_its_graph_are_refused() -> None:
    doubtful = TRAINED | {"verdict": TRAINED["verdict"] | {"deploy": False}}
    assert refusal(list(decided(doubtful).values())) == "evidence for a router"
    assert refusal(list(decided(TRAINED | {"parity": {"p_success": 1e-4, "relative": 0.0}}).values())) == (
        "parity of the bundle"
    )


def test_a_first_version_needs_no_champion() -> None:
    versus = {name: value for name, value in JUDGED["versus"].items() if name != "champion"}
    gates = decided(versus=versus)
    assert gates["champion"].passed and "none yet" in gates["champion"].words


def test_less_wrong_than_the_champion_is_calibrated_enough() -> None:
    assert decided(calibration={"n": 500, "ece": 0.09, "chance": 0.02, "champion_ece": 0.12})["calibration"].passed


def test_drift_is_told_and_refuses_nothing() -> None:
    found = {"findings": [{"alarm": True, "words": "model a fell by 0.1"}], "n_tests": {"training": 9}}
    gate = decided(drift=found)["drift"]
    assert gate.passed and gate.figure == 1 and gate.words.endswith("; model a fell by 0.1")
