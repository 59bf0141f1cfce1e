"""A decision of the journal made again, from its record and the bundle that made it.

The record holds what the policy was given: the estimates, the prices and limits of every offer as they stood, what was
asked, and what was left to chance. The bundle holds the levels of its operating points. From these the decision comes
out as it was, bit for bit, on the same kind of processor and version of numpy; elsewhere the propensity may differ in
its last digit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from router_ml.errors import InputError
from router_ml.exploration import Exploration, ExplorationRule, Explorer
from router_ml.policy import Policy
from router_ml.request_policy import rank, rule_of
from router_ml.types import Reason, Rejection, Request
from router_ml.v1 import log_pb2


class Replayed(NamedTuple):
    """What a decision comes to when it is made again."""

    offer: str
    model: str
    fallbacks: tuple[str, ...]
    reasons: tuple[Reason, ...]
    propensity: float


def replay(record: log_pb2.DecisionRecord, policy: Policy, bundle_sha256: str) -> Replayed:
    """Decide again; `policy` and hash are those of the bundle, see `bundle.policy_of`, with whatever catalog.

    InputError where the record is of another bundle, or of a rule or model that this program or bundle do not know.
    """
    if record.bundle_sha256 != bundle_sha256:
        raise InputError(
            f"decision {record.decision_id} was made by bundle {record.bundle_sha256:.12}, "
            f"this is {bundle_sha256:.12}; replay it with the bundle that made it"
        )
    place = {name: j for j, name in enumerate(policy.models)}
    try:
        column = [place[candidate.model] for candidate in record.candidates]
        rejected = [Rejection(candidate.rejected) if candidate.rejected else None for candidate in record.candidates]
        explorer = _explorer(record)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"decision {record.decision_id} cannot be replayed: the bundle or this program do not know {error}; "
            "replay it with the program that made it, or a newer one"
        ) from None
    p_success = [np.nan] * len(policy.models)
    for j, candidate in zip(column, record.candidates, strict=True):
        p_success[j] = candidate.p_success
    cost = [candidate.cost_usd if candidate.HasField("cost_usd") else np.nan for candidate in record.candidates]
    by = rule_of(policy, _asked(record.request))
    choice = rank(column, p_success, cost, rejected, by)
    if not choice.order:
        raise InputError(f"decision {record.decision_id} cannot be replayed: its record holds no eligible offer")
    order, reasons, propensity = choice.order, choice.reasons, 1.0
    if explorer is not None:
        raw = record.exploration.deviation_f32
        if len(raw) not in (0, 4 * len(policy.models)):
            raise InputError(
                f"decision {record.decision_id} cannot be replayed: its record holds {len(raw)} bytes of deviations, "
                f"expected 4 for each of the {len(policy.models)} models of the bundle"
            )
        deviation = np.frombuffer(raw, dtype="<f4").tolist() if raw else None
        order, reasons, propensity, _ = explorer.draw(record.decision_id, choice, column, p_success, by, deviation)
    offers = [record.candidates[k].offer for k in order]
    return Replayed(offers[0], record.candidates[order[0]].model, tuple(offers[1:]), reasons, propensity)


def recorded(record: log_pb2.DecisionRecord) -> Replayed:
    """What the record says that the decision was, to be compared."""
    reasons = tuple(map(Reason, record.reasons))
    # In an A/B test the propensity is that over all arms.
    propensity = record.arm_propensity if record.HasField("arm_propensity") else record.propensity
    return Replayed(record.offer, record.model, tuple(record.fallbacks), reasons, propensity)


def _asked(record: log_pb2.RequestRecord) -> Request:
    """What the rule is chosen by."""
    return Request(
        quality_target=record.quality_target if record.HasField("quality_target") else None,
        min_success_probability=(
            record.min_success_probability if record.HasField("min_success_probability") else None
        ),
    )


def _explorer(record: log_pb2.DecisionRecord) -> Explorer | None:
    if not record.HasField("exploration"):
        return None
    e = record.exploration
    return _explorer_of(record.bundle_sha256, ExplorationRule(e.rule), e.share, e.cost_multiple, e.floor, e.salt)


@lru_cache(maxsize=64)
def _explorer_of(
    sha256: str, rule: ExplorationRule, share: float, cost_multiple: float, floor: float, salt: str
) -> Explorer:
    return Explorer(Exploration(share, rule, cost_multiple, floor, salt), sha256)
