"""What is logged is what happens: frequencies agree with propensities, and any decision can be made again."""

from __future__ import annotations

import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from router_ml.bundle import policy_of
from router_ml.exploration import Exploration, ExplorationRule
from router_ml.policy import Policy
from router_ml.records import decision_line, parse_line
from router_ml.replay import recorded, replay
from router_ml.request import make_request
from router_ml.router import Router
from router_ml.types import Decision, Reason, Request

SEGMENTS = ("chat", "code", "never seen")
WORDS = "bab deb fib gog luc mad xrob xvac xzed xquf".split()
SETTINGS = {rule: Exploration(0.4, rule, cost_multiple=30.0, floor=0.2) for rule in ExplorationRule}


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ids are random, so the draws are; a test that counts them must come out the same every time."""

    def seed(number: int) -> None:
        draw = random.Random(number)
        monkeypatch.setattr("router_ml.router.time_ordered_id", lambda: str(uuid.UUID(int=draw.getrandbits(128))))

    return seed


def prompt(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(1, 40)))


@pytest.mark.parametrize("rule", list(ExplorationRule))
def test_frequencies_agree_with_logged_propensities_in_every_segment(
    tiny_bundle: Path, seeded: Callable[[int], None], rule: ExplorationRule
) -> None:
    seeded(1)
    router, draw, repeats = Router.load(tiny_bundle, exploration=SETTINGS[rule]), random.Random(2), 1200
    explored = 0
    for segment in SEGMENTS:
        statistic = degrees = 0.0
        for _ in range(4):
            request = make_request(prompt(draw), segment=segment)
            logged: dict[str, float] = {}
            counts: Counter[str] = Counter()
            for decision in router.decide_batch([request] * repeats):
                assert isinstance(decision, Decision)
                # The same prompt beside others differs in the last bit of single precision.
                assert logged.setdefault(decision.model, decision.propensity) == pytest.approx(
                    decision.propensity, abs=1e-5
                )
                counts[decision.model] += 1
                explored += Reason.EXPLORED in decision.reasons
            expected = [repeats * propensity for propensity in logged.values()]
            cells = [(counts[model], mean) for model, mean in zip(logged, expected, strict=True) if mean >= 5]
            rest = repeats - sum(mean for _, mean in cells)
            if rest >= 5:
                cells.append((repeats - sum(count for count, _ in cells), rest))
            statistic += sum((count - mean) ** 2 / mean for count, mean in cells)
            degrees += len(cells) - 1
        assert degrees >= 4
        assert chi2.sf(statistic, degrees) > 0.001, segment
    assert explored > 500


def requests(draw: random.Random, n: int) -> list[Request]:
    """Of every kind that changes how a decision is made."""
    found = []
    for _ in range(n):
        kind = draw.random()
        found.append(
            make_request(
                prompt(draw) if kind < 0.8 else None,
                embedding=None if kind < 0.8 else [draw.gauss(0, 1) for _ in range(32)],
                segment=draw.choice(SEGMENTS),
                quality_target=draw.choice((None, None, 0.8, 0.95, 1.0)),
                min_success_probability=draw.choice((None, None, 0.4, 0.8, 0.999)),
                denied_models=draw.choice(((), (), ("tiny",), ("mid", "large"))),
                allowed_regions=draw.choice(((), (), ("eu",))),
                max_output_tokens=draw.choice((None, 50, 3000)),
                cached_input_tokens=draw.choice(({}, {"mid@us": 100})),
                batch=draw.random() < 0.2,
            )
        )
    return found


def check_replays(bundle: Path, n: int, rule: ExplorationRule | None, salt: str) -> None:
    exploration = Exploration(0.4, rule, 30.0, 0.2, salt) if rule else None
    router, draw = Router.load(bundle, exploration=exploration), random.Random(3)
    _, sha256, policy = policy_of(bundle)
    wrong: list[str] = []
    reasons: Counter[Reason] = Counter()
    pool, replayed = requests(draw, 2000), 0
    while replayed < n:
        asked = draw.choices(pool, k=500)
        for request, decision in zip(asked, router.decide_batch(asked), strict=True):
            if isinstance(decision, Decision):  # others have constraints that leave no offer
                record = parse_line(decision_line(request, decision, 1)).decision
                reasons.update(decision.reasons)
                replayed += 1
                if replay(record, policy, sha256) != recorded(record):
                    wrong.append(decision.decision_id)
    assert not wrong, f"{len(wrong)} decisions, such as {wrong[:3]}"
    assert bool(rule) == bool(reasons[Reason.EXPLORED] > 0.05 * n)
    assert reasons[Reason.BEST_VALUE] and reasons[Reason.CHEAPEST_CLEARING] and reasons[Reason.NONE_CLEARS]


@pytest.mark.parametrize("rule", [None, *ExplorationRule], ids=["none", *ExplorationRule])
def test_decisions_come_out_bit_for_bit_from_journal_and_bundle(
    tiny_bundle: Path, rule: ExplorationRule | None
) -> None:
    check_replays(tiny_bundle, 2500, rule, salt="")


@pytest.mark.long
@pytest.mark.parametrize("rule", list(ExplorationRule))
def test_a_hundred_thousand_decisions_come_out_bit_for_bit(tiny_bundle: Path, rule: ExplorationRule) -> None:
    check_replays(tiny_bundle, 100_000, rule, salt="of my own")


def test_what_the_policy_would_do_with_every_model_is_in_its_probabilities(
    tiny_bundle: Path, seeded: Callable[[int], None]
) -> None:
    """The propensities of decisions made one at a time, against those of many at once that evaluation uses."""
    from router_ml.bundle import open_session
    from router_ml.exploration import choice_probabilities
    from router_ml.heads import VECTOR, deviations

    seeded(4)
    draw = random.Random(5)
    asked = [make_request(prompt(draw), segment=draw.choice(SEGMENTS)) for _ in range(300)]
    router = Router.load(tiny_bundle, exploration=SETTINGS[ExplorationRule.THOMPSON])
    policy: Policy = router.policy
    features = router._features.together(asked)
    (vector,) = router.bundle.session.run((VECTOR,), features.feed())
    assert router.bundle.uncertainty is not None
    deviation = deviations(open_session(router.bundle.uncertainty), vector, features.side, features.segment)
    found = choice_probabilities(policy, router.estimate(asked), router.exploration, deviation=deviation)
    names, seen = list(policy.models), defaultdict(int)
    for i, request in enumerate(asked):
        decision = router.decide(request)
        seen[decision.model] += 1
        assert decision.propensity == pytest.approx(found[i, names.index(decision.model)], abs=2e-4)
    assert len(seen) > 2
    assert found.sum(axis=1) == pytest.approx(np.ones(300))
