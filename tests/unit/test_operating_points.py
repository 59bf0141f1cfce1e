from __future__ import annotations

import json

import pytest

from router_ml.operating_points import DEFAULT_CONFIDENCE, OperatingPoints
from router_ml.types import Rule

POINTS = OperatingPoints(
    (0.9, 0.95, 1.0),
    (100.0, 20.0, 5.0),
    (0.5, 0.75, 0.9),
    0.9,
    Rule.THRESHOLD,
    promised_willingness=(60.0, 10.0, None),
    promised_thresholds=(0.6, 0.85, None),
)


def test_plug_in_levels_are_in_force_unless_a_confidence_is_given() -> None:
    assert (POINTS.willingness_for(0.95), POINTS.threshold_for(0.95)) == (20.0, 0.75)


def test_promised_levels_are_in_force_with_a_confidence() -> None:
    promised = POINTS.promised()
    assert promised.confidence == DEFAULT_CONFIDENCE
    assert (promised.willingness_for(0.95), promised.threshold_for(0.91)) == (10.0, 0.85)
    assert promised.plug_in() == POINTS


def test_what_cannot_be_promised_has_no_level_though_the_plug_in_has_one() -> None:
    assert POINTS.willingness_for(1.0) == 5.0
    assert POINTS.promised().willingness_for(1.0) is None


def test_where_nothing_was_tested_nothing_is_promised() -> None:
    points = OperatingPoints((0.9,), (100.0,), (0.5,), 0.9, confidence=0.9)
    assert (points.willingness_for(0.9), points.threshold_for(0.9)) == (None, None)


@pytest.mark.parametrize("points", [POINTS, POINTS.promised()])
def test_what_is_written_is_what_is_read(points: OperatingPoints) -> None:
    assert OperatingPoints.from_dict(json.loads(json.dumps(points.to_dict()))) == points
