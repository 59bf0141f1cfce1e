"""Exported logs: the names that other tools read, and their figures where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from router_ml.catalog import Catalog
from router_ml.errors import InputError
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates
from training.bandit_export import export_bandit
from training.dataset import Dataset
from training.off_policy import ESTIMATORS
from training.off_policy.policy_rows import PolicyRows, policy_rows


@pytest.fixture
def logged(token_world) -> tuple[PolicyRows, Dataset, Estimates]:
    world = token_world(n=400, partial=True)
    rows = world.data.rows
    rows.success[:20] = np.nan
    index = world.data.prompts_with_rows()
    p = np.clip(world.truth[index] + 0.1, 0, 1).astype(np.float32)
    unknown = np.full_like(p, np.nan)
    estimates = Estimates(p, unknown, unknown, unknown)
    catalog = Catalog.from_mean_costs(dict(zip(world.data.models, (0.001, 0.004, 0.016, 0.064), strict=True)))
    policy = Policy(catalog, world.data.models, OperatingPoints((0.9,), (5.0,), (0.8,), 0.9))
    found = policy_rows(world.data, index, policy, estimates)
    assert isinstance(found, PolicyRows)
    return found, world.data, estimates


def exported(logged: tuple[PolicyRows, Dataset, Estimates], path: Path, metric: str = "success") -> int:
    found, data, estimates = logged
    return export_bandit(path, "obp" if path.suffix == ".npz" else "dsjson", found, metric, data, estimates)


def test_obp_dictionary(logged, tmp_path: Path) -> None:
    assert exported(logged, tmp_path / "log.npz") == 380
    with np.load(tmp_path / "log.npz", allow_pickle=False) as stored:
        found = dict(stored)
    assert (found["n_rounds"], found["n_actions"]) == (380, 4)
    shapes = {name: found[name].shape for name in ("context", "action", "reward", "position", "pscore")}
    assert shapes == {"context": (380, 8), **{n: (380,) for n in ("action", "reward", "position", "pscore")}}
    assert found["action_dist"].sum(axis=1) == pytest.approx(1.0)
    assert np.isnan(found["expected_reward"]).all()
    assert (found["pscore"] > 0).all()


def test_dsjson_lines(logged, tmp_path: Path) -> None:
    assert exported(logged, tmp_path / "log.dsjson") == 380
    lines = [json.loads(line) for line in (tmp_path / "log.dsjson").read_text().splitlines()]
    rows = logged[0].metrics["success"].rows
    first, at = lines[0], np.flatnonzero(rows.known)[0]
    assert first["_label_cost"] == -rows.reward[at]
    assert first["_label_probability"] == rows.propensity[at]
    assert (first["_label_Action"], first["_labelIndex"]) == (rows.action[at] + 1, rows.action[at])
    assert first["a"][0] == first["_label_Action"]
    assert sorted(first["a"]) == [1, 2, 3, 4]
    assert [action["Model"]["name"] for action in first["c"]["_multi"]] == list(logged[1].models)
    assert len({line["EventId"] for line in lines}) == 380


def test_costs_are_costs_and_what_was_not_logged_cannot_be_exported(logged, tmp_path: Path) -> None:
    exported(logged, tmp_path / "log.dsjson", "cost_usd")
    first = json.loads((tmp_path / "log.dsjson").read_text().splitlines()[0])
    assert first["_label_cost"] > 0
    del logged[0].metrics["latency_ms"]
    with pytest.raises(InputError, match="latency_ms"):
        exported(logged, tmp_path / "log.dsjson", "latency_ms")


def test_open_bandit_pipeline_gives_the_same_figures(logged, tmp_path: Path) -> None:
    theirs = pytest.importorskip("obp.ope.estimators")
    exported(logged, tmp_path / "log.npz")
    found = dict(np.load(tmp_path / "log.npz"))
    names = ("reward", "action", "pscore", "action_dist", "estimated_rewards_by_reg_model", "position")
    same = {
        "direct method": theirs.DirectMethod,
        "IPS": theirs.InverseProbabilityWeighting,
        "self-normalised IPS": theirs.SelfNormalizedInverseProbabilityWeighting,
        "doubly robust": theirs.DoublyRobust,
        "self-normalised doubly robust": theirs.SelfNormalizedDoublyRobust,
    }
    rows = logged[0].metrics["success"].rows
    known = type(rows)(
        *(getattr(rows, name)[rows.known] for name in ("reward", "action", "propensity", "target", "q", "cluster"))
    )
    for name, tool in same.items():
        value = tool().estimate_policy_value(**{key: found[key] for key in names})
        assert value == pytest.approx(ESTIMATORS[name](known).value, rel=1e-9), name


def test_vowpal_wabbit_reads_every_label_and_its_estimators_agree(logged, tmp_path: Path) -> None:
    vowpalwabbit = pytest.importorskip("vowpalwabbit")
    exported(logged, tmp_path / "log.dsjson")
    lines = (tmp_path / "log.dsjson").read_text().splitlines()
    workspace = vowpalwabbit.Workspace("--cb_adf --dsjson -t --quiet")
    for line in lines[:50]:
        told, examples = json.loads(line), workspace.parse(line)
        labels = [cost for example in examples[1:] for cost in example.get_label().costs]
        assert len(examples) == 1 + 4
        assert len(labels) == 1
        assert labels[0].cost == pytest.approx(told["_label_cost"])
        assert labels[0].probability == pytest.approx(told["_label_probability"])
        assert examples[told["_label_Action"]].get_label().costs
        workspace.finish_example(examples)
    workspace.finish()
    bandits = pytest.importorskip("estimators.bandits")
    from estimators.bandits import ips, snips

    assert bandits
    rows = logged[0].metrics["success"].rows
    known = type(rows)(
        *(getattr(rows, name)[rows.known] for name in ("reward", "action", "propensity", "target", "q", "cluster"))
    )
    for name, tool in (("IPS", ips.Estimator()), ("self-normalised IPS", snips.Estimator())):
        for line in map(json.loads, lines):
            tool.add_example(line["_label_probability"], -line["_label_cost"], line["_target_probability"])
        assert tool.get() == pytest.approx(ESTIMATORS[name](known).value, rel=1e-9), name
