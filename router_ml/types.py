"""The nouns of a decision: what is asked, what is estimated, what is answered.

Array letters, here and everywhere: n requests, m models, o offers. Models and
offers stand in catalog order; ``p_success[i, j]`` is request i, model j.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from router_ml.exploration import Drawn

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


class Rejection(StrEnum):
    """Why an offer may not be chosen for a request; the first that applies is reported."""

    MODEL_NOT_ALLOWED = "model_not_allowed"
    MODEL_DENIED = "model_denied"
    REGION = "region"
    CAPABILITY = "capability"
    CONTEXT_WINDOW = "context_window"
    OUTPUT_LIMIT = "output_limit"
    MAX_COST = "max_cost"
    PRICE_UNKNOWN = "price_unknown"
    OTHER = "other"
    """Never given by this version: how a client reads a reason that only a newer server knows."""


class Rule(StrEnum):
    """How an offer is chosen among the eligible ones."""

    PROMISE = "promise"
    """Highest success probability minus willingness to pay times cost."""

    THRESHOLD = "threshold"
    """Cheapest offer whose success probability clears a level."""


class Reason(StrEnum):
    """Why the chosen offer was chosen."""

    BEST_VALUE = "best_value"
    """`promise`: the highest success probability minus lambda times cost."""

    CHEAPEST_CLEARING = "cheapest_clearing"
    """`threshold`: the cheapest offer that clears the level."""

    NONE_CLEARS = "none_clears"
    """`threshold`: no offer clears the level; the one most likely to succeed."""

    ONLY_ELIGIBLE = "only_eligible"
    """The constraints left a single offer."""

    TARGET_UNREACHABLE = "target_unreachable"
    """No operating point reached the quality target on the data that set them: highest quality instead."""

    EXPLORED = "explored"
    """Not the policy's choice: left to chance, so that its outcome can be learned from."""

    ROUTER_UNAVAILABLE = "router_unavailable"
    """Given by a client, never by a router: the router was late, down or wrong; the client's configured default."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Constraints:
    """Hard limits of one request. Empty and None mean: no limit."""

    allowed_models: tuple[str, ...] = ()
    denied_models: tuple[str, ...] = ()
    allowed_regions: tuple[str, ...] = ()
    required_capabilities: tuple[str, ...] = ()
    max_cost_usd: float | None = None
    """Highest expected cost of the call, in US dollars."""
    max_output_tokens: int | None = None
    """The limit the caller will set on the answer; it also caps the expected output."""


NO_CONSTRAINTS = Constraints()


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend asks. Exactly one of `text`, `messages`, `embedding` is given."""

    text: str | None = None
    messages: tuple[Message, ...] = ()
    embedding: Float32Array | None = None
    """Shape [d], the bundle's own embedding size; any length, it is normalised."""
    segment: str | None = None
    """Application, route or task that sends the prompt."""
    session_id: str | None = None
    tenant: str | None = None
    constraints: Constraints = NO_CONSTRAINTS
    quality_target: float | None = None
    """Share in (0, 1] of the best single model's success to keep; None: the bundle's default."""
    min_success_probability: float | None = None
    """Given: the `threshold` rule at this level in [0, 1] decides instead of `promise`."""
    input_tokens: int | None = None
    """Billed input tokens where the caller counted them; None: estimated from the text."""
    cached_input_tokens: Mapping[str, int] = field(default_factory=dict)
    """Offer name -> tokens of this prompt that its provider already holds in its prompt cache."""
    batch: bool = False
    """The call may be sent through the provider's batch interface, at batch prices."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the bundle says of n requests and m models."""

    p_success: Float32Array
    """[n, m], calibrated probability of success."""
    output_tokens: Float32Array
    """[n, m], expected output tokens; NaN where the logs never told."""
    latency_ms: Float32Array
    """[n, m], expected latency; NaN where the logs never told."""
    input_tokens: Float32Array
    """[n, m], expected billed input tokens (tokenizers differ by model); NaN where unknown."""

    def take(self, rows: NDArray[Any] | slice) -> Estimates:
        """Estimates of some of the requests: indices, a mask [n] or a slice."""
        return Estimates(self.p_success[rows], self.output_tokens[rows], self.latency_ms[rows], self.input_tokens[rows])


class Candidate(NamedTuple):
    """One offer as it was weighed. None means unknown, never zero.

    A tuple, because a decision makes one for each offer, and a frozen dataclass takes three times as long.
    """

    offer: str
    model: str
    p_success: float
    output_tokens: float | None
    cost_usd: float | None
    """Expected cost of the whole call, in US dollars."""
    latency_ms: float | None
    rejected: Rejection | None = None


class Digest(NamedTuple):
    """What training needs of a prompt, without a word of it."""

    embedding: Float32Array
    """[d], the bundle's own, of unit length."""
    side: Float32Array
    """[f], side features as the graph takes them."""
    n_tokens: float
    """Tokens of the whole prompt by the bundle's tokenizer."""
    encoder_sha256: str
    """Of the encoder that made the embedding."""


class Decision(NamedTuple):
    """The answer to one request."""

    decision_id: str
    """Time-ordered UUID (version 7); empty when a client made the decision by default, for want of the router."""
    offer: str
    model: str
    fallbacks: tuple[str, ...]
    """Eligible offers to try in this order if the chosen one fails."""
    candidates: Sequence[Candidate]
    """Every offer of the catalog whose model the bundle can judge, in catalog order."""
    reasons: tuple[Reason, ...]
    propensity: float
    """Probability in (0, 1] with which the policy in force chooses this model for this request; in an A/B test the mean
    over its arms, whichever of them decided."""
    quality_target: float | None
    """The target that was in force; None under the `threshold` rule."""
    version: str
    arm: str
    """Side of an A/B test, `<test>/<arm>`; empty for a request that is in none."""
    bundle_sha256: str
    digest: Digest | None = None
    """Given by a router that makes digests, where the prompt was text; for the journal, not for callers."""
    exploration: Drawn | None = None
    """Given by a router that explores; for the journal, not for callers."""
    arm_propensity: float | None = None
    """In an A/B test, the probability with which the version that decided chooses this model; for the journal."""

    def candidate(self, offer: str) -> Candidate:
        """The candidate of that offer name; KeyError when the catalog has none."""
        for candidate in self.candidates:
            if candidate.offer == offer:
                return candidate
        raise KeyError(offer)


class ShadowDecision(NamedTuple):
    """What a version would have decided that only looks on."""

    decision_id: str
    """Of the decision that counted."""
    test: str
    version: str
    bundle_sha256: str
    offer: str
    """Empty where it would not have decided; `error` says why."""
    model: str
    p_success: float | None
    """Of its choice, by its own estimate."""
    cost_usd: float | None
    """Of its choice, by its own estimate, US dollars."""
    agrees: bool
    """Whether it would have chosen the model that was chosen."""
    served_p_success: float | None
    """Of the offer that was chosen, by its own estimate; None: it does not know that offer."""
    served_cost_usd: float | None
    served_propensity: float
    """Probability in [0, 1] with which it would have chosen the model that was chosen."""
    micros: int
    """Microseconds that it took to decide."""
    error: str
    """Why it would not have decided: `no_eligible_offer` or `request_not_taken`; empty: it would."""


class ArmDescription(NamedTuple):
    """One side of an A/B test in force."""

    name: str
    version: str
    bundle_sha256: str


class AbTest(NamedTuple):
    """An A/B test in force; `experiment` explains its fields."""

    name: str
    salt: str
    unit: str
    segments: tuple[str, ...]
    """Empty: all."""
    share: float
    start: float
    arms: tuple[ArmDescription, ...]


class ShadowTest(NamedTuple):
    """A version that decides beside the others without effect; `experiment` explains its fields."""

    name: str
    salt: str
    unit: str
    segments: tuple[str, ...]
    """Empty: all."""
    share: float
    version: str
    bundle_sha256: str


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator asks first: which bundle is in force, and what it can do."""

    version: str
    bundle_sha256: str
    bundle_format: int
    created: str
    """ISO time of training."""
    training_start: str | None
    """ISO time of the oldest training row; None when the log had no timestamps."""
    training_end: str | None
    encoder: str
    embedding_size: int
    models: tuple[str, ...]
    """Models the bundle can judge, in the order of its estimates."""
    offers: tuple[str, ...]
    """Offers that may be chosen, in catalog order."""
    catalog_as_of: str | None
    segments: tuple[str, ...]
    """Segments seen in training; another one is treated as unknown."""
    quality_targets: tuple[float, ...]
    """Targets with a fitted operating point; one between two is met by the stricter."""
    default_quality_target: float
    max_text_chars: int
    """Longer prompts are cut in the middle to this many characters."""
    refused: str | None = None
    """Which later version the server refused, and why; None: none since the last change that was taken."""
    exploration: str | None = None
    """What is left to chance, in words; None: nothing."""
    layer_salt: str = ""
    """Of the layer that the tests divide among them."""
    tests: tuple[AbTest, ...] = ()
    shadows: tuple[ShadowTest, ...] = ()
