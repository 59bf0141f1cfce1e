from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from router_ml.errors import InputError
from training.synthetic.logging_policy import LoggingPolicy, logging_probabilities
from training.synthetic.traffic import (
    Drift,
    LongerAnswers,
    NewModel,
    Outage,
    PriceChange,
    PromptDrift,
    TrafficSettings,
    TrafficSlice,
    draw_traffic,
)
from training.synthetic.world import World, WorldSettings

PLAIN = TrafficSettings(days=4, requests_per_day=300)


@pytest.fixture(scope="module")
def world() -> World:
    return World.create(3)


@pytest.fixture(scope="module")
def plain(world: World) -> list[TrafficSlice]:
    return list(draw_traffic(world, PLAIN))


def test_traffic_has_so_many_requests_each_day_with_ids_of_their_own(plain: list[TrafficSlice]) -> None:
    assert [(part.day, len(part.prompts)) for part in plain] == [(0, 300), (1, 300), (2, 300), (3, 300)]
    assert len({name for part in plain for name in part.request_ids}) == 1200
    assert len({text for part in plain for text in part.prompts.texts}) > 1000


def test_traffic_ends_on_the_day_of_the_prices_unless_told(plain: list[TrafficSlice]) -> None:
    times = np.concatenate([part.time_us for part in plain])
    first = datetime(2026, 11, 16, tzinfo=UTC)
    assert times.min() >= first.timestamp() * 1e6
    assert times.max() < (first + timedelta(days=4)).timestamp() * 1e6


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (datetime(2026, 1, 5), datetime(2026, 1, 5, tzinfo=UTC)),
        (datetime(2026, 1, 5, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 1, 4, 22, tzinfo=UTC)),
    ],
)
def test_traffic_starts_when_told(start: datetime, first: datetime) -> None:
    assert TrafficSettings(start=start).first_moment == first


def test_turns_of_a_session_follow_each_other_on_one_day(plain: list[TrafficSlice]) -> None:
    for part in plain:
        later = part.prompts.turn[1:] > 0
        assert (np.diff(part.time_us)[later] >= 0).all()
        day = datetime(2026, 11, 16, tzinfo=UTC) + timedelta(days=part.day)
        assert ((part.time_us - day.timestamp() * 1e6) // 86.4e9 == 0).all()


def test_a_day_is_busier_at_noon_than_at_night(world: World) -> None:
    (part,) = draw_traffic(world, TrafficSettings(days=1, requests_per_day=3000))
    hour = part.time_us // 3_600_000_000 % 24
    assert ((hour >= 9) & (hour < 17)).mean() > 0.5
    assert (hour < 5).mean() < 0.1


def test_a_day_does_not_depend_on_the_days_before_it_nor_on_how_it_is_sliced(world: World) -> None:
    settings = TrafficSettings(days=2, requests_per_day=7001, start=datetime(2026, 3, 2))
    parts = list(draw_traffic(world, settings))
    assert [part.day for part in parts] == [0, 0, 1, 1]
    assert sum(len(part.prompts) for part in parts) == 14_002
    alone = list(draw_traffic(world, dataclasses.replace(settings, days=1)))
    assert [part.prompts.texts for part in alone] == [part.prompts.texts for part in parts[:2]]
    assert parts[0].time_us.max() < parts[1].time_us.min() + 3_600_000_000 * 3
    assert len({name for part in parts for name in part.session_ids}) == sum(
        part.prompts.session[-1] + 1 for part in parts
    )


def test_propensities_are_probabilities_and_favour_the_ablest(world: World, plain: list[TrafficSlice]) -> None:
    for part in plain:
        assert part.propensity.sum(axis=1) == pytest.approx(1.0)
        assert part.propensity.min() == pytest.approx(0.4 / 8)
        favourite = world.profiles.ability.argmax(axis=0)[part.prompts.segment]
        assert (part.propensity.argmax(axis=1) == favourite).all()


def test_short_prompts_go_to_a_thrifty_model_by_rule_of_thumb(world: World) -> None:
    prompts = world.sample_prompts(2000)
    policy = LoggingPolicy(exploration=0.0, rule=1.0, short_words=50)
    probability = logging_probabilities(policy, world, prompts, np.ones(8, dtype=bool))
    cost = world.true_cost(prompts).mean(axis=0)
    short = prompts.n_words <= 50
    assert (cost[probability[short].argmax(axis=1)] < np.median(cost)).all()
    assert (cost[probability[~short].argmax(axis=1)] == cost.max()).all()
    assert set(np.unique(probability)) == {0.0, 1.0}


def test_exploration_alone_is_uniform_over_what_is_available(world: World) -> None:
    available = np.array([True, False, True, True, False, True, True, True])
    policy = LoggingPolicy(exploration=1.0, rule=0.0)
    probability = logging_probabilities(policy, world, world.sample_prompts(10), available)
    assert probability == pytest.approx(np.tile(available / 6.0, (10, 1)))


@pytest.mark.parametrize(("exploration", "rule"), [(-0.1, 0.0), (0.0, -0.1), (0.7, 0.4), (float("nan"), 0.1)])
def test_shares_that_are_none_are_refused(exploration: float, rule: float) -> None:
    with pytest.raises(InputError, match="shares"):
        LoggingPolicy(exploration=exploration, rule=rule)


def test_only_a_model_that_saw_the_session_has_its_prefix_cached(plain: list[TrafficSlice]) -> None:
    n_cached = 0
    for part in plain:
        session, chosen = part.prompts.session, part.chosen
        prefix = part.world.prefix_tokens(part.prompts)
        for i in range(len(session)):
            earlier = set(chosen[:i][session[:i] == session[i]])
            seen = np.isin(np.arange(8), list(earlier))
            assert np.array_equal(part.cached_tokens[i], np.where(seen, prefix[i], 0.0))
            n_cached += part.cached_tokens[i, chosen[i]] > 0
    assert n_cached > 100


def test_with_full_information_every_model_saw_the_session(world: World) -> None:
    (part,) = draw_traffic(world, TrafficSettings(days=1, requests_per_day=300, full_information=True))
    assert np.array_equal(part.cached_tokens > 0, np.tile(part.prompts.turn[:, None] > 0, (1, 8)))


def test_cached_tokens_make_a_call_cheaper(plain: list[TrafficSlice]) -> None:
    part = plain[0]
    cached = part.cached_tokens > 0
    cost = part.world.true_cost(part.prompts)
    assert (part.expected_cost()[cached] < cost[cached]).all()
    assert np.array_equal(part.expected_cost()[~cached], cost[~cached])


def test_drift_lowers_one_model_and_shifts_the_prompts_from_its_day_on(world: World, plain: list[TrafficSlice]) -> None:
    drift = Drift(day=2, model=world.models[1], ability_change=-2.0, segment_shares=(0.0, 0.0, 0.5, 0.5))
    parts = list(draw_traffic(world, dataclasses.replace(PLAIN, drift=drift)))
    for k in (0, 1):
        assert parts[k].prompts.texts == plain[k].prompts.texts
        assert np.array_equal(parts[k].outcomes.success, plain[k].outcomes.success)
    for k in (2, 3):
        assert set(parts[k].prompts.segment) == {2, 3}
        before, after = world.true_success(parts[k].prompts), parts[k].world.true_success(parts[k].prompts)
        assert (after[:, 1] < before[:, 1]).all()
        assert np.array_equal(np.delete(after, 1, axis=1), np.delete(before, 1, axis=1))


def test_a_supplier_may_change_a_model_while_the_prompts_stay(world: World, plain: list[TrafficSlice]) -> None:
    drift = Drift(day=2, model=world.models[1], ability_change=-2.0, segment_shares=None)
    parts = list(draw_traffic(world, dataclasses.replace(PLAIN, drift=drift)))
    assert [part.prompts.texts for part in parts] == [part.prompts.texts for part in plain]
    after = parts[2].world.true_success(parts[2].prompts)
    assert (after[:, 1] < world.true_success(parts[2].prompts)[:, 1]).all()


def test_prompts_drift_to_one_topic_of_each_segment_from_its_day_on(world: World, plain: list[TrafficSlice]) -> None:
    settings = dataclasses.replace(PLAIN, requests_per_day=2000, prompt_drift=PromptDrift(day=2, share=0.4))
    parts = list(draw_traffic(world, settings))
    last = np.cumsum([len(segment.topics) for segment in world.segments]) - 1
    about = [np.isin(part.prompts.topic, last).mean() for part in parts]
    assert max(about[:2]) + 0.2 < min(about[2:])
    segments = [np.bincount(part.prompts.segment, minlength=4) / 2000 for part in parts]
    assert np.abs(segments[3] - segments[1]).max() < 0.2
    early = list(draw_traffic(world, dataclasses.replace(PLAIN, prompt_drift=PromptDrift(day=2))))
    assert early[1].prompts.texts == plain[1].prompts.texts


def test_answers_of_one_model_are_longer_from_their_day_on(world: World, plain: list[TrafficSlice]) -> None:
    longer = LongerAnswers(day=2, model=world.models[3], factor=1.5)
    parts = list(draw_traffic(world, dataclasses.replace(PLAIN, longer_answers=longer)))
    for part, reference in zip(parts, plain, strict=True):
        ratio = part.world.true_output_tokens(part.prompts) / reference.world.true_output_tokens(part.prompts)
        expected = np.ones(8)
        expected[3] = 1.5 if part.day >= 2 else 1.0
        assert ratio == pytest.approx(np.tile(expected, (300, 1)))


def test_a_price_change_holds_from_its_day_on(world: World, plain: list[TrafficSlice]) -> None:
    change = PriceChange(day=1, model=world.models[3], factor=0.25)
    parts = list(draw_traffic(world, dataclasses.replace(PLAIN, price_change=change)))
    for part, reference in zip(parts, plain, strict=True):
        ratio = part.expected_cost() / reference.expected_cost()
        expected = np.ones(8)
        expected[3] = 0.25 if part.day >= 1 else 1.0
        assert ratio == pytest.approx(np.tile(expected, (300, 1)))
        assert np.array_equal(part.chosen, reference.chosen)


def test_an_outage_fails_every_call_of_one_provider_for_its_hours(world: World) -> None:
    outage = Outage(day=1, provider="openai", hour=10.0, hours=4.0)
    parts = list(draw_traffic(world, dataclasses.replace(PLAIN, outage=outage)))
    openai = np.array([model.startswith("gpt") for model in world.models])
    for part in parts:
        hour = part.time_us / 3.6e9 % 24
        during = (hour >= 10) & (hour < 14) & (part.day == 1)
        assert np.array_equal(part.failed, during[:, None] & openai)
    assert parts[1].failed.sum() > 100


def test_a_new_model_is_called_from_its_day_on_and_not_before(world: World) -> None:
    parts = list(draw_traffic(world, dataclasses.replace(PLAIN, new_model=NewModel(day=2, model=world.models[-1]))))
    for part in parts:
        assert part.available[-1] == (part.day >= 2)
        assert (part.propensity[:, -1] > 0).all() == (part.day >= 2)
        assert (part.chosen == 7).any() == (part.day >= 2)
        assert part.propensity.sum(axis=1) == pytest.approx(1.0)


SETTINGS: list[tuple[Callable[[], TrafficSettings], str]] = [
    (lambda: TrafficSettings(days=0), "`days`"),
    (lambda: TrafficSettings(requests_per_day=0), "`requests_per_day`"),
    (lambda: TrafficSettings(drift=Drift(1, "gpt-1")), "`gpt-1`"),
    (lambda: TrafficSettings(price_change=PriceChange(1, "gpt-1")), "`gpt-1`"),
    (lambda: TrafficSettings(longer_answers=LongerAnswers(1, "gpt-1")), "`gpt-1`"),
    (lambda: TrafficSettings(longer_answers=LongerAnswers(1, "gpt-5.4", factor=0.0)), "`factor`"),
    (lambda: TrafficSettings(prompt_drift=PromptDrift(1, share=1.5)), "`share`"),
    (lambda: TrafficSettings(new_model=NewModel(1, "gpt-1")), "`gpt-1`"),
    (lambda: TrafficSettings(outage=Outage(1, "nobody")), "`nobody`"),
    (lambda: TrafficSettings(drift=Drift(1, "gpt-5.4", segment_shares=(0.5, 0.5))), "`segment_shares`"),
    (lambda: TrafficSettings(drift=Drift(1, "gpt-5.4", segment_shares=(0.5, 0.5, 0.5, 0.5))), "`segment_shares`"),
]


@pytest.mark.parametrize(("make", "message"), SETTINGS)
def test_settings_that_do_not_fit_the_world_are_refused(
    world: World, make: Callable[[], TrafficSettings], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw_traffic(world, make())


def test_a_new_model_cannot_be_the_only_one(world: World) -> None:
    catalog = dataclasses.replace(world.catalog, models=world.catalog.models[:1], offers=world.catalog.offers[:1])
    alone = World.create(3, WorldSettings(catalog=catalog))
    with pytest.raises(InputError, match="two models"):
        draw_traffic(alone, TrafficSettings(new_model=NewModel(1, "gpt-5.4")))
