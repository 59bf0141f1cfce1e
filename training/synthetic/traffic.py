"""What happens to a world over some days: requests, the models that answer them, and events.

Everything of a day is drawn from seeds of its own, so a slice of the traffic is
the same whatever was drawn before, and events change only what they touch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.synthetic.logging_policy import LoggingPolicy, logging_probabilities
from training.synthetic.prices import cheapest_offers
from training.synthetic.prompts import IntArray, Prompts
from training.synthetic.workload import SEGMENT_NAMES
from training.synthetic.world import OUTCOME_STREAM, PROMPT_STREAM, Outcomes, World

DEFAULT_END = datetime(2026, 11, 20, tzinfo=UTC)
"""Traffic ends here unless told when to start: the day of the default catalog's prices."""

_SLICE = 5000
_DAY_US = 86_400_000_000
_TURN_GAP_US = 90e6
_HOURLY = np.array([2, 1, 1, 1, 1, 2, 4, 7, 10, 12, 12, 11, 10, 11, 12, 12, 11, 9, 7, 6, 5, 4, 3, 2], dtype=np.float64)
"""Arrivals by hour of the day, UTC."""


@dataclass(frozen=True, slots=True)
class Drift:
    """From a day on, a supplier has quietly changed a model, and other prompts come in."""

    day: int
    model: str
    ability_change: float = -1.2
    """Log-odds of success."""
    segment_shares: tuple[float, ...] | None = (0.28, 0.20, 0.32, 0.20)
    """Of sessions, from that day on, in the order support, extraction, coding, legal; None: as before."""


@dataclass(frozen=True, slots=True)
class PromptDrift:
    """From a day on, more sessions than before are about one topic of their segment; segments keep their shares."""

    day: int
    share: float = 0.3
    """Of sessions, in (0, 1]."""


@dataclass(frozen=True, slots=True)
class LongerAnswers:
    """From a day on, a model's answers are `factor` times as long."""

    day: int
    model: str
    factor: float = 1.3


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From a day on, a model's offers cost `factor` times as much."""

    day: int
    model: str
    factor: float = 0.5


@dataclass(frozen=True, slots=True)
class Outage:
    """For some hours every call of a provider fails."""

    day: int
    provider: str
    hour: float = 9.0
    """Of that day, UTC."""
    hours: float = 6.0


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model cannot be called before a day."""

    day: int
    model: str


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """How much traffic, under which logging policy, with which events. Days count from 0."""

    days: int = 21
    requests_per_day: int = 1000
    start: datetime | None = None
    """Midnight of day 0; None: so that the last day ends at `DEFAULT_END`. Without time zone: UTC."""
    full_information: bool = False
    """Every available model answers every prompt, instead of the one that the logging policy chose."""
    logging_policy: LoggingPolicy = field(default_factory=LoggingPolicy)
    """The logging policy."""
    drift: Drift | None = None
    prompt_drift: PromptDrift | None = None
    longer_answers: LongerAnswers | None = None
    price_change: PriceChange | None = None
    outage: Outage | None = None
    new_model: NewModel | None = None

    @property
    def first_moment(self) -> datetime:
        """Start of day 0, UTC."""
        if self.start is None:
            return DEFAULT_END - timedelta(days=self.days)
        return self.start.replace(tzinfo=UTC) if self.start.tzinfo is None else self.start.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class TrafficSlice:
    """Some requests of one day with all that is true of them; n requests, m models."""

    world: World
    """As it stands on that day."""
    day: int
    prompts: Prompts
    request_ids: tuple[str, ...]
    session_ids: tuple[str, ...]
    time_us: IntArray
    """[n], Unix microseconds, UTC."""
    available: NDArray[np.bool_]
    """[m], models that can be called on that day."""
    propensity: Float64Array
    """[n, m], probability that the logging policy chooses each model."""
    chosen: IntArray
    """[n]"""
    outcomes: Outcomes
    cached_tokens: Float64Array
    """[n, m], input tokens in the provider's prompt cache, were this model chosen."""
    failed: NDArray[np.bool_]
    """[n, m], whether the call fails for an outage of the provider."""

    def expected_cost(self) -> Float64Array:
        """Expected cost of each call, were it made and answered, in US dollars, [n, m]."""
        world = self.world
        return world.price(world.input_tokens(self.prompts), world.true_output_tokens(self.prompts), self.cached_tokens)


def world_on(day: int, world: World, settings: TrafficSettings) -> World:
    """The world as it stands on a day: abilities and prices after the events up to then."""
    drift, change, longer = settings.drift, settings.price_change, settings.longer_answers
    if drift is not None and day >= drift.day:
        world = world.with_ability_change(drift.model, drift.ability_change)
    if longer is not None and day >= longer.day:
        world = world.with_answers_longer(longer.model, longer.factor)
    if change is not None and day >= change.day:
        world = world.with_price_factor(change.model, change.factor)
    return world


def available_on(day: int, world: World, settings: TrafficSettings) -> NDArray[np.bool_]:
    """[m], which models can be called on a day."""
    new = settings.new_model
    return np.array([new is None or name != new.model or day >= new.day for name in world.models])


def draw_traffic(world: World, settings: TrafficSettings) -> Iterator[TrafficSlice]:
    """The whole traffic in order of days; InputError where the settings do not fit the world."""
    _check(world, settings)
    return _slices(world, settings)


def _slices(world: World, settings: TrafficSettings) -> Iterator[TrafficSlice]:
    n_slices = -(-settings.requests_per_day // _SLICE)
    bounds = np.linspace(0, settings.requests_per_day, n_slices + 1).astype(int)
    for day in range(settings.days):
        for k in range(n_slices):
            yield _draw_slice(world, settings, day, k, (int(bounds[k]), int(bounds[k + 1])))


def _draw_slice(base: World, settings: TrafficSettings, day: int, k: int, rows: tuple[int, int]) -> TrafficSlice:
    world = world_on(day, base, settings)
    rng = base.generator(PROMPT_STREAM, day, k)
    other = settings.prompt_drift
    last_topic = other.share if other is not None and day >= other.day else 0.0
    prompts = world.source.draw(rng, rows[1] - rows[0], _segment_shares(day, base, settings), last_topic)
    within = np.array(rows) / settings.requests_per_day
    time_us = _day_start_us(day, settings) + _times_of_day(prompts, rng, within)
    chooser, outcome_rng = (base.generator(OUTCOME_STREAM, day, k, part) for part in range(2))
    available = available_on(day, world, settings)
    propensity = logging_probabilities(settings.logging_policy, base, prompts, available)
    chosen = _choose(propensity, chooser)
    tag = f"w{base.seed}-d{day:03d}"
    return TrafficSlice(
        world=world,
        day=day,
        prompts=prompts,
        request_ids=tuple(f"{tag}-{i:07d}" for i in range(*rows)),
        session_ids=tuple(f"{tag}-{k:03d}-s{i:05d}" for i in prompts.session.tolist()),
        time_us=time_us,
        available=available,
        propensity=propensity,
        chosen=chosen,
        outcomes=world.sample_outcomes(prompts, outcome_rng),
        cached_tokens=np.where(_seen(prompts, chosen, len(world.models), settings), world.prefix_tokens(prompts), 0.0),
        failed=_failures(world, settings, time_us),
    )


def _segment_shares(day: int, world: World, settings: TrafficSettings) -> Float64Array:
    drift = settings.drift
    if drift is None or drift.segment_shares is None or day < drift.day:
        return world.segment_shares
    return np.array(drift.segment_shares)


def _day_start_us(day: int, settings: TrafficSettings) -> int:
    return int((settings.first_moment + timedelta(days=day)).timestamp()) * 1_000_000


def _times_of_day(prompts: Prompts, rng: np.random.Generator, within: Float64Array) -> IntArray:
    """Microseconds since midnight, [n]: sessions start at busy hours, turns follow each other within minutes."""
    n_sessions = int(prompts.session[-1]) + 1
    share = within[0] + (within[1] - within[0]) * np.sort(rng.random(n_sessions))
    hours = np.interp(share, np.concatenate([[0.0], np.cumsum(_HOURLY) / _HOURLY.sum()]), np.arange(25.0))
    gaps = np.where(prompts.turn > 0, rng.exponential(_TURN_GAP_US, len(prompts)), 0.0)
    passed = np.cumsum(gaps)
    first = np.flatnonzero(prompts.turn == 0)
    offset = passed - passed[first][prompts.session]
    last = np.append(first[1:], len(prompts)) - 1
    # A session that would run into the next day starts earlier, so that a day's rows are that day's.
    start = np.minimum(hours * 3.6e9, _DAY_US - 1e6 - offset[last])
    return np.asarray(np.floor(np.maximum(start, 0.0)[prompts.session] + offset), dtype=np.int64)


def _choose(probability: Float64Array, rng: np.random.Generator) -> IntArray:
    steps = np.cumsum(probability, axis=1)
    draws = rng.random((len(probability), 1)) * steps[:, -1:]
    return np.asarray((draws >= steps).sum(axis=1))


def _seen(prompts: Prompts, chosen: IntArray, m: int, settings: TrafficSettings) -> NDArray[np.bool_]:
    """[n, m], whether the model answered an earlier turn of the same session."""
    if settings.full_information:
        return np.broadcast_to(prompts.turn[:, None] > 0, (len(prompts), m))
    answered = np.zeros((len(prompts), m), dtype=np.int64)
    answered[np.arange(len(prompts)), chosen] = 1
    before = np.cumsum(answered, axis=0) - answered
    first = np.flatnonzero(prompts.turn == 0)
    return np.asarray(before > before[first][prompts.session])


def _failures(world: World, settings: TrafficSettings, time_us: IntArray) -> NDArray[np.bool_]:
    outage = settings.outage
    if outage is None:
        return np.zeros((len(time_us), len(world.models)), dtype=bool)
    start = _day_start_us(outage.day, settings) + outage.hour * 3.6e9
    during = (time_us >= start) & (time_us < start + outage.hours * 3.6e9)
    hit = np.array([offer.provider == outage.provider for offer in cheapest_offers(world.catalog)])
    return np.asarray(during[:, None] & hit)


def _check(world: World, settings: TrafficSettings) -> None:
    for name in ("days", "requests_per_day"):
        if getattr(settings, name) < 1:
            raise InputError(f"`{name}` must be 1 or more, found {getattr(settings, name)}")
    for event in (settings.drift, settings.longer_answers, settings.price_change, settings.new_model):
        if event is not None and event.model not in world.models:
            raise InputError(f"`{event.model}` is not a model of the catalog {list(world.models)}")
    if settings.new_model is not None and len(world.models) < 2:
        raise InputError("a new model needs a catalog of two models or more, found one")
    providers = {offer.provider for offer in cheapest_offers(world.catalog)}
    if settings.outage is not None and settings.outage.provider not in providers:
        raise InputError(f"`{settings.outage.provider}` is not a provider of the catalog's cheapest offers {providers}")
    _check_drift(settings)


def _check_drift(settings: TrafficSettings) -> None:
    if settings.prompt_drift is not None and not 0 < settings.prompt_drift.share <= 1:
        raise InputError(f"`share` of a drift of prompts must be in (0, 1], found {settings.prompt_drift.share}")
    if settings.longer_answers is not None and not settings.longer_answers.factor > 0:
        raise InputError(f"`factor` of longer answers must be above 0, found {settings.longer_answers.factor}")
    if settings.drift is not None and settings.drift.segment_shares is not None:
        shares = settings.drift.segment_shares
        if len(shares) != len(SEGMENT_NAMES) or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9:
            raise InputError(f"`segment_shares` must be four shares that add up to 1, found {shares}")
