"""What drift finds in logs, says, and remembers; how often it is wrong is in statistics/test_drift_rates.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from router_ml.errors import InputError
from router_ml.router import Router
from training.drift import DriftReport, DriftSettings, DriftState, Finding, Kind, Observed, find_drift, observe
from training.drift.nights import NightMean, pooled
from training.outcomes import OUTCOME_SCHEMA


def made(seed: int, n: int = 400, **columns: Any) -> Observed:
    """Nothing but noise: two models that are right as often as expected, four rows to a session."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=(n, 4)).astype(np.float32)
    tokens = np.exp(rng.normal(5, 0.3, n))
    values: dict[str, Any] = {
        "cluster": np.arange(n) // 4,
        "prompt": np.arange(n),
        "vector": vector / np.linalg.norm(vector, axis=1, keepdims=True),
        "segment": np.array(["chat", "code"])[rng.integers(0, 2, n // 4).repeat(4)],
        "model": np.array(["large", "tiny"])[rng.integers(0, 2, n)],
        "success": (rng.random(n) < 0.8).astype(float),
        "p_success": np.full(n, 0.8),
        "output_tokens": tokens,
        "expected_tokens": np.full(n, np.exp(5)),
        "cost_usd": tokens * 1e-5,
        "expected_cost": tokens * 1e-5,
        "billed": np.ones(n, dtype=bool),
        "failed": np.zeros(n, dtype=bool),
        "missing": {"success": np.zeros(n, dtype=bool), "cost_usd": np.zeros(n, dtype=bool)},
    }
    return Observed(**(values | columns))


def drift(current: Observed, *, state: DriftState | None = None, night: str = "2026-11-20", **more: Any) -> DriftReport:
    return find_drift(current, **({"last_night": made(1), "training": made(2, 1200)} | more), night=night, state=state)


def the(report: DriftReport, kind: Kind, subject: str = "", since: str = "training") -> Finding:
    (found,) = [one for one in report.findings if (one.kind, one.subject, one.since) == (kind, subject, since)]
    return found


def changed(observed: Observed, model: str, column: str, factor: float) -> Observed:
    values = getattr(observed, column)
    return replace(observed, **{column: np.where(observed.model == model, values * factor, values)})


# -- what is found --------------------------------------------------------------------------------


def test_a_night_like_the_others_raises_no_alarm_and_says_how_sure_that_is() -> None:
    report = drift(made(3))
    assert report.alarms == ()
    assert report.lines()[0] == "no drift beyond noise"
    assert "with probability 0.01 at most" in report.lines()[-1]
    assert report.n_tests["training"] == len([one for one in report.findings if one.since == "training"])


@pytest.mark.parametrize(
    ("spoil", "kind", "subject", "size", "words"),
    [
        (
            lambda night: changed(night, "tiny", "success", 0.0),
            Kind.SUCCESS,
            "tiny",
            pytest.approx(-0.8, abs=0.1),
            "compare its answers",
        ),
        (
            lambda night: changed(night, "tiny", "cost_usd", 0.5),
            Kind.PRICE,
            "tiny",
            pytest.approx(0.5),
            "in the catalog",
        ),
        (
            lambda night: changed(night, "large", "output_tokens", 2.0),
            Kind.OUTPUT_LENGTH,
            "large",
            pytest.approx(2.0, rel=0.1),
            "as long on like prompts",
        ),
        (
            lambda night: replace(night, failed=(night.model == "tiny") & (np.arange(len(night)) % 3 == 0)),
            Kind.ERRORS,
            "tiny",
            pytest.approx(0.33, abs=0.1),
            "ask its provider",
        ),
        (
            lambda night: replace(night, missing=night.missing | {"cost_usd": np.arange(len(night)) % 4 == 0}),
            Kind.MISSING,
            "cost_usd",
            pytest.approx(0.25),
            "still logs that column",
        ),
        (
            lambda night: replace(night, missing=night.missing | {"success": np.arange(len(night)) % 4 == 0}),
            Kind.LABELS,
            "",
            pytest.approx(-0.25),
            "still reported in full",
        ),
        (
            lambda night: replace(night, segment=np.full(len(night), "code")),
            Kind.SEGMENT_PRESENCE,
            "chat",
            pytest.approx(-0.5, abs=0.1),
            "is gone",
        ),
        (
            lambda night: replace(night, model=np.where(np.arange(len(night)) % 9 == 0, "new", night.model)),
            Kind.MODEL_PRESENCE,
            "new",
            pytest.approx(0.11, abs=0.01),
            "put its offers into the catalog",
        ),
        (
            lambda night: replace(night, vector=np.abs(night.vector)),
            Kind.PROMPTS,
            "",
            pytest.approx(0.95, abs=0.1),
            "look at the newest prompts",
        ),
    ],
)
def test_each_change_is_told_with_its_size_and_what_to_do(
    spoil: Any, kind: Kind, subject: str, size: Any, words: str
) -> None:
    report = drift(spoil(made(3)))
    for since in ("last night", "training"):
        found = the(report, kind, subject, since)
        assert found.alarm and found.beyond_noise and found.size == size
        assert words in found.words and f"since {since}" in found.words
        if found.low is not None and found.high is not None:
            assert found.low <= found.size <= found.high
    assert f"drift: {the(report, kind, subject).words}" in report.lines()


def test_a_moved_mix_names_the_segment_that_moved_most() -> None:
    night = made(3)
    session = np.arange(len(night)) // 4
    found = drift(replace(night, segment=np.where(session % 10 == 0, "chat", "code")))
    moved = [one for one in found.alarms if one.kind is Kind.SEGMENTS and one.since == "training"]
    assert len(moved) == 1 and abs(moved[0].size) == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize(
    ("column", "kind", "words"),
    [
        ("cost_usd", Kind.PRICE, "`tiny` costs 1.02 times"),
        ("expected_tokens", Kind.OUTPUT_LENGTH, "answers of `tiny` are 0.98 times"),
    ],
)
def test_what_is_beyond_noise_and_too_small_alarms_no_one(column: str, kind: Kind, words: str) -> None:
    night, training = (replace(one, expected_tokens=one.output_tokens) for one in (made(3), made(2, 1200)))
    report = drift(changed(night, "tiny", column, 1.02), last_night=None, training=training)
    (found,) = [one for one in report.findings if one.beyond_noise]
    assert (found.kind, found.subject, found.alarm) == (kind, "tiny", False)
    assert "it does not matter" in found.words
    assert report.lines()[0].startswith(f"no drift that matters: {words}")


def test_a_price_that_the_catalog_has_followed_is_no_alarm() -> None:
    before = changed(made(2, 1200), "tiny", "expected_cost", 0.5)
    report = find_drift(made(3), last_night=None, training=before, night="1")
    price = the(report, Kind.PRICE, "tiny")
    assert price.beyond_noise and not price.alarm
    assert "nothing to do" in price.words


def test_a_price_that_has_jumped_is_known_exactly() -> None:
    price = the(drift(changed(made(3), "tiny", "cost_usd", 0.5)), Kind.PRICE, "tiny")
    assert (price.low, price.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (price.before, price.now) == (pytest.approx(1.0), pytest.approx(0.5))


def test_a_rare_model_that_no_one_called_tonight_is_not_gone() -> None:
    before = made(2, 1200)
    rare = np.arange(len(before)) < 24  # of six sessions, 2 % of the requests
    report = drift(made(3), last_night=None, training=replace(before, model=np.where(rare, "rare", before.model)))
    found = the(report, Kind.MODEL_PRESENCE, "rare")
    assert found.matters and not found.beyond_noise
    assert report.alarms == ()


def test_prices_are_judged_by_logged_tokens_where_most_rows_have_them() -> None:
    """An estimate of the tokens that is off is a matter of length, not of price."""
    night = made(3)
    estimated = np.arange(len(night)) % 3 == 0
    off = np.where(estimated, night.expected_cost * 3, night.expected_cost)
    report = drift(replace(night, billed=~estimated, expected_cost=off))
    assert the(report, Kind.PRICE, "tiny").size == pytest.approx(1.0)


def test_success_that_fell_with_the_label_rate_sends_to_the_labels_first() -> None:
    night = changed(made(3), "tiny", "success", 0.0)
    unknown = np.arange(len(night)) % 2 == 0
    night = replace(
        night,
        success=np.where(unknown, np.nan, night.success),
        missing=night.missing | {"success": unknown},
    )
    assert "look at the label rate first" in the(drift(night), Kind.SUCCESS, "tiny").words


def test_the_same_logs_give_the_same_report() -> None:
    assert drift(made(3)) == drift(made(3))


def test_false_alarms_allowed_set_the_level_of_every_test() -> None:
    night = made(4)
    night = replace(night, success=np.where(night.model == "tiny", night.success - 0.2, night.success).clip(0))
    strict, lenient = (
        find_drift(
            night,
            last_night=None,
            training=made(2, 1200),
            night="1",
            settings=DriftSettings(false_alarms=share),
        )
        for share in (1e-9, 0.5)
    )
    assert not the(strict, Kind.SUCCESS, "tiny").beyond_noise
    assert the(lenient, Kind.SUCCESS, "tiny").beyond_noise


def test_a_first_night_has_nothing_to_compare_with() -> None:
    report = find_drift(made(3), last_night=None, training=None, night="1")
    assert report.findings == () and report.n_tests == {}
    assert "nothing to compare with since training" in report.notes


def test_a_handful_of_sessions_is_not_judged() -> None:
    report = drift(made(3, 16))
    assert not [one for one in report.findings if one.kind in (Kind.PROMPTS, Kind.SEGMENTS, Kind.SUCCESS)]
    assert "too few sessions to look for new prompts and segments since training" in report.notes


def test_without_embeddings_the_rest_is_still_compared() -> None:
    report = drift(replace(made(3), vector=None))
    assert not [one for one in report.findings if one.kind is Kind.PROMPTS]
    assert any("no embeddings" in note for note in report.notes)
    assert the(report, Kind.SUCCESS, "tiny")


def test_a_report_is_json() -> None:
    report = drift(changed(made(3), "tiny", "cost_usd", 0.5))
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["alarms"] == len(report.alarms) == 2
    alarm = next(one for one in values["findings"] if one["alarm"])
    assert alarm["kind"] == "price" and alarm["subject"] == "tiny" and "catalog" in alarm["words"]


# -- memory ---------------------------------------------------------------------------------------


def test_nights_that_show_nothing_alone_show_it_together_and_begin_anew_when_told() -> None:
    state, told = None, []
    for k in range(8):
        night = made(10 + k, 200)
        p_success = np.where(night.model == "tiny", 0.93, 0.8)
        report = drift(replace(night, p_success=p_success), state=state, night=str(k), last_night=None)
        state = report.state
        finding = the(report, Kind.SUCCESS, "tiny")
        told.append(finding.nights if finding.alarm else 0)
        if finding.alarm:
            assert f"over {finding.nights} nights" in finding.words and "success: tiny" not in state.nights
    assert told[0] == 0 and max(told) >= 3


def test_a_night_that_is_looked_at_again_counts_once() -> None:
    first = drift(made(3), night="1").state
    once, twice = (
        drift(made(4), state=state, night="2").state for state in (first, drift(made(4), state=first, night="2").state)
    )
    assert once == twice


def test_the_state_survives_a_file() -> None:
    state = drift(made(3), night="1", state=drift(made(4), night="0").state).state
    assert DriftState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False))) == state


def test_the_state_does_not_grow_for_ever() -> None:
    state = DriftState.empty()
    for k in range(17):
        state = drift(made(k, 80), state=state, night=str(k)).state
    assert {len(nights) for nights in state.nights.values()} <= set(range(15))


@pytest.mark.parametrize("values", [{"success: a": 3}, {"success: a": [{"night": "1"}]}])
def test_a_state_that_is_something_else_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"`success: a`.*remove the state"):
        DriftState.from_dict(values)


def test_outcomes_that_come_in_late_every_night_are_no_news() -> None:
    """Of tonight's outcomes half are known, of the days before all: so it was on each night."""

    def late(seed: int, n: int, share: float) -> Observed:
        unknown = np.random.default_rng(seed).random(n) < share
        return replace(made(seed, n), missing={"success": unknown})

    assert the(drift(late(3, 400, 0.5)), Kind.LABELS).alarm  # nothing is remembered: all outcomes should have come
    first = drift(late(3, 400, 0.5), night="1", state=DriftState.empty())
    assert first.alarms == ()
    second = drift(late(4, 400, 0.5), night="2", state=first.state)
    assert not [one for one in second.alarms if one.kind is Kind.LABELS]
    third = drift(late(5, 400, 0.8), night="3", state=second.state)
    assert the(third, Kind.LABELS, since="last night").size == pytest.approx(-0.3, abs=0.1)
    assert [one.kind for one in third.alarms] == [Kind.LABELS]


def test_the_error_of_a_common_reference_does_not_average_out_over_nights() -> None:
    nights = tuple(NightMean(str(k), -0.1, 0.01, 50, 40, 0.0025, 200) for k in range(4))
    together = pooled(nights)
    assert together.value == pytest.approx(-0.1)
    assert together.variance == pytest.approx(0.01 / 4 + 0.0025)
    assert pooled(nights[:1]).variance == pytest.approx(0.0125)


# -- from the outcome table -----------------------------------------------------------------------


def rows(texts: list[str], **columns: list[Any]) -> pa.Table:
    names = [field.name for field in OUTCOME_SCHEMA]
    values = {"request_id": [f"r{i}" for i in range(len(texts))], "prompt": texts, "model": ["tiny"] * len(texts)}
    values["prompt_id"] = values["request_id"]
    values |= columns
    return pa.Table.from_arrays(
        [pa.array(values.get(name, [None] * len(texts)), OUTCOME_SCHEMA.field(name).type) for name in names],
        schema=OUTCOME_SCHEMA,
    )


def test_rows_are_observed_beside_what_the_bundle_expects_of_them(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)
    texts = ["bab bac deb", "bab bac deb", "xrob xrob xrob", "fib gob"]
    table = rows(
        texts,
        model=["tiny", "large", "large", "stranger"],
        offer=["tiny@eu", None, "gone@us", None],
        segment=["chat", "chat", None, "code"],
        session_id=["s", "s", None, None],
        success=[1.0, 0.0, None, 1.0],
        input_tokens=[1000, 1000, 1000, 1000],
        output_tokens=[500, 500, 500, 500],
        cost_usd=[1.8e-4, None, 0.01, 0.01],
        error=[None, None, "timeout", None],
    )
    found = observe(table, router)
    assert found.cluster[0] == found.cluster[1] and len(set(found.cluster.tolist())) == 3
    assert found.model.tolist() == ["tiny", "large", "large", "stranger"]
    assert found.segment.tolist() == ["chat", "chat", "", "code"]
    for i, name in enumerate(("tiny", "large")):
        decision = router.route(texts[i], segment="chat")
        candidate = decision.candidate(f"{name}@us")
        assert found.p_success[i] == pytest.approx(candidate.p_success, abs=1e-6)
        assert found.expected_tokens[i] == pytest.approx(candidate.output_tokens, rel=1e-5)
    assert np.isnan(found.p_success[3]) and np.isnan(found.expected_tokens[3])
    assert found.expected_cost[0] == pytest.approx((1000 * 0.06 + 500 * 0.24) / 1e6)
    assert found.expected_cost[1] == pytest.approx((1000 * 5 + 500 * 20) / 1e6)
    assert np.isnan(found.expected_cost[2:]).all()
    assert found.failed.tolist() == [False, False, True, False]
    assert found.missing["success"].tolist() == [False, False, True, False]
    assert found.missing["cost_usd"].tolist() == [False, True, False, False]
    assert found.vector is not None
    assert np.linalg.norm(found.vector[found.prompt], axis=1) == pytest.approx(1.0, abs=1e-5)


def test_tokens_from_a_prompt_cache_are_priced_as_such(tiny_bundle: Path) -> None:
    table = rows(
        ["bab bac deb"],
        model=["small"],
        offer=["small@eu"],
        input_tokens=[1000],
        cached_input_tokens=[800],
        output_tokens=[100],
    )
    found = observe(table, Router.load(tiny_bundle))
    assert found.expected_cost[0] == pytest.approx((200 * 0.25 + 800 * 0.025 + 100 * 1.0) / 1e6)


def test_rows_without_tokens_are_priced_by_the_champion_s_expectation(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)
    found = observe(rows(["bab bac deb"], offer=["tiny@us"]), router)
    candidate = router.route("bab bac deb").candidate("tiny@us")
    assert not found.billed[0] and found.expected_cost[0] == pytest.approx(candidate.cost_usd, rel=1e-4)


def test_embeddings_are_observed_as_they_came(embedding_bundle: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 16))
    found = observe(rows([None] * 3, embedding=vectors.tolist()), Router.load(embedding_bundle))
    assert found.vector is not None
    assert found.vector[found.prompt] == pytest.approx(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True), abs=1e-6
    )


def test_no_row_is_an_error_that_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no row to look for drift in"):
        observe(rows([]), Router.load(tiny_bundle))


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="`success` must have a value for each of the 400 rows, found 2"):
        made(1, success=np.zeros(2))
