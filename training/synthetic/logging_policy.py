"""The logging policy: how requests were sent to models before there was a router."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.synthetic.prices import cheapest_offers, typical_cost_usd
from training.synthetic.prompts import Prompts
from training.synthetic.world import World


@dataclass(frozen=True, slots=True)
class LoggingPolicy:
    """A mixture of three ways to pick a model; the rest of the requests go to the segment's ablest model.

    Chooses by segment and length of a prompt, so rows of one model are not a fair
    sample of all prompts.
    """

    exploration: float = 0.4
    """Share spread evenly over all available models, in [0, 1]; 0 leaves models without any support."""
    rule: float = 0.2
    """Share sent by a rule of thumb: short prompts to the ablest model of the cheaper half."""
    short_words: int = 60
    """Up to so many words a prompt counts as short."""

    def __post_init__(self) -> None:
        if not (self.exploration >= 0 and self.rule >= 0 and self.exploration + self.rule <= 1):
            raise InputError(
                "`exploration` and `rule` must be shares that add up to 1 at most, "
                f"found {self.exploration} and {self.rule}"
            )


def logging_probabilities(
    policy: LoggingPolicy, world: World, prompts: Prompts, available: NDArray[np.bool_]
) -> Float64Array:
    """Probability that the policy sends each prompt to each model, exact and marginal over the mixture, [n, m].

    `available`, [m], are the models that can be called; others get 0.
    """
    ability = np.where(available[:, None], world.profiles.ability, -np.inf)
    favourite = ability.argmax(axis=0)[prompts.segment]
    thrifty = np.where(_cheaper_half(world, available)[:, None], ability, -np.inf).argmax(axis=0)[prompts.segment]
    by_rule = np.where(prompts.n_words <= policy.short_words, thrifty, favourite)
    rows = np.arange(len(prompts))
    probability = np.tile(policy.exploration * available / available.sum(), (len(prompts), 1))
    probability[rows, favourite] += 1.0 - policy.exploration - policy.rule
    probability[rows, by_rule] += policy.rule
    return probability


def _cheaper_half(world: World, available: NDArray[np.bool_]) -> NDArray[np.bool_]:
    cost = np.array([typical_cost_usd(offer) for offer in cheapest_offers(world.catalog)])
    return np.asarray(available & (cost <= np.median(cost[available])))
