"""A world of known truth: prompts, models, and how likely each answers each.

An item-response model: the log-odds of success of model j on prompt i are

    ability[j, segment_i] + skill[j] . skill_i + length[j] * length_i
    - difficulty_i - hidden_sd * hidden_difficulty_i

of which the text shows all but the last term. Array letters: n prompts,
m models in catalog order, 4 segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from router_ml.catalog import Catalog
from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.synthetic.prices import bill, cheapest_offers, default_catalog, reprice
from training.synthetic.profiles import Profiles, make_profiles
from training.synthetic.prompts import Prompts
from training.synthetic.sessions import PromptSource
from training.synthetic.workload import Segment, load_segments

OUTPUT_LOG_SD = 0.4
LATENCY_LOG_SD = 0.25
PREFILL_MS_PER_TOKEN = 0.15

# First words of the seeds of independent random streams.
HELD_OUT_STREAM = 1
PROMPT_STREAM = 2
OUTCOME_STREAM = 3

_BLOCK = 2000


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """What a world is made of."""

    catalog: Catalog | None = None
    """Models and prices; None: eight real models at their list prices."""
    hidden_sd: float = 0.8
    """Standard deviation, in log-odds, of the difficulty that no reader of a prompt can see; 0 or more."""
    n_tenants: int = 12
    """Tenants, the first the largest."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What would come of each prompt on each model; every field [n, m]."""

    success: Float64Array
    """0 or 1."""
    output_tokens: Float64Array
    """Whole numbers, at least 1."""
    ttft_ms: Float64Array
    latency_ms: Float64Array


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """The true value of a policy: means over the prompts."""

    success: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class World:
    """Truth about prompts and models; the same seed and settings give the same world."""

    seed: int
    settings: WorldSettings
    catalog: Catalog
    profiles: Profiles
    source: PromptSource = field(repr=False)

    @classmethod
    def create(cls, seed: int, settings: WorldSettings | None = None) -> World:
        """A world by its seed, 0 or more; InputError where a setting is out of range."""
        settings = settings or WorldSettings()
        _check(seed, settings)
        catalog = settings.catalog or default_catalog()
        return cls(
            seed=seed,
            settings=settings,
            catalog=catalog,
            profiles=make_profiles(catalog, seed),
            source=PromptSource(load_segments(), seed, settings.n_tenants),
        )

    @property
    def models(self) -> tuple[str, ...]:
        return self.catalog.model_names

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.source.segments

    @property
    def segment_shares(self) -> Float64Array:
        """Share of sessions by segment, [4]."""
        return np.array([segment.share for segment in self.segments])

    def sample_prompts(self, n: int) -> Prompts:
        """The first n of this world's held-out prompts, drawn apart from its traffic.

        They have in common the texts that many users send word for word, and by
        chance some short ones. A smaller n gives the beginning of a larger one.
        InputError where n is below 1.
        """
        if n < 1:
            raise InputError(f"`n` must be 1 or more, found {n}")
        parts = []
        for block in range(-(-n // _BLOCK)):
            rng = self.generator(HELD_OUT_STREAM, block)
            part = self.source.draw(rng, _BLOCK, self.segment_shares)
            parts.append(replace(part, session=part.session + block * _BLOCK))
        return Prompts.concatenate(parts).take(np.arange(n))

    def generator(self, stream: int, *position: int) -> np.random.Generator:
        """The random numbers of one place in one stream, whatever was drawn elsewhere."""
        return np.random.default_rng([self.seed, stream, *position])

    # -- truth ----------------------------------------------------------------------------------

    def true_success(self, prompts: Prompts) -> Float64Array:
        """Probability that each model answers each prompt well, [n, m]."""
        hidden = self.settings.hidden_sd * prompts.hidden_difficulty
        return np.asarray(expit(self._visible_log_odds(prompts) - hidden[:, None]))

    def visible_success(self, prompts: Prompts) -> Float64Array:
        """The best any reader of the text could say, [n, m]: the hidden difficulty averaged out.

        By the probit approximation of the logistic-normal integral (MacKay 1992), within 0.005 at the default.
        """
        shrink = np.sqrt(1.0 + np.pi / 8.0 * self.settings.hidden_sd**2)
        return np.asarray(expit(self._visible_log_odds(prompts) / shrink))

    def _visible_log_odds(self, prompts: Prompts) -> Float64Array:
        profiles = self.profiles
        log_odds = profiles.ability.T[prompts.segment] + prompts.skill @ profiles.skill.T
        return np.asarray(log_odds + np.outer(prompts.length, profiles.length) - prompts.difficulty[:, None])

    def input_tokens(self, prompts: Prompts) -> Float64Array:
        """Billed input tokens, whole numbers, [n, m]."""
        return np.maximum(1.0, np.rint(np.outer(prompts.tokens, self.profiles.token_factor)))

    def prefix_tokens(self, prompts: Prompts) -> Float64Array:
        """Input tokens that a prompt cache holds if the model saw an earlier turn of the session, [n, m]."""
        return np.minimum(
            np.rint(np.outer(prompts.prefix_tokens, self.profiles.token_factor)), self.input_tokens(prompts)
        )

    def true_output_tokens(self, prompts: Prompts) -> Float64Array:
        """Mean output tokens, [n, m]."""
        return np.exp(self._log_output_tokens(prompts) + OUTPUT_LOG_SD**2 / 2.0)

    def _log_output_tokens(self, prompts: Prompts) -> Float64Array:
        return prompts.log_output_tokens[:, None] + self.profiles.verbosity

    def true_cost(self, prompts: Prompts) -> Float64Array:
        """Expected cost in US dollars at each model's cheapest offer, nothing cached, [n, m]."""
        return self.price(self.input_tokens(prompts), self.true_output_tokens(prompts))

    def price(self, input_tokens: Float64Array, output_tokens: Float64Array, cached: ArrayLike = 0.0) -> Float64Array:
        """What calls of these lengths cost at each model's cheapest offer, in US dollars, [n, m]; as `bill`."""
        return bill(cheapest_offers(self.catalog), input_tokens, output_tokens, cached)

    def policy_value(self, prompts: Prompts, policy: ArrayLike) -> PolicyValue:
        """The true value of a policy given as chosen models, [n], or their probabilities, [n, m] or [1, m]."""
        chosen = np.asarray(policy)
        if chosen.ndim == 1:
            chosen = np.eye(len(self.models))[chosen]
        return PolicyValue(
            success=float((chosen * self.true_success(prompts)).sum(axis=1).mean()),
            cost_usd=float((chosen * self.true_cost(prompts)).sum(axis=1).mean()),
        )

    # -- draws ----------------------------------------------------------------------------------

    def sample_outcomes(self, prompts: Prompts, rng: np.random.Generator) -> Outcomes:
        """One answer of every model to every prompt."""
        shape = (len(prompts), len(self.models))
        success = (rng.random(shape) < self.true_success(prompts)).astype(np.float64)
        output = np.exp(self._log_output_tokens(prompts) + rng.normal(0.0, OUTPUT_LOG_SD, shape))
        output = np.maximum(1.0, np.rint(output))
        jitter = np.exp(rng.normal(0.0, LATENCY_LOG_SD, (2, *shape)))
        ttft = (self.profiles.ttft_ms + PREFILL_MS_PER_TOKEN * self.input_tokens(prompts)) * jitter[0]
        latency = ttft + 1000.0 * output / self.profiles.tokens_per_second * jitter[1]
        return Outcomes(success=success, output_tokens=output, ttft_ms=ttft, latency_ms=latency)

    # -- changed worlds -------------------------------------------------------------------------

    def with_ability_change(self, model: str, change: float) -> World:
        """The world in which a model's log-odds of success have moved by `change`."""
        return replace(self, profiles=self.profiles.with_ability_change(self.models.index(model), change))

    def with_answers_longer(self, model: str, factor: float) -> World:
        """The world in which a model's answers are `factor` times as long."""
        return replace(self, profiles=self.profiles.with_answers_longer(self.models.index(model), factor))

    def with_price_factor(self, model: str, factor: float) -> World:
        """The world in which every price of a model's offers is `factor` times as high."""
        return replace(self, catalog=reprice(self.catalog, model, factor))


def _check(seed: int, settings: WorldSettings) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"`seed` must be a whole number from 0 to below 2**63, found {seed}")
    if not (np.isfinite(settings.hidden_sd) and settings.hidden_sd >= 0):
        raise InputError(f"`hidden_sd` must be a finite number, 0 or more, found {settings.hidden_sd}")
    if settings.n_tenants < 1:
        raise InputError(f"`n_tenants` must be 1 or more, found {settings.n_tenants}")
    if settings.catalog is not None:
        unsold = set(settings.catalog.model_names) - {offer.model for offer in settings.catalog.offers}
        if unsold:
            raise InputError(f"the catalog has no offer for {sorted(unsold)}; a simulated model must be for sale")
