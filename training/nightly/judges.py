"""Everything that a night is judged by: the requests of the newest days, what is known of them, both versions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router_ml.types import Float64Array
from training.nightly.choices import Requests, Version, spread
from training.nightly.value import Evidence, evidence_of


@dataclass(frozen=True, slots=True)
class Judges:
    """Everything that is judged by, opened."""

    requests: Requests
    evidence: Evidence
    new: Version
    champion: Version | None
    q_success: Float64Array
    q_cost: Float64Array
    """[r, m] of the new version, of the champion where only that knows the model; NaN: nobody can tell."""
    willingness: float
    """Of the new version at its target, in success per US dollar; 0 where the target cannot be reached."""
    confidence: float


def judges_of(requests: Requests, new: Version, champion: Version | None, confidence: float) -> Judges:
    points = new.bundle.points
    q_success, q_cost = estimates_on(new, requests)
    if champion is not None:
        for own, others in zip((q_success, q_cost), estimates_on(champion, requests), strict=True):
            np.copyto(own, others, where=np.isnan(own))
    willingness = points.willingness_for(points.default_target) or 0.0
    return Judges(requests, evidence_of(requests, q_cost), new, champion, q_success, q_cost, willingness, confidence)


def estimates_on(version: Version, requests: Requests) -> tuple[Float64Array, Float64Array]:
    p = spread(version, version.estimates.p_success.astype(np.float64), requests.models)
    return p, spread(version, version.policy.cheapest(version.price), requests.models)
