"""A decision made again, and why one cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_ml.bundle import policy_of
from router_ml.errors import InputError
from router_ml.exploration import Exploration
from router_ml.policy import Policy
from router_ml.records import decision_line, parse_line
from router_ml.replay import Replayed, recorded, replay
from router_ml.request import make_request
from router_ml.router import Router
from router_ml.v1 import log_pb2

HARD = "xrob xvac xzed xquf xkyg bab deb"


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> tuple[Policy, str]:
    _, sha256, policy = policy_of(tiny_bundle)
    return policy, sha256


@pytest.fixture
def record(tiny_bundle: Path) -> log_pb2.DecisionRecord:
    router = Router.load(tiny_bundle, exploration=Exploration(0.5, cost_multiple=40, floor=0, salt="mine"))
    request = make_request(HARD)
    return parse_line(decision_line(request, router.decide(request), 1)).decision


def test_it_is_what_the_record_says(record: log_pb2.DecisionRecord, opened: tuple[Policy, str]) -> None:
    found = replay(record, *opened)
    assert found == recorded(record)
    assert (found.offer, found.propensity) == (record.offer, record.propensity)


def test_a_decision_of_a_test_is_made_again_as_its_own_version_made_it(
    record: log_pb2.DecisionRecord, opened: tuple[Policy, str]
) -> None:
    own = record.propensity
    record.arm, record.propensity, record.arm_propensity = "shorter/control", own / 2, own
    assert replay(record, *opened) == recorded(record)


def test_prices_of_the_time_decide_whatever_the_catalog_of_the_bundle_says(
    record: log_pb2.DecisionRecord, opened: tuple[Policy, str]
) -> None:
    for candidate in record.candidates:
        candidate.rejected = "" if candidate.offer == "large@eu" else "region"
    found = replay(record, *opened)
    assert (found.offer, found.fallbacks, found.propensity) == ("large@eu", (), 1.0)


def test_a_changed_record_comes_out_otherwise(record: log_pb2.DecisionRecord, opened: tuple[Policy, str]) -> None:
    offers = set()
    for salt in range(100):
        record.exploration.salt = str(salt)
        offers.add(replay(record, *opened).offer)
    assert len(offers) > 1
    record.exploration.share = 0.25
    assert replay(record, *opened).propensity != recorded(record).propensity
    record.ClearField("exploration")
    assert isinstance(found := replay(record, *opened), Replayed) and found.propensity == 1.0


def test_another_bundle_is_refused(record: log_pb2.DecisionRecord, opened: tuple[Policy, str]) -> None:
    with pytest.raises(InputError, match=r"was made by bundle .*, this is cdcdcdcdcdcd; replay it with the bundle"):
        replay(record, opened[0], "cd" * 32)


@pytest.mark.parametrize("what", ["model", "rule", "rejection"])
def test_what_this_program_does_not_know_is_named(
    record: log_pb2.DecisionRecord, opened: tuple[Policy, str], what: str
) -> None:
    if what == "model":
        record.candidates[0].model = "of tomorrow"
    elif what == "rule":
        record.exploration.rule = "of tomorrow"
    else:
        record.candidates[0].rejected = "of tomorrow"
    with pytest.raises(InputError, match=rf"decision {record.decision_id} cannot be replayed: .*of tomorrow"):
        replay(record, *opened)


def test_deviations_that_lack_or_do_not_fit_are_told(
    record: log_pb2.DecisionRecord, opened: tuple[Policy, str]
) -> None:
    record.exploration.rule = "thompson"
    with pytest.raises(InputError, match="needs the deviations of the models' log-odds; found none"):
        replay(record, *opened)
    record.exploration.deviation_f32 = b"\0" * 12
    with pytest.raises(InputError, match="12 bytes of deviations, expected 4 for each of the 4 models"):
        replay(record, *opened)


def test_a_record_without_an_eligible_offer_is_refused(
    record: log_pb2.DecisionRecord, opened: tuple[Policy, str]
) -> None:
    for candidate in record.candidates:
        candidate.rejected = "region"
    with pytest.raises(InputError, match="holds no eligible offer"):
        replay(record, *opened)
