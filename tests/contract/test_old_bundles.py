"""Bundles of every earlier format go on serving."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from router_ml.errors import BundleError
from router_ml.exploration import Exploration, ExplorationRule
from router_ml.router import Router
from router_ml.versions import open_version

FORMAT_2 = Path(__file__).parent / "bundle_format_2"
"""Written by the last program of that format, of embeddings alone."""
VECTOR = np.linspace(-1, 1, 16)


def test_a_bundle_of_format_2_answers_its_canaries_and_explores_evenly() -> None:
    assert json.loads((FORMAT_2 / "manifest.json").read_text())["format"] == 2
    assert len(open_version(FORMAT_2).bundle.manifest.canaries) > 0
    router = open_version(FORMAT_2, exploration=Exploration(0.5, cost_multiple=100, floor=0))
    decisions = [router.route(embedding=VECTOR) for _ in range(60)]
    assert len({decision.model for decision in decisions}) > 1
    assert {decision.propensity for decision in decisions} <= {0.5 / 4, 0.5 + 0.5 / 4}


def test_a_bundle_of_format_2_cannot_tell_how_sure_it_is_and_says_what_to_do() -> None:
    thompson = Exploration(0.5, ExplorationRule.THOMPSON)
    with pytest.raises(BundleError, match=r"does not tell how sure it is.*explore by `epsilon`, or train it anew"):
        Router.load(FORMAT_2, exploration=thompson)
