"""Judging a version from logs of one model per request, from the command line, against a world whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from router_ml import bundle
from router_ml.cli import main
from router_ml.router import Router
from router_ml.types import Request

SKILL = {"tiny": (2.5, 8.0), "small": (2.7, 6.0), "mid": (3.0, 4.5), "large": (3.3, 2.0)}
"""As in conftest: log odds on easy words, and what hard ones cost."""
COST = dict(zip(SKILL, (0.00002, 0.0001, 0.0005, 0.002), strict=True))
N = 1200
NEWER = datetime(2026, 11, 12, tzinfo=UTC)
"""The tiny bundle learned from logs that end before it."""


@dataclass(frozen=True)
class World:
    """Requests logged by chance, and what the version would have been worth on them."""

    rows: list[dict]
    success: float
    cost_usd: float


@pytest.fixture(scope="module")
def world(tiny_bundle: Path) -> World:
    rng = np.random.default_rng(3)
    names = list(SKILL)
    prompts, hard = [], rng.beta(0.7, 0.9, N)
    for share in hard:
        words = [f"xro{c}" if rng.random() < share else f"ba{c}" for c in rng.choice(list("bcdfghjklmnprs"), 30)]
        prompts.append(" ".join(words))
    probability = 1 / (1 + np.exp(-np.array([skill - loss * hard for skill, loss in SKILL.values()]).T))
    logging = np.array([0.4, 0.3, 0.2, 0.1])
    drawn = rng.choice(4, size=N, p=logging)
    rows = [
        {
            "request_id": f"r{i}",
            "prompt": prompts[i],
            "segment": "chat",
            "session_id": f"s{i // 2}",
            "timestamp": (NEWER + timedelta(minutes=i)).isoformat(),
            "model": names[drawn[i]],
            "propensity": logging[drawn[i]],
            "success": float(rng.random() < probability[i, drawn[i]]),
            "cost_usd": COST[names[drawn[i]]],
        }
        for i in range(N)
    ]
    router = Router.load(tiny_bundle)
    chosen = [router.decide(Request(text=prompt, segment="chat")).model for prompt in prompts]
    return World(
        rows,
        float(np.mean([probability[i, names.index(name)] for i, name in enumerate(chosen)])),
        float(np.mean([COST[name] for name in chosen])),
    )


@pytest.fixture
def evaluated(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(rows: list[dict], *options: str, command: str = "evaluate") -> str:
        logs = tmp_path / "logs.jsonl"
        logs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        status = main([command, str(logs), "--model", str(tiny_bundle), *options])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return run


def test_the_estimate_covers_what_the_served_policy_is_truly_worth(world: World, evaluated: Callable[..., str]) -> None:
    found = json.loads(evaluated(world.rows, "--json"))["off_policy"]
    for name, truth in (("success", world.success), ("cost_usd", world.cost_usd)):
        figure = found[name]
        assert figure["low"] <= truth <= figure["high"], name
        assert figure["low"] < figure["value"] < figure["high"]
        assert figure["effective_sample_size"] > 100
        assert figure["estimator"] == "self-normalised doubly robust"
        assert figure["verdict"] in ("better", "worse", "no different beyond noise", "cannot tell")
    assert found["success"]["verdict"] == "better"
    assert found["overlap"]["n_clusters"] == N // 2
    assert found["latency_ms"] is None


def test_a_person_reads_estimates_verdicts_and_what_they_rest_on(world: World, evaluated: Callable[..., str]) -> None:
    text = evaluated(world.rows)
    assert f"off-policy, judged on {N:,} logged requests in {N // 2} independent groups" in text
    assert "$ per 1,000 successes" in text
    (line,) = (line for line in text.splitlines() if line.startswith("  success "))
    assert line.endswith("better")
    (line,) = (line for line in text.splitlines() if line.startswith("  it decides otherwise than as logged on"))
    assert "largest weight" in line and "without support; least overlap in segment chat" in line
    assert "rests on: logged propensities" in text


def test_too_few_requests_say_so_and_what_would_settle_it(world: World, evaluated: Callable[..., str]) -> None:
    text = evaluated(world.rows[:80])
    assert "success: cannot tell, since" in text
    assert "more requests like these would settle it" in text


def test_unreported_outcomes_are_told_and_weighted(world: World, evaluated: Callable[..., str]) -> None:
    """Outcomes of `large` are seldom reported, those of `tiny` always."""
    rng = np.random.default_rng(5)
    rate = {"tiny": 1.0, "small": 0.8, "mid": 0.6, "large": 0.4}
    rows = [row | ({} if rng.random() < rate[row["model"]] else {"success": None}) for row in world.rows]
    found = json.loads(evaluated(rows, "--json"))["off_policy"]
    assert found["success"]["reported"] == pytest.approx(0.8, abs=0.05)
    assert found["success"]["low"] <= world.success <= found["success"]["high"]
    assert any("success was reported of" in line for line in found["rests_on"])
    assert found["cost_usd"]["reported"] == 1.0


def test_without_propensities_estimated_ones_serve_and_are_told(world: World, evaluated: Callable[..., str]) -> None:
    rows = [{name: value for name, value in row.items() if name != "propensity"} for row in world.rows]
    found = json.loads(evaluated(rows, "--json"))["off_policy"]
    assert found["success"]["low"] <= world.success <= found["success"]["high"]
    assert any("not logged but estimated" in line for line in found["rests_on"])


def test_answers_of_several_models_to_each_prompt_are_no_choices(world: World, evaluated: Callable[..., str]) -> None:
    asked = [row | {"request_id": f"{k}", "prompt_id": f"{k}", "propensity": None} for k, row in enumerate(world.rows)]
    rows = [row | {"model": model} for row in asked for model in ("tiny", "small", "mid", "large")]
    found = json.loads(evaluated(rows, "--json"))
    assert found["off_policy"] is None
    assert "no choices of one" in found["off_policy_reason"]


@pytest.mark.parametrize("form", ["obp", "dsjson"])
def test_the_same_rows_are_exported(world: World, evaluated: Callable[..., str], tmp_path: Path, form: str) -> None:
    out = tmp_path / f"log.{form}"
    said = json.loads(evaluated(world.rows, "--format", form, "--out", str(out), "--json", command="export"))
    assert said["rows"] == N
    assert out.stat().st_size > 1000


def test_what_cannot_be_exported_is_wrong_use(
    world: World, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs.jsonl"
    rows = [row | {"propensity": None, "model": model} for row in world.rows[:50] for model in ("tiny", "large")]
    logs.write_text("".join(json.dumps(row | {"request_id": f"{k}"}) + "\n" for k, row in enumerate(rows)))
    options = ("--model", str(tiny_bundle), "--format", "obp", "--out", str(tmp_path / "x.npz"))
    assert main(["export", str(logs), *options]) == 2
    assert "nothing to export: the rows are answers of several models" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_the_bundle_is_older_than_the_logs(tiny_bundle: Path) -> None:
    assert bundle.load(tiny_bundle).manifest.split["test_from_us"] < NEWER.timestamp() * 1e6
