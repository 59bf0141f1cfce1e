"""The exported graph says what the native models say, on ordinary and on awkward prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router_ml.bundle import open_session
from router_ml.errors import GateError
from router_ml.heads import OUTPUTS, of_graph
from training.cost import MagnitudeModel, fit_magnitude
from training.export import check_parity, estimates_of
from training.fit import FitSettings, fit_success
from training.graph import GraphParts, build_graph
from training.linear import LinearSettings
from training.trees import TreeSettings, fit_trees, float32_not_above, raw_scores, tree_nodes

SETTINGS = FitSettings(linear=LinearSettings(), trees=TreeSettings(n_threads=1))


def parts_of(world: Any, *, encoder: bool = True) -> GraphParts:
    fit = fit_success(world.data, vocabulary=world.vocabulary, settings=SETTINGS)
    rows = world.data.rows
    return GraphParts(
        encoder=world.encoder if encoder else None,
        pad_id=world.pad_id,
        embedding_size=world.data.prompts.embedding.shape[1],
        success=fit.model,
        output_tokens=fit_magnitude(world.data, rows.output_tokens, fit, SETTINGS.trees),
        latency_ms=fit_magnitude(world.data, rows.latency_ms, fit, SETTINGS.trees),
    )


@pytest.mark.parametrize(("m", "tokens"), [(2, True), (4, True), (4, False), (30, True)])
def test_graph_and_native_models_agree(token_world: Callable[..., Any], m: int, tokens: bool) -> None:
    world = token_world(n=1200, m=m, seed=m, tokens=tokens)
    report = check_parity(parts_of(world), world.data, np.arange(1200))
    assert report.p_success < 1e-5
    assert report.relative < 1e-5


def test_they_agree_on_prompts_that_came_as_embeddings(token_world: Callable[..., Any]) -> None:
    world = token_world(n=800, seed=5)
    p = world.data.prompts
    n = len(p)
    prompts = replace(
        p,
        ids=p.ids[:0],
        start=np.zeros(n + 1, np.int64),
        given=np.ones(n, bool),
        side=np.zeros_like(p.side),
        n_tokens=np.full(n, np.nan, np.float32),
    )
    world = replace(world, data=replace(world.data, prompts=prompts))
    parts = replace(parts_of(world, encoder=False), pad_id=0)
    assert check_parity(parts, world.data, np.arange(n)).p_success < 1e-5


def test_a_batch_says_what_each_prompt_alone_gets(token_world: Callable[..., Any]) -> None:
    world = token_world(n=600, seed=3)
    parts = parts_of(world)
    session = open_session(build_graph(parts))

    def run(index: np.ndarray) -> tuple[np.ndarray, ...]:
        (flat,) = session.run(OUTPUTS, world.data.features(index, parts.pad_id).feed())
        return of_graph(flat)

    together = run(np.arange(200))
    for i in range(200):
        alone = run(np.array([i]))
        assert np.allclose(alone[0], together[0][i], atol=1e-6)
        assert np.allclose(alone[1], together[1][i], rtol=1e-4)


def test_trees_take_the_same_branch_exactly_at_their_thresholds(token_world: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    # Coarse values, so that many rows lie on a threshold and one float32 step beside it.
    features = (rng.integers(-20, 20, (4000, 6)) / 7).astype(np.float32)
    booster = fit_trees(
        features,
        (features[:, 0] + features[:, 1] > rng.normal(size=4000)).astype(float),
        np.ones(4000),
        objective="cross_entropy",
        offset=None,
        settings=TreeSettings(n_threads=1, n_trees=20),
    )
    nodes = tree_nodes(booster)
    splits = [t for t, mode in zip(nodes.threshold, nodes.mode, strict=True) if mode == "BRANCH_LEQ"]
    edges = np.array(splits, np.float32)
    beside = [np.nextafter(edges, np.float32(way)) for way in (9, -9)]
    awkward = rng.choice(np.concatenate([edges, *beside]), (3000, 6))
    awkward[np.abs(awkward) < 1e-30] = 0  # LightGBM takes what is below 1e-35 for zero
    native = raw_scores(booster, awkward.astype(np.float32), 1)
    assert np.allclose(walk(nodes, awkward), native, atol=1e-9)


def walk(nodes: Any, rows: np.ndarray) -> np.ndarray:
    """The flat arrays followed by hand, in float32, as onnxruntime follows them."""
    place = {(tree, node): k for k, (tree, node) in enumerate(zip(nodes.tree, nodes.node, strict=True))}
    leaf = {
        key: value
        for key, value in zip(zip(nodes.leaf_tree, nodes.leaf_node, strict=True), nodes.leaf_value, strict=True)
    }
    total = np.zeros(len(rows))
    for tree in sorted(set(nodes.tree)):
        for i, row in enumerate(rows):
            node = 0
            while nodes.mode[place[tree, node]] != "LEAF":
                k = place[tree, node]
                below = row[nodes.feature[k]] <= np.float32(nodes.threshold[k])
                node = nodes.true_node[k] if below else nodes.false_node[k]
            total[i] += leaf[tree, node]
    return total


def test_float32_thresholds_are_exact_for_float32_inputs() -> None:
    rng = np.random.default_rng(1)
    for value in rng.normal(size=2000) * 10.0 ** rng.integers(-6, 6, 2000):
        low = float32_not_above(value)
        assert low <= value < float(np.nextafter(np.float32(low), np.float32(np.inf)))


def test_the_gate_refuses_a_graph_that_says_something_else(token_world: Callable[..., Any]) -> None:
    world = token_world(n=400, seed=8)
    parts = parts_of(world)
    native = parts.success.probabilities

    class Off:
        """The success model, off by 2e-5 in its probabilities."""

        def __getattr__(self, name: str) -> Any:
            return getattr(parts.success, name)

        def probabilities(self, logits: np.ndarray, features: np.ndarray) -> np.ndarray:
            return native(logits, features) + 2e-5

    with pytest.raises(GateError, match="nothing was written"):
        check_parity(replace(parts, success=Off()), world.data, np.arange(400))


def test_the_gate_notices_what_is_unknown_on_one_side_only(token_world: Callable[..., Any]) -> None:
    world = token_world(n=400, seed=9)
    parts = parts_of(world)

    class Silent(MagnitudeModel):
        def predict(self, features: np.ndarray, n_threads: int) -> np.ndarray:
            return np.full((len(features) // len(self.level), len(self.level)), np.nan)

    tokens = parts.output_tokens
    with pytest.raises(GateError):
        check_parity(replace(parts, output_tokens=Silent(tokens.booster, tokens.level)), world.data, np.arange(400))


def test_estimates_keep_the_order_of_prompts_whatever_their_length(token_world: Callable[..., Any]) -> None:
    world = token_world(n=500, seed=4)
    parts = parts_of(world)
    session = open_session(build_graph(parts))
    index = np.random.default_rng(0).permutation(500)
    shuffled = estimates_of(session, world.data, index, parts.pad_id, (1.0,) * 4)
    straight = estimates_of(session, world.data, np.arange(500), parts.pad_id, (1.0,) * 4)
    assert np.allclose(shuffled.p_success, straight.p_success[index], atol=1e-6)
