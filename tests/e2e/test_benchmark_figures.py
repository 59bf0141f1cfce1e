"""The figures that docs/quality.md tells, guarded with room for noise; run with `-m long`, some half an hour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router_ml.cli import main

TABLES = ("routerbench_subset", "zeroeval", "routellm_mmlu", "simulated")
_NOISE = 0.0294
"""Of a share of 5 % over 500 draws, three standard errors."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def figures(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    out = tmp_path_factory.mktemp("benchmark")
    files = [str(data_dir / f"{name}.parquet") for name in TABLES[:3]]
    columns = ["--prompt-column", "question", "--prompt-column", "prompt"]
    studies = ["--studies", "promise", "--studies", "little-data", "--studies", "stability"]
    assert main(["benchmark", *files, *columns, *studies, "--out", str(out), "--no-register"]) == 0
    yield json.loads((out / "benchmark.json").read_text())


@pytest.mark.parametrize("known", [True, False], ids=["segment known", "segment hidden"])
@pytest.mark.parametrize("table", TABLES)
def test_on_no_table_is_a_baseline_ahead_beyond_a_hundredth(figures: dict[str, Any], table: str, known: bool) -> None:
    (standing,) = (one for one in figures["tables"][table]["standings"] if one["segment_known"] is known)
    assert len(standing["splits"]) == 5
    gains = {name: line["aiq_gain"]["low"] for name, line in standing["lines"].items() if line["aiq_gain"]}
    assert len(gains) == 9
    assert min(gains.values()) > -0.01, gains
    assert standing["lines"]["router-ml"]["ece"] <= 0.02
    assert max(found["ece"] for found in standing["calibration"].values() if found["n_rows"] >= 1000) <= 0.05


def test_together_it_is_ahead_of_every_baseline_at_a_lower_cost(figures: dict[str, Any]) -> None:
    for standing in figures["pooled"]:
        lines = standing["lines"]
        ours = lines["router-ml"]
        for name, line in lines.items():
            if line["aiq_gain"]:
                # The lead over the mean of five routers, segment hidden, is not shown beyond noise.
                assert line["aiq_gain"]["low"] > (-0.002 if name == "mean of the learned" else 0.0), name
                assert ours["cost_share_99"] < line["cost_share_99"], name
            if line["brier"] is not None and name != "router-ml":
                assert ours["brier"] < line["brier"], name


@pytest.mark.parametrize("table", TABLES)
def test_a_promise_holds_where_the_plug_in_point_breaks_it(figures: dict[str, Any], table: str) -> None:
    study = figures["tables"][table]["promise"]
    found = [rule for rule in study["rules"] if rule["judged_on"] == "population"]
    assert len(found) == 2
    for rule in found:
        assert rule["promised"]["broken"]["estimate"] <= 0.05 + _NOISE
        assert rule["plug_in"]["broken"]["estimate"] >= 0.15


@pytest.mark.parametrize("table", TABLES)
def test_with_little_data_it_is_not_below_the_single_model_hull(figures: dict[str, Any], table: str) -> None:
    for size in figures["tables"][table]["little_data"]:
        assert size["standing"]["lines"]["single-model hull"]["aiq_gain"]["high"] > 0, size["size"]


@pytest.mark.parametrize("table", TABLES)
def test_case_and_white_space_hardly_ever_change_a_decision(figures: dict[str, Any], table: str) -> None:
    for found in figures["tables"][table]["stability"]:
        assert max(found["router"]["upper case"], found["router"]["white space"]) < 0.002
