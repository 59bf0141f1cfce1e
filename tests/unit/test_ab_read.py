"""`router-ml ab read` and `ab plan` on outcome tables of simulated tests: verdict, health, figures, page, errors."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router_ml.cli import _parser, main
from router_ml.router import Router
from training.ab.health import Finding, Weight
from training.ab.metrics import COST, SUCCESS
from training.ab.planning import Effect, plan_test
from training.ab.predictor import predictor_of
from training.ab.reading import Reading, read_test
from training.ab.requests import UnitKind, read_requests
from training.ab.trial import ReadSettings, Scope, Share
from training.ab.verdict import Action, Judged, judge
from training.synthetic.experiment import ExperimentSettings, draw_experiment

Columns = dict[str, Any]
START = 1_761_955_200_000_000
DAY = 86_400_000_000
ARMS = ("champion", "challenger")
HALF = (Share("challenger", 0.5),)


def columns(seed: int = 0, **settings: Any) -> Columns:
    """An outcome table of a test, as numpy columns."""
    rng = np.random.default_rng(seed)
    s = ExperimentSettings(**({"days": 10, "sessions_per_day": 300} | settings))
    e = draw_experiment(rng, s)
    n, arm = len(e.session), e.arm[e.session]
    known = np.isfinite(e.known) & (e.known < s.days)
    return {
        "request_id": np.char.add("r", np.arange(n).astype(str)),
        "prompt": np.char.add("question ", np.arange(n).astype(str)),
        "session_id": np.char.add("s", e.session.astype(str)),
        "timestamp": START + (e.time * DAY).astype(np.int64),
        "model": np.full(n, "m"),
        "segment": np.array(["legal", "chat"])[e.session % 2],
        "arm": np.array(ARMS)[arm],
        "version": np.array(["7", "8"])[arm],
        "success": np.where(known, e.success, np.nan),
        "cost_usd": e.cost_usd,
        "latency_ms": rng.lognormal(6, 0.4, n),
        "input_tokens": np.full(n, 1000),
        "cached_input_tokens": rng.integers(0, 500, n),
        "error": np.full(n, None),
        "predicted": e.predicted,
    }


def write(path: Path, data: Columns) -> Path:
    kinds = {"timestamp": pa.timestamp("us", "UTC"), "error": pa.string(), "success": pa.float64()}
    arrays = {
        name: pa.array(values, from_pandas=True).cast(kinds[name]) if name in kinds else pa.array(values)
        for name, values in data.items()
        if name != "predicted"
    }
    pq.write_table(pa.table(arrays), path)
    return path


def take(data: Columns, rows: np.ndarray) -> Columns:
    return {name: values[rows] for name, values in data.items()}


@pytest.fixture
def reading(tmp_path: Path) -> Callable[..., Reading]:
    def read(data: Columns, *, predicted: bool = False, **settings: Any) -> Reading:
        unit = settings.pop("unit", None)
        path = write(tmp_path / "logs.parquet", data)
        known = dict(zip(data["request_id"].tolist(), data["predicted"].tolist(), strict=True))
        predictor = (lambda batch: np.array([known[i] for i in batch["request_id"].to_pylist()])) if predicted else None
        requests = read_requests([path], unit=unit, predictor=predictor)
        return read_test(requests, ReadSettings(**({"shares": HALF} | settings)))

    return read


def kinds(found: Reading) -> set[str]:
    return {finding.kind for finding in found.findings}


def difference(found: Reading, metric: str) -> Any:
    return next(one for one in found.challengers[0].differences if one.metric == metric)


# -- verdicts and figures ------------------------------------------------------------------------


def test_a_challenger_that_saves_a_fifth_at_equal_quality_is_promoted(reading: Callable[..., Reading]) -> None:
    data = columns(1, cost_effect=-0.2, days=20, sessions_per_day=1500, base_success=0.95)
    found = reading(data, margins={"success": 0.015})
    [challenger] = found.challengers
    assert challenger.verdict.action is Action.PROMOTE
    assert kinds(found) == set()
    cost = difference(found, "cost_per_request")
    assert cost.relative.low < -0.2 < cost.relative.high < 0
    monthly = len(data["arm"]) / 20 * 30.44
    assert challenger.usd_per_month.estimate == pytest.approx(cost.difference.estimate * monthly, rel=0.01)


def test_a_challenger_that_fails_more_is_stopped_for_harm(reading: Callable[..., Reading]) -> None:
    found = reading(columns(2, success_effect=-0.09, base_success=0.9))
    assert found.challengers[0].verdict.action is Action.STOP
    assert found.challengers[0].verdict.is_harm
    assert "success" in found.challengers[0].verdict.reason


def test_errors_alone_stop_a_challenger(reading: Callable[..., Reading]) -> None:
    data = columns(3)
    rng = np.random.default_rng(3)
    fails = (data["arm"] == "challenger") & (rng.random(len(data["arm"])) < 0.08)
    data["error"] = np.where(fails, "timeout", None)
    data["success"] = np.where(fails, np.nan, data["success"])
    found = reading(data)
    assert found.challengers[0].verdict.is_harm
    assert "errors" in found.challengers[0].verdict.reason
    assert "missing outcomes" not in kinds(found)


def test_equal_arms_with_little_traffic_keep_running_or_cannot_tell(reading: Callable[..., Reading]) -> None:
    assert reading(columns(4)).challengers[0].verdict.action in (Action.KEEP_RUNNING, Action.CANNOT_TELL)


def test_metrics_of_an_arm_are_sums_over_its_requests(reading: Callable[..., Reading]) -> None:
    data = columns(5, label_rate=0.5)
    found = {arm.arm: arm for arm in reading(data).arms}
    mine = data["arm"] == "challenger"
    success, cost = data["success"][mine], data["cost_usd"][mine]
    figures = found["challenger"].metrics
    assert figures["success"] == pytest.approx(np.nanmean(success))
    assert figures["cost_per_request"] == pytest.approx(cost.mean())
    assert figures["cost_per_success"] == pytest.approx(cost[~np.isnan(success)].sum() / np.nansum(success))
    assert figures["latency_ms"] == pytest.approx(data["latency_ms"][mine].mean())
    assert figures["error_rate"] == figures["fallback_rate"] == 0


def test_a_second_model_is_a_fallback_of_the_same_request(reading: Callable[..., Reading]) -> None:
    data = columns(6)
    again = take(data, np.arange(100))
    again["model"] = np.full(100, "other")
    data["success"] = data["success"].copy()
    data["success"][:100] = np.nan
    data["error"] = np.where(np.arange(len(data["arm"])) < 100, "overloaded", None)
    both = {name: np.concatenate([data[name], again[name]]) for name in data}
    found = reading(both)
    assert found.requests == len(data["arm"])
    n = {arm.arm: arm.requests for arm in found.arms}
    fallbacks = sum(arm.metrics["fallback_rate"] * n[arm.arm] for arm in found.arms)
    assert fallbacks == pytest.approx(100)
    assert all(arm.metrics["error_rate"] == 0 for arm in found.arms)


def test_predictions_shrink_intervals_and_every_request_more(reading: Callable[..., Reading]) -> None:
    data = columns(7, days=12, sessions_per_day=600)
    plain, first, every = (
        difference(found, "cost_per_request").difference
        for found in (
            reading(data),
            reading(data, predicted=True),
            reading(data, predicted=True, scope=Scope.EVERY),
        )
    )
    assert every.high - every.low < 0.8 * (first.high - first.low) < 0.8 * 0.95 * (plain.high - plain.low)


def test_one_segment_that_differs_is_marked_and_the_other_is_not(reading: Callable[..., Reading]) -> None:
    data = columns(8, sessions_per_day=800)
    dear = (data["segment"] == "legal") & (data["arm"] == "challenger")
    data["cost_usd"] = data["cost_usd"] * np.where(dear, 1.5, 1.0)
    cost = {one.segment: one.difference for one in reading(data).challengers[0].segments if one.metric == COST.name}
    assert cost["legal"].low > 0
    assert cost["chat"].low < 0 < cost["chat"].high


def test_the_promise_is_kept_broken_or_open(reading: Callable[..., Reading]) -> None:
    data = columns(9, success_effect=-0.09, base_success=0.9, sessions_per_day=600)
    # 0.81 of 0.9 is nine tenths.
    words = {t: reading(data, quality_target=t).challengers[0].promise.words for t in (0.8, 0.9, 0.99)}
    assert words == {0.8: "kept", 0.9: "cannot tell yet", 0.99: "broken"}


def test_more_than_two_arms_are_each_held_against_the_control(reading: Callable[..., Reading]) -> None:
    data = columns(10, sessions_per_day=600)
    third = np.char.endswith(data["session_id"], "3") | np.char.endswith(data["session_id"], "6")
    data["arm"] = np.where(third, "third", data["arm"].astype("U10"))
    data["version"] = np.where(third, "9", data["version"])
    data["cost_usd"] = np.where(third, 2.0, 1.0) * data["cost_usd"]
    found = reading(data, shares=(Share("challenger", 0.4), Share("third", 0.2)))
    assert [one.arm for one in found.challengers] == ["challenger", "third"]
    assert found.challengers[1].verdict.is_harm
    assert not found.challengers[0].verdict.is_harm


def test_a_ramp_does_not_pass_for_a_difference(reading: Callable[..., Reading]) -> None:
    """The challenger gets more traffic while everything gets dearer; with the ramp stated, nothing is found."""
    early, late = (columns(11 + k, share=share, sessions_per_day=1200) for k, share in enumerate((0.05, 0.5)))
    late["cost_usd"] = late["cost_usd"] * 1.5
    late["timestamp"] = late["timestamp"] + 10 * DAY
    for name in ("request_id", "session_id"):
        late[name] = np.char.add("late-", late[name])
    data = {name: np.concatenate([early[name], late[name]]) for name in early}
    ramp = (Share("challenger", 0.05), Share("challenger", 0.5, datetime.fromtimestamp(START / 1e6 + 864000, UTC)))
    cost = difference(reading(data, shares=ramp), COST.name).difference
    assert cost.low < 0 < cost.high
    naive = reading(data, shares=())
    assert "shares changed" in kinds(naive)
    assert difference(naive, COST.name).difference.low > 0
    assert naive.challengers[0].verdict.action is Action.CANNOT_TELL


def test_late_outcomes_are_waited_for(reading: Callable[..., Reading]) -> None:
    data = columns(12, delayed=True, days=14, sessions_per_day=800)
    found = reading(data)
    assert 1 <= found.settle_days <= 4
    path = difference(found, "success").path
    assert [point.estimate is None for point in path[: found.settle_days + 1]] == [True] * found.settle_days + [False]
    assert reading(columns(12, days=14, label_rate=0.3)).settle_days == 0


def test_a_fixed_horizon_concludes_once_and_is_narrower(reading: Callable[..., Reading]) -> None:
    data = columns(13, cost_effect=-0.2, sessions_per_day=1500, base_success=0.95)
    end = datetime.fromtimestamp(START / 1e6, UTC) + timedelta(days=9)
    due = reading(data, horizon=end, margins={"success": 0.02})
    always = reading(take(data, data["timestamp"] < START + 9 * DAY), margins={"success": 0.02})
    a, b = (difference(found, COST.name).difference for found in (due, always))
    assert a.estimate == pytest.approx(b.estimate)
    assert a.high - a.low < b.high - b.low
    early = reading(data, horizon=end + timedelta(days=5), margins={"success": 0.02})
    assert early.challengers[0].verdict.action is Action.KEEP_RUNNING
    assert "horizon" in early.challengers[0].verdict.reason


def test_reading_yesterdays_logs_again_gives_the_path_of_today(reading: Callable[..., Reading]) -> None:
    data = columns(14, sessions_per_day=500)
    today = difference(reading(data, settle_days=0), SUCCESS.name)
    before = difference(reading(take(data, data["timestamp"] < START + 7 * DAY), settle_days=0), SUCCESS.name)
    assert before.path[-1].estimate == pytest.approx(today.path[6].estimate)
    assert before.path[-1].low == pytest.approx(today.path[6].low)


# -- health --------------------------------------------------------------------------------------


def test_a_sound_test_has_nothing_to_report(reading: Callable[..., Reading]) -> None:
    assert kinds(reading(columns(20), predicted=True)) == set()


def withheld(found: Reading, kind: str) -> None:
    assert kind in kinds(found)
    verdict = found.challengers[0].verdict
    assert verdict.action is Action.CANNOT_TELL
    assert kind in verdict.reason


def test_lost_units_of_one_arm_are_a_broken_split(reading: Callable[..., Reading]) -> None:
    data = columns(21, sessions_per_day=600)
    number = np.char.lstrip(data["session_id"], "s").astype(int)
    kept = (data["arm"] == "champion") | (number % 5 != 0)
    withheld(reading(take(data, kept)), "split")


def test_a_split_broken_in_one_segment_only_is_named(reading: Callable[..., Reading]) -> None:
    data = columns(22, sessions_per_day=600)
    number = np.char.lstrip(data["session_id"], "s").astype(int)
    kept = (data["arm"] == "champion") | (data["segment"] == "chat") | (number // 2 % 3 != 0)
    found = reading(take(data, kept))
    withheld(found, "split")
    assert any("in segment legal" in finding.words for finding in found.findings)
    assert not any("in segment chat" in finding.words for finding in found.findings)


def test_units_in_two_arms_are_seen(reading: Callable[..., Reading]) -> None:
    data = columns(23)
    rng = np.random.default_rng(0)
    data["arm"] = np.where(rng.random(len(data["arm"])) < 0.1, ARMS[1], data["arm"])
    data["version"] = np.where(data["arm"] == ARMS[1], "8", "7")
    withheld(reading(data), "units in two arms")


def test_a_version_change_in_one_arm_is_seen(reading: Callable[..., Reading]) -> None:
    data = columns(24)
    data["version"] = np.where((data["timestamp"] > START + 5 * DAY) & (data["arm"] == ARMS[1]), "9", data["version"])
    found = reading(data)
    withheld(found, "version change")
    assert any("arm challenger" in finding.words and "2025-11-06" in finding.words for finding in found.findings)


def test_outcomes_that_one_arm_loses_are_seen(reading: Callable[..., Reading]) -> None:
    data = columns(25, sessions_per_day=800)
    rng = np.random.default_rng(0)
    lost = (data["arm"] == ARMS[1]) & (data["success"] == 0) & (rng.random(len(data["arm"])) < 0.3)
    data["success"] = np.where(lost, np.nan, data["success"])
    withheld(reading(data), "missing outcomes")


def test_different_traffic_in_the_arms_is_seen(reading: Callable[..., Reading]) -> None:
    data = columns(26, sessions_per_day=800)
    number = np.char.lstrip(data["session_id"], "s").astype(int)
    first = np.searchsorted(number, number)
    hard = data["predicted"][first, 0] < 0.6
    # Hard sessions of the challenger and as many easy ones of the champion are lost: the counts stay even.
    lost = np.where(data["arm"] == ARMS[1], hard & (number % 3 == 0), ~hard & (number % 3 == 0) & (number % 2 == 0))
    withheld(reading(take(data, ~lost), predicted=True, shares=()), "traffic")


def test_an_effect_that_wears_off_is_seen(reading: Callable[..., Reading]) -> None:
    data = columns(27, days=24, sessions_per_day=1200)
    age = (data["timestamp"] - START) / DAY
    data["cost_usd"] = data["cost_usd"] * np.where(data["arm"] == ARMS[1], 1 - 0.5 * np.exp(-age / 5), 1.0)
    assert "effect changes over time" in kinds(reading(data))


def test_caches_and_budgets_that_arms_share_are_seen(reading: Callable[..., Reading]) -> None:
    data = columns(28)
    colder = data["arm"] == ARMS[1]
    data["cached_input_tokens"] = np.where(colder, data["cached_input_tokens"] // 2, data["cached_input_tokens"])
    data["error"] = np.where(np.arange(len(colder)) % 50 == 0, "HTTP 429: rate limit reached", None)
    assert {"shared cache", "shared budget"} <= kinds(reading(data))


# -- verdict by intervals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("success", "cost", "action", "is_harm"),
    [
        ((-0.005, 0.01), (0.2, 0.3), Action.PROMOTE, False),
        ((-0.02, 0.01), (0.2, 0.3), Action.KEEP_RUNNING, False),
        ((-0.03, -0.02), (0.2, 0.3), Action.STOP, True),
        ((-0.005, 0.005), (-0.02, 0.02), Action.STOP, False),
        ((0.02, 0.03), (-0.3, -0.2), Action.STOP, True),
        ((0.02, 0.03), (-0.04, 0.01), Action.PROMOTE, False),
        ((None, None), (0.2, 0.3), Action.KEEP_RUNNING, False),
    ],
)
def test_the_verdict_follows_from_the_intervals(success: Any, cost: Any, action: Action, is_harm: bool) -> None:
    wait = None if success[0] is None else 3.0
    judged = [Judged("success", *success, 0.01, True, wait), Judged("cost", *cost, 0.05, True, 3.0)]
    found = judge(judged, [], never_seen={})
    assert (found.action, found.is_harm) == (action, is_harm)


def test_harm_is_told_even_where_the_verdict_is_withheld() -> None:
    broken = [Finding("split", Weight.WITHHOLDS, "")]
    for low, high, is_harm in ((-0.3, -0.2, True), (-0.3, 0.2, False)):
        found = judge([Judged("success", low, high, 0.01, True, 3.0)], broken, never_seen={})
        assert (found.action, found.is_harm) == (Action.CANNOT_TELL, is_harm)


def test_what_takes_too_long_is_called_so() -> None:
    judged = [Judged("success", -0.5, 0.5, 0.01, True, 4000.0)]
    assert judge(judged, [], never_seen={}).action is Action.CANNOT_TELL


# -- planning ------------------------------------------------------------------------------------


def test_a_plan_knows_the_traffic_and_larger_effects_take_less(tmp_path: Path) -> None:
    data = columns(30, days=12, sessions_per_day=500, label_rate=0.4)
    requests = read_requests([write(tmp_path / "logs.parquet", data)])
    effects = [Effect("cost_per_request", size) for size in (0.05, 0.1, 0.2)]
    plan = plan_test(requests, effects, share=0.5)
    assert plan.units_per_day == pytest.approx(500, rel=0.1)
    days = [need.days for need in plan.needs]
    assert days == sorted(days, reverse=True) and len(set(days)) == 3
    assert all(need.days_fixed <= need.days for need in plan.needs)
    assert plan.detectable[0].known == pytest.approx(0.4, abs=0.03)
    small = plan_test(requests, effects, share=0.1).needs[1].days
    # Variance goes with 1 / share + 1 / (1 - share).
    assert 2 < small / days[1] < 4


# -- command line --------------------------------------------------------------------------------


def run(*args: str) -> int:
    try:
        return main(["ab", *args])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_read_prints_a_verdict_and_writes_json_page_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "logs.parquet", columns(40))
    page = tmp_path / "page.html"
    assert run("read", str(path), "--share", "challenger=50%", "--html", str(page), "--plots", str(tmp_path / "p")) == 0
    out = capsys.readouterr().out
    assert out.startswith("challenger: ")
    assert "a month" in out
    text = page.read_text()
    assert text.count("<svg") == 5 and "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "cost_quality.png",
        "over_time_cost_per_request.png",
        "over_time_error_rate.png",
        "over_time_success.png",
        "segments.png",
    ]
    assert run("read", str(path), "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["challengers"][0]["verdict"]["action"] in ("keep running", "cannot tell", "promote", "stop")
    assert len(data["challengers"][0]["differences"][0]["path"]) == data["days"]


def test_plan_prints_days_for_each_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "logs.parquet", columns(41))
    assert run("plan", str(path), "--effect", "success=5pt", "--effect", "cost_per_request=20%", "--share", "10%") == 0
    out = capsys.readouterr().out
    assert "success by 5 points" in out and "cost per request by 20%" in out


@pytest.mark.parametrize(
    ("change", "args", "said"),
    [
        ({"arm": None}, (), "no row has an `arm`"),
        ({"arm": "champion"}, (), "the only arm is `champion`"),
        ({"timestamp": None}, (), "`timestamp`"),
        ({"success": None, "cost_usd": None}, (), "neither `success` nor `cost_usd`"),
        ({}, ("--control", "third"), "none of the arms: challenger, champion"),
        ({}, ("--share", "challenger"), "ARM=SHARE"),
        ({}, ("--share", "other=0.5"), "`other`"),
        ({}, ("--share", "challenger=150%"), "between 0 and 1"),
        ({}, ("--share", "champion=0.5"), "what they leave"),
        ({}, ("--margin", "quality=1pt"), "METRIC is one of"),
        ({}, ("--margin", "success=much"), "must end in a number"),
        ({}, ("--since", "yesterday"), "2026-11-20"),
        ({}, ("--since", "2030-01-01"), "no row lies between"),
        ({}, ("--unit", "tenant"), "`tenant`"),
        ({}, ("--reference", "third"), "none of the arms"),
        ({}, ("--horizon", "2020-01-01"), "before the horizon"),
        ({}, ("--catalog", "catalog.yaml"), "--model"),
    ],
)
def test_wrong_tables_and_options_are_named(
    change: dict[str, Any], args: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "prompt": f"q{i}",
            "model": "m",
            "arm": ARMS[i % 2],
            "timestamp": "2025-11-20T10:00:00Z",
            "success": 1,
            "cost_usd": 0.01,
        }
        | change
        for i in range(20)
    ]
    path = tmp_path / "logs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("read", str(path), *args) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_tiny_test_says_that_too_little_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "logs.parquet", take(columns(42), np.arange(60)))
    assert run("read", str(path), "--html", str(tmp_path / "page.html")) == 0
    assert "too few" in capsys.readouterr().out


def test_requests_without_a_session_are_units_of_their_own(tmp_path: Path) -> None:
    data = columns(43)
    data = take(data, np.argsort(data["timestamp"], kind="stable"))
    data["session_id"] = np.where(np.arange(len(data["arm"])) % 2 == 0, data["session_id"], None)
    requests = read_requests([write(tmp_path / "logs.parquet", data)])
    assert requests.unit_kind is UnitKind.SESSION
    alone = requests.unit[np.isin(data["session_id"], [None])]
    assert len(np.unique(alone)) == len(alone)


# -- predictions of a version --------------------------------------------------------------------


def test_predictions_are_one_versions_own_whatever_the_arm(tiny_bundle: Path, tmp_path: Path) -> None:
    data = take(columns(44), np.arange(50))
    router = Router.load(tiny_bundle)
    requests = read_requests([write(tmp_path / "logs.parquet", data)], predictor=predictor_of(router))
    by_time = take(data, np.argsort(data["timestamp"], kind="stable"))
    for i in (0, 7, 30):
        decision = router.route(str(by_time["prompt"][i]), segment=str(by_time["segment"][i]))
        chosen = next(one for one in decision.candidates if one.offer == decision.offer)
        assert requests.predicted[i] == pytest.approx([chosen.p_success, chosen.cost_usd], rel=1e-4)


def test_a_bundle_given_for_predictions_is_used(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "logs.parquet", columns(45, days=3))
    assert run("read", str(path), "--model", str(tiny_bundle), "--covariates", "every-request") == 0
    assert "saved by covariates" in capsys.readouterr().out


def test_a_table_without_any_text_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = columns(46)
    del data["prompt"]
    path = write(tmp_path / "logs.parquet", data)
    assert run("read", str(path)) == 0
    assert f"{len(data['arm']):,} requests" in capsys.readouterr().out


def test_the_commands_that_the_page_shows_are_ones_that_the_program_takes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ab.md").read_text()
    shown = re.findall(r"^router-ml (ab [^#\n]*)", page, re.MULTILINE)
    assert len(shown) >= 2
    for command in shown:
        _parser().parse_args(shlex.split(command))
