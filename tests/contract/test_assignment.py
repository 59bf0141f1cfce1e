"""Which arm a unit falls on, against vectors that backends in any language may test themselves with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from router_ml.experiment import Arm, Experiment, Unit, position

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("assignment.json").read_text())
DOCS = Path(__file__).parents[2] / "docs" / "ab.md"


def test_positions_are_as_promised() -> None:
    found = [position(each["salt"], each["unit_id"]) for each in VECTORS["positions"]]
    assert found == [each["position"] for each in VECTORS["positions"]]


@pytest.mark.parametrize("vector", VECTORS["tests"])
def test_units_fall_on_the_arms_as_promised(vector: dict[str, Any]) -> None:
    arms = tuple(Arm(f"arm-{k}", "v") for k in range(vector["arms"]))
    test = Experiment("t", vector["salt"], Unit.SESSION, None, vector["share"], vector["start"], arms)
    assert {unit: test.arm_of(vector["layer_salt"], unit) for unit in vector["arm_of"]} == vector["arm_of"]


def test_the_javascript_of_the_documentation_gives_the_same() -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("no node to run JavaScript with")
    (code,) = re.findall(r"```js\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    asked = [
        [t["layer_salt"], t["salt"], t["start"], t["share"], t["arms"], list(t["arm_of"])] for t in VECTORS["tests"]
    ]
    ask = f"""{code}
    const positions = {json.dumps(VECTORS["positions"])}.map(each => position(each.salt, each.unit_id));
    const arms = {json.dumps(asked)}.map(([layer, salt, start, share, k, units]) =>
      units.map(unit => armOf(layer, {{salt, start, share, arms: Array(k)}}, unit)));
    console.log(JSON.stringify({{positions, arms}}));"""
    out = subprocess.run([node, "-e", ask], capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(out) == {
        "positions": [each["position"] for each in VECTORS["positions"]],
        "arms": [list(each["arm_of"].values()) for each in VECTORS["tests"]],
    }
