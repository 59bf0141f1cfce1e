from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router_ml.catalog import Catalog
from router_ml.errors import InputError
from training.outcomes import OUTCOME_SCHEMA, read_outcomes
from training.synthetic.prices import default_catalog
from training.synthetic.simulate import SimulateReport, SimulateSettings, make_traffic, run_simulate
from training.synthetic.table import FAILURE_MS, TRUTH_SCHEMA
from training.synthetic.traffic import draw_traffic
from training.synthetic.world import World

SMALL = SimulateSettings(days=6, requests_per_day=150)
EVENTFUL = dataclasses.replace(SMALL, drift=True, price_change=True, outage=True, new_model=True)


def simulated(folder: Path, settings: SimulateSettings) -> tuple[SimulateReport, pa.Table, pa.Table]:
    """Report, log and truth."""
    report = run_simulate(folder / "log.parquet", settings, truth=folder / "truth.parquet")
    return report, pq.read_table(folder / "log.parquet"), pq.read_table(folder / "truth.parquet")


def test_a_log_is_an_outcome_table_with_one_model_per_request(tmp_path: Path) -> None:
    report, log, _ = simulated(tmp_path, SMALL)
    assert log.schema.equals(OUTCOME_SCHEMA)
    assert report.rows == report.requests == log.num_rows == 900
    assert len(set(log["request_id"].to_pylist())) == 900
    whole = ["prompt_id", "prompt", "timestamp", "segment", "session_id", "tenant", "model", "offer", "propensity"]
    whole += ["success", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "latency_ms", "ttft_ms"]
    assert all(log[name].null_count == 0 for name in whole)
    assert all(log[name].null_count == 900 for name in ("messages", "embedding", "version", "arm", "error"))
    assert set(log["success"].to_pylist()) == {0.0, 1.0}
    assert len(set(log["prompt_id"].to_pylist())) == len(set(log["prompt"].to_pylist())) < 900


def test_with_full_information_every_model_answers_every_prompt(tmp_path: Path) -> None:
    report, log, truth = simulated(tmp_path, dataclasses.replace(SMALL, days=1, full_information=True))
    assert report.rows == log.num_rows == truth.num_rows == 8 * report.requests == 1200
    assert len(set(log["request_id"].to_pylist())) == 1200
    assert log["propensity"].null_count == 1200
    assert log["request_id"].to_pylist() == truth["request_id"].to_pylist()
    assert log["model"].to_pylist() == truth["model"].to_pylist()


def test_the_partial_log_shows_a_part_of_the_full_one(tmp_path: Path) -> None:
    names = ["prompt", "timestamp", "success", "output_tokens", "latency_ms"]
    (tmp_path / "full").mkdir()
    _, partial, _ = simulated(tmp_path, SMALL)
    _, full, _ = simulated(tmp_path / "full", dataclasses.replace(SMALL, full_information=True))
    left, right = partial.to_pandas(), full.to_pandas()
    right["request_id"] = right["request_id"].str.rsplit("-", n=1).str[0]
    joined = left.merge(right, on=["request_id", "model"], suffixes=("", "_full"))
    assert len(joined) == 900
    for name in names:
        assert (joined[name] == joined[f"{name}_full"]).all()


def test_the_same_seed_writes_the_same_log_and_another_seed_another(tmp_path: Path) -> None:
    logs = []
    for k, seed in enumerate((7, 7, 8)):
        (tmp_path / str(k)).mkdir()
        logs.append(simulated(tmp_path / str(k), dataclasses.replace(EVENTFUL, seed=seed))[1])
    assert logs[0].equals(logs[1])
    assert not set(logs[0]["request_id"].to_pylist()) & set(logs[2]["request_id"].to_pylist())


def test_costs_are_the_catalog_s_prices_times_tokens(tmp_path: Path) -> None:
    _, log, _ = simulated(tmp_path, SMALL)
    offers = {offer.name: offer for offer in default_catalog().offers}
    for row in log.to_pylist():
        offer = offers[row["offer"]]
        assert offer.model == row["model"]
        fresh = row["input_tokens"] - row["cached_input_tokens"]
        cost = fresh * offer.input_usd_per_mtok + row["cached_input_tokens"] * offer.cached_input_usd_per_mtok
        cost += row["output_tokens"] * offer.output_usd_per_mtok
        assert row["cost_usd"] == pytest.approx(cost / 1e6, rel=1e-12)
        assert 0 <= row["cached_input_tokens"] <= row["input_tokens"]
        assert 0 < row["ttft_ms"] < row["latency_ms"]


def test_the_truth_of_every_row_can_be_joined(tmp_path: Path) -> None:
    _, log, truth = simulated(tmp_path, EVENTFUL)
    assert truth.schema.equals(TRUTH_SCHEMA)
    joined = log.to_pandas().merge(truth.to_pandas(), on=["request_id", "model"], suffixes=("", "_true"))
    assert len(joined) == log.num_rows
    assert (joined["prompt_id"] == joined["prompt_id_true"]).all()
    assert (joined["segment"] == joined["segment_true"]).all()
    assert np.array_equal(joined["propensity"], joined["propensity_true"])
    world = World.create(EVENTFUL.seed)
    expected = {
        name: row
        for part in draw_traffic(world, make_traffic(world, EVENTFUL))
        for name, row in zip(part.request_ids, part.world.true_success(part.prompts), strict=True)
    }
    for row in truth.to_pylist():
        assert row["p_success"] == expected[row["request_id"]][world.models.index(row["model"])]
    total = truth.to_pandas().groupby("request_id")["propensity"].sum()
    assert total.to_numpy() == pytest.approx(1.0)


def test_a_failed_call_has_its_error_and_nothing_is_known_of_its_success(tmp_path: Path) -> None:
    report, log, _ = simulated(tmp_path, dataclasses.replace(SMALL, outage=True))
    rows = log.to_pandas()
    failed = rows["error"].notna()
    assert 10 < failed.sum() == sum(model.errors for model in report.models)
    assert rows.loc[failed, "error"].eq("503 service unavailable: anthropic").all()
    for name in ("success", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "ttft_ms"):
        assert np.array_equal(rows[name].isna(), failed)
    assert rows.loc[failed, "latency_ms"].eq(FAILURE_MS).all()
    hours = rows.loc[failed, "timestamp"].dt
    assert set(hours.day) == {16}
    assert hours.hour.between(9, 14).all()


def test_each_switch_is_an_event_on_a_model_of_the_catalog() -> None:
    world = World.create(7)
    traffic = make_traffic(world, EVENTFUL)
    assert traffic.drift is not None and traffic.drift.day == 3
    assert traffic.price_change is not None and traffic.price_change.model == "claude-opus-4-6"
    assert traffic.outage is not None and traffic.outage.provider == "anthropic"
    assert traffic.new_model is not None and traffic.new_model.model == "deepseek-v4-flash"
    plain = make_traffic(world, SMALL)
    assert (plain.drift, plain.price_change, plain.outage, plain.new_model) == (None, None, None, None)


def test_the_report_agrees_with_the_log(tmp_path: Path) -> None:
    report, log, _ = simulated(tmp_path, EVENTFUL)
    rows = log.to_pandas()
    assert (report.first, report.last) == (rows["timestamp"].min(), rows["timestamp"].max())
    assert len(report.events) == 4
    for model in report.models:
        own = rows[rows["model"] == model.model]
        assert (model.rows, model.errors) == (len(own), own["error"].notna().sum())
        assert model.success == pytest.approx(own["success"].mean())
        assert model.cost_usd == pytest.approx(own["cost_usd"].sum())


def test_a_model_that_never_came_up_has_no_success(tmp_path: Path) -> None:
    report, _, _ = simulated(tmp_path, SimulateSettings(days=1, requests_per_day=1))
    assert sorted(model.success is None for model in report.models) == [False] + 7 * [True]


def test_progress_is_told_by_day(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    run_simulate(tmp_path / "log.parquet", SMALL, progress=lambda day, days: told.append((day, days)))
    assert told == [(day, 6) for day in range(1, 7)]


def test_every_row_is_valid_to_the_reader_of_outcome_tables(tmp_path: Path) -> None:
    simulated(tmp_path, EVENTFUL)
    reader = read_outcomes([tmp_path / "log.parquet"], now=datetime(2026, 11, 20, tzinfo=UTC))
    assert reader.table().equals(pq.read_table(tmp_path / "log.parquet"))
    assert not reader.report.rejected


def test_another_catalog_gives_logs_of_its_models(tmp_path: Path) -> None:
    catalog = Catalog.from_mean_costs({"small": 0.001, "large": 0.02})
    report, log, _ = simulated(tmp_path, dataclasses.replace(SMALL, catalog=catalog, days=2))
    assert [model.model for model in report.models] == ["small", "large"]
    rows = log.to_pandas()
    assert rows.loc[rows["model"] == "large", "cost_usd"].eq(0.02).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dataclasses.replace(SMALL, days=0), "`days`"),
        (dataclasses.replace(SMALL, seed=-1), "`seed`"),
        (dataclasses.replace(SMALL, outage=True, catalog=Catalog.from_mean_costs({"a": 1.0, "b": 2.0})), "`provider`"),
    ],
)
def test_settings_out_of_range_write_nothing(tmp_path: Path, settings: SimulateSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_simulate(tmp_path / "log.parquet", settings, truth=tmp_path / "truth.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("out", "truth"), [("log.csv", "truth.parquet"), ("log.parquet", "truth.csv")])
def test_what_is_written_is_parquet(tmp_path: Path, out: str, truth: str) -> None:
    with pytest.raises(InputError, match=r"\.parquet.*\.csv"):
        run_simulate(tmp_path / out, SMALL, truth=tmp_path / truth)
    assert list(tmp_path.iterdir()) == []
