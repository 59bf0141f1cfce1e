from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from router_ml.catalog import Catalog, Model, Offer
from router_ml.errors import InputError
from training.synthetic.prompts import Prompts
from training.synthetic.sessions import CONSTRAINT_DIFFICULTY, LENGTH_DIFFICULTY, LEVEL_DIFFICULTY
from training.synthetic.world import World, WorldSettings


@pytest.fixture(scope="module")
def world() -> World:
    return World.create(7)


@pytest.fixture(scope="module")
def prompts(world: World) -> Prompts:
    return world.sample_prompts(6000)


def equal(left: Prompts, right: Prompts) -> bool:
    names = [field.name for field in dataclasses.fields(Prompts)]
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


def test_the_same_seed_gives_the_same_prompts_and_truth(world: World, prompts: Prompts) -> None:
    again = World.create(7)
    assert equal(again.sample_prompts(6000), prompts)
    assert np.array_equal(again.true_success(prompts), world.true_success(prompts))


def test_another_seed_gives_other_prompts(prompts: Prompts) -> None:
    other = World.create(8).sample_prompts(1000)
    assert len(set(other.texts) & set(prompts.texts)) < 100


def test_the_same_text_is_differently_hard_in_another_world(prompts: Prompts) -> None:
    other = World.create(8).sample_prompts(1000)
    hidden = dict(zip(prompts.texts, prompts.hidden_difficulty, strict=True))
    shared = [i for i, text in enumerate(other.texts) if text in hidden]
    assert len(shared) > 10
    assert all(other.hidden_difficulty[i] != hidden[other.texts[i]] for i in shared)


def test_fewer_prompts_are_the_beginning_of_more(world: World, prompts: Prompts) -> None:
    assert equal(world.sample_prompts(2500), prompts.take(np.arange(2500)))


def test_equal_texts_have_one_truth(world: World, prompts: Prompts) -> None:
    success = world.true_success(prompts)
    first: dict[str, int] = {}
    repeated = 0
    for i, text in enumerate(prompts.texts):
        j = first.setdefault(text, i)
        repeated += j != i
        assert success[i] == pytest.approx(success[j], abs=1e-12)
    assert repeated > 50


def test_most_prompts_are_of_their_own(prompts: Prompts) -> None:
    assert len(set(prompts.texts)) > 0.95 * len(prompts)


def test_prompts_are_of_realistic_length(prompts: Prompts) -> None:
    assert np.percentile(prompts.n_words, 1) >= 4
    assert 40 <= np.median(prompts.n_words) <= 90
    assert 180 <= prompts.n_words.max() <= 400
    assert all(text == text.strip() and "<" + name not in text for text in prompts.texts for name in ("=", "task"))


def test_turns_of_a_session_share_segment_tenant_and_a_true_prefix(world: World, prompts: Prompts) -> None:
    later = np.flatnonzero(prompts.turn > 0)
    assert len(later) > 1000
    for i in later:
        assert prompts.session[i] == prompts.session[i - 1]
        assert prompts.turn[i] == prompts.turn[i - 1] + 1
        assert prompts.segment[i] == prompts.segment[i - 1]
        assert prompts.tenant[i] == prompts.tenant[i - 1]
        chars = world.segments[prompts.segment[i]].chars_per_token
        n_shared = round(prompts.prefix_tokens[i] * chars)
        assert n_shared > 0
        assert prompts.texts[i][:n_shared] == prompts.texts[i - 1][:n_shared]
    assert not prompts.prefix_tokens[prompts.turn == 0].any()


def test_session_lengths_have_a_heavy_tail(prompts: Prompts) -> None:
    lengths = np.bincount(prompts.session)
    lengths = lengths[lengths > 0]
    assert (lengths == 1).mean() > 0.5
    assert lengths.max() > 20


def test_the_first_tenant_is_the_largest(prompts: Prompts) -> None:
    sizes = np.bincount(prompts.tenant)
    assert len(sizes) == 12
    assert sizes[0] == sizes.max() > 3 * sizes[-1]


def test_no_constraint_is_asked_for_twice(world: World, prompts: Prompts) -> None:
    plain = {text for segment in world.segments for text in segment.constraints if isinstance(text, str)}
    counts = np.array([[text.count(constraint) for constraint in plain] for text in prompts.texts])
    assert counts.max() == 1
    assert counts.sum() > 1000


def test_only_words_that_stand_in_a_text_count_towards_its_difficulty(world: World, prompts: Prompts) -> None:
    legal = world.segments[3]
    for i in np.flatnonzero((prompts.segment == 3) & (prompts.level >= 0)):
        topic = world.source.topics[prompts.topic[i]]
        text = prompts.texts[i]
        if topic.name == "liability":  # its contexts add to the difficulty too
            continue
        known = legal.difficulty + topic.difficulty + LEVEL_DIFFICULTY[prompts.level[i]]
        rest = prompts.difficulty[i] - known - LENGTH_DIFFICULTY * prompts.length[i]
        effect = [value for law, value in legal.effects["law"].items() if f"{law} law" in text or f"{law} reg" in text]
        n_constraints = (rest - sum(effect)) / CONSTRAINT_DIFFICULTY
        assert len(effect) <= 1
        assert -0.01 < n_constraints < 4.01
        assert n_constraints == pytest.approx(round(n_constraints), abs=1e-6)


def test_truth_is_the_item_response_model_of_the_docstring(world: World, prompts: Prompts) -> None:
    profiles = world.profiles
    success = world.true_success(prompts)
    for i in range(50):
        for j in range(8):
            log_odds = profiles.ability[j, prompts.segment[i]] + profiles.skill[j] @ prompts.skill[i]
            log_odds += profiles.length[j] * prompts.length[i]
            log_odds -= prompts.difficulty[i] + world.settings.hidden_sd * prompts.hidden_difficulty[i]
            assert success[i, j] == pytest.approx(1 / (1 + np.exp(-log_odds)))


def test_harder_levels_are_harder_for_every_model(world: World, prompts: Prompts) -> None:
    success = world.true_success(prompts)
    easy, medium, hard = (success[prompts.level == level].mean(axis=0) for level in range(3))
    assert (easy > medium + 0.03).all()
    assert (medium > hard + 0.15).all()


def test_the_hidden_difficulty_averages_out_to_what_the_text_shows(world: World, prompts: Prompts) -> None:
    visible = world.visible_success(prompts)
    assert world.true_success(prompts).mean(axis=0) == pytest.approx(visible.mean(axis=0), abs=0.01)
    assert np.abs(world.true_success(prompts) - visible).mean() > 0.03


def test_nothing_is_hidden_where_nothing_is_to_be(prompts: Prompts) -> None:
    plain = World.create(7, WorldSettings(hidden_sd=0.0))
    assert np.array_equal(plain.true_success(prompts), plain.visible_success(prompts))


def test_input_tokens_follow_the_text_and_the_tokenizer(world: World, prompts: Prompts) -> None:
    tokens = world.input_tokens(prompts)
    chars = np.array([len(text) for text in prompts.texts])
    assert (chars / tokens.mean(axis=1) > 2.5).all()
    assert (chars / tokens.mean(axis=1))[chars > 40].max() < 6
    assert (world.prefix_tokens(prompts) <= tokens).all()
    names = list(world.models)
    assert tokens[:, names.index("claude-opus-4-6")].sum() > 1.1 * tokens[:, names.index("gpt-5.4")].sum()


def test_a_policy_is_worth_the_mean_of_what_it_chooses(world: World, prompts: Prompts) -> None:
    n, m = len(prompts), len(world.models)
    chosen = np.random.default_rng(0).integers(0, m, n)
    success, cost = world.true_success(prompts), world.true_cost(prompts)
    value = world.policy_value(prompts, chosen)
    assert value.success == pytest.approx(success[np.arange(n), chosen].mean())
    assert value.cost_usd == pytest.approx(cost[np.arange(n), chosen].mean())
    uniform = world.policy_value(prompts, np.full((1, m), 1.0 / m))
    assert uniform.success == pytest.approx(success.mean())
    assert uniform.cost_usd == pytest.approx(cost.mean())


def test_a_changed_ability_touches_one_model_only(world: World, prompts: Prompts) -> None:
    model = world.models[2]
    before, after = world.true_success(prompts), world.with_ability_change(model, -1.0).true_success(prompts)
    odds = np.log(after[:, 2] / (1 - after[:, 2])) - np.log(before[:, 2] / (1 - before[:, 2]))
    assert odds == pytest.approx(-1.0, abs=1e-6)
    others = [0, 1, 3, 4, 5, 6, 7]
    assert np.array_equal(before[:, others], after[:, others])


def test_a_changed_price_touches_cost_and_not_success(world: World, prompts: Prompts) -> None:
    after = world.with_price_factor(world.models[0], 2.0)
    ratio = after.true_cost(prompts) / world.true_cost(prompts)
    assert ratio == pytest.approx(np.tile([2.0] + 7 * [1.0], (len(prompts), 1)))
    assert np.array_equal(after.true_success(prompts), world.true_success(prompts))


def test_unknown_models_are_abler_the_dearer_and_each_seed_draws_its_own(prompts: Prompts) -> None:
    names = [f"model-{k:02d}" for k in range(30)]
    catalog = Catalog(
        models=tuple(map(Model, names)),
        offers=tuple(Offer(name, name, request_usd=0.001 * 1.2**k) for k, name in enumerate(names)),
    )
    worlds = [World.create(seed, WorldSettings(catalog=catalog)) for seed in (1, 1, 2)]
    means = [one.true_success(prompts).mean(axis=0) for one in worlds]
    assert np.array_equal(means[0], means[1])
    assert not np.allclose(means[0], means[2], atol=0.01)
    assert np.corrcoef(means[0], np.arange(30))[0, 1] > 0.8
    assert 0.4 < means[0].min() < 0.7
    assert 0.85 < means[0].max() < 0.97


@pytest.mark.parametrize(
    ("seed", "settings", "message"),
    [
        (-1, WorldSettings(), "`seed`"),
        (2**63, WorldSettings(), "`seed`"),
        (0, WorldSettings(hidden_sd=-0.1), "`hidden_sd`"),
        (0, WorldSettings(hidden_sd=float("nan")), "`hidden_sd`"),
        (0, WorldSettings(n_tenants=0), "`n_tenants`"),
        (0, WorldSettings(catalog=Catalog((Model("a"), Model("b")), (Offer("a", "a", request_usd=1.0),))), "no offer"),
    ],
)
def test_settings_out_of_range_are_refused(seed: int, settings: WorldSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        World.create(seed, settings)


def test_no_prompts_cannot_be_asked_for(world: World) -> None:
    with pytest.raises(InputError, match="`n`"):
        world.sample_prompts(0)
