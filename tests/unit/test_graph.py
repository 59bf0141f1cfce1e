from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from router_ml.bundle import open_session
from router_ml.features import SIDE_FEATURES
from router_ml.heads import OUTPUTS, of_graph
from training.calibrate import Calibration
from training.cost import MagnitudeModel
from training.fit import SuccessModel
from training.graph import INNER_OUTPUTS, GraphParts, build_graph
from training.linear import BIGRAM_BUCKETS, LinearModel
from training.trees import TreeSettings, fit_trees, raw_scores, row_feature_names, row_features, tree_nodes

N_SIDE = len(SIDE_FEATURES)
HEADS = ("p_success", "output_tokens", "latency_ms")
TREES = TreeSettings(n_threads=1, n_trees=30, n_leaves=15, min_rows_in_leaf=20)


def random_parts(m: int = 3, d: int = 20, seed: int = 0, *, booster: bool = True) -> GraphParts:
    """An embedding-only graph of random weights, whose trees split on every feature at awkward values."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    linear = LinearModel(np.zeros((1 + BIGRAM_BUCKETS, m + 1), np.float32), normal(d, m), normal(N_SIDE, m),
                         np.vstack([np.zeros((1, m), np.float32), normal(4, m)]), normal(m))  # fmt: skip
    log_odds = normal(m)
    trees = []
    for objective in ("cross_entropy", "poisson", "poisson"):
        n = 400
        # Neighbouring float32 values: thresholds between them are no float32.
        side = np.float32(1) + rng.integers(0, 40, (n, N_SIDE)).astype(np.float32) * np.float32(2**-23)
        rows = row_features(normal(n, m), normal(n, d), side, rng.integers(0, 5, n), log_odds)
        pull = ((rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-30)) @ normal(rows.shape[1])
        target = (pull > 0).astype(float)
        trees.append(fit_trees(rows, target, np.ones(len(rows)), objective=objective, offset=None, settings=TREES))
    success, tokens, latency = trees if booster else (None, None, None)
    calibration = Calibration(rng.uniform(0.5, 1.5, m), rng.normal(size=m))
    model = SuccessModel(linear, log_odds, success, calibration, 1)
    level = rng.uniform(50, 500, m)
    return GraphParts(None, 0, d, model, MagnitudeModel(tokens, level), MagnitudeModel(latency, 30 * level))


def run(parts: GraphParts, embedding: Any, side: Any, segment: Any) -> dict[str, Any]:
    names = (*OUTPUTS, *INNER_OUTPUTS)
    session = open_session(build_graph(parts, inner=True))
    feed = {"ids": np.zeros((len(side), 1), np.int64), "embedding": embedding, "side": side, "segment": segment}
    found = dict(zip(names, session.run(names, feed), strict=True))
    return found | dict(zip(HEADS, of_graph(found["estimates"]), strict=True))


def thresholds(parts: GraphParts, feature: int) -> Any:
    """Lowered thresholds of one feature, in all ensembles."""
    boosters = (parts.success.booster, parts.output_tokens.booster, parts.latency_ms.booster)
    found = [
        threshold
        for booster in boosters
        if booster is not None
        for nodes in [tree_nodes(booster)]
        for threshold, split, mode in zip(nodes.threshold, nodes.feature, nodes.mode, strict=True)
        if mode == "BRANCH_LEQ" and split == feature
    ]
    return np.array(found, np.float32)


def test_inputs_and_outputs_are_those_of_the_contract() -> None:
    graph = onnx.load_from_string(build_graph(random_parts())).graph
    assert [each.name for each in graph.input] == ["ids", "embedding", "side", "segment"]
    assert tuple(each.name for each in graph.output) == OUTPUTS
    inner = onnx.load_from_string(build_graph(random_parts(), inner=True)).graph
    assert tuple(each.name for each in inner.output) == (*OUTPUTS, *INNER_OUTPUTS)


def test_the_same_parts_give_the_same_bytes() -> None:
    parts = random_parts()
    assert build_graph(parts) == build_graph(parts)


@pytest.mark.parametrize("m", [1, 2, 7])
def test_every_branch_is_that_of_the_native_trees_at_and_beside_the_thresholds(m: int) -> None:
    parts, rng, n = random_parts(m=m, seed=m), np.random.default_rng(9), 1500
    names = row_feature_names(20)
    side = np.empty((n, N_SIDE), np.float32)
    for k, name in enumerate(SIDE_FEATURES):
        edges = thresholds(parts, names.index(name))
        assert edges.size
        beside = [np.nextafter(edges, np.float32(way)) for way in (np.inf, -np.inf)]
        side[:, k] = rng.choice(np.concatenate([edges, *beside]), n)
    embedding = rng.normal(size=(n, 20)).astype(np.float32)
    for k in range(16):
        edges = thresholds(parts, names.index(f"embedding_{k}"))
        if edges.size:
            embedding[: n // 2, k] = rng.choice(edges, n // 2)
    segment = rng.integers(0, 5, n)
    found = run(parts, embedding, side, segment)
    z, rows = found["z"], found["rows"]
    expected = row_features(z, embedding, side, segment, parts.success.model_log_odds)
    assert rows == pytest.approx(expected, rel=1e-6, abs=3e-6)  # sums of float32 in another order
    assert np.array_equal(rows.reshape(n, m, -1)[:, 0, 17 : 17 + N_SIDE], side)  # to the last bit
    assert found["p_success"] == pytest.approx(parts.success.probabilities(z.astype(float), rows), abs=1e-6)
    for name, model in (("output_tokens", parts.output_tokens), ("latency_ms", parts.latency_ms)):
        assert found[name] == pytest.approx(model.predict(rows, 1), rel=1e-5)


def test_thresholds_rounded_to_the_nearest_float32_would_take_other_branches() -> None:
    """What lowering is for: the table above does tell the two apart."""
    parts = random_parts()
    assert parts.success.booster is not None
    exact = [
        part["threshold"]
        for tree in parts.success.booster.dump_model()["tree_info"]
        for part in splits(tree["tree_structure"])
    ]
    assert any(float(np.float32(value)) > value for value in exact)


def splits(part: dict[str, Any]) -> list[dict[str, Any]]:
    if "split_feature" not in part:
        return []
    return [part, *splits(part["left_child"]), *splits(part["right_child"])]


def test_without_any_trees_the_linear_layer_speaks_alone() -> None:
    parts, rng = random_parts(booster=False), np.random.default_rng(1)
    embedding, side = (rng.normal(size=(50, k)).astype(np.float32) for k in (20, N_SIDE))
    found = run(parts, embedding, side, np.zeros(50, np.int64))
    linear = parts.success.linear
    z = embedding @ linear.embedding + side @ linear.side + linear.bias
    assert found["z"] == pytest.approx(z, abs=1e-5)
    assert found["p_success"] == pytest.approx(parts.success.calibration.apply(z), abs=1e-6)
    assert found["output_tokens"] == pytest.approx(np.tile(parts.output_tokens.level, (50, 1)), rel=1e-6)


def test_trees_of_one_head_leave_the_other_heads_alone() -> None:
    whole, rng = random_parts(), np.random.default_rng(2)
    none = random_parts(booster=False)
    parts = replace(none, latency_ms=whole.latency_ms)
    inputs = (*(rng.normal(size=(50, k)).astype(np.float32) for k in (20, N_SIDE)), np.zeros(50, np.int64))
    found, before = run(parts, *inputs), run(none, *inputs)
    assert np.array_equal(found["p_success"], before["p_success"])
    assert np.array_equal(found["output_tokens"], before["output_tokens"])
    booster = whole.latency_ms.booster
    assert booster is not None
    scores = raw_scores(booster, found["rows"], 1).reshape(50, 3)
    assert found["latency_ms"] == pytest.approx(whole.latency_ms.level * np.exp(scores), rel=1e-5)


@pytest.mark.parametrize("booster", [True, False])
def test_what_the_logs_never_told_is_nan_and_not_zero(booster: bool) -> None:
    parts = random_parts(booster=booster)
    level = np.array([np.nan, 20.0, np.nan])
    unknown = replace(parts, output_tokens=replace(parts.output_tokens, level=level))
    rng = np.random.default_rng(3)
    embedding, side = (rng.normal(size=(20, k)).astype(np.float32) for k in (20, N_SIDE))
    found = run(unknown, embedding, side, np.zeros(20, np.int64))
    assert np.isnan(found["output_tokens"]).tolist() == [[True, False, True]] * 20
    assert np.isfinite(found["latency_ms"]).all() and np.isfinite(found["p_success"]).all()


def test_an_encoder_of_another_opset_is_refused(token_world: Callable[..., Any]) -> None:
    encoder = onnx.ModelProto()
    encoder.CopyFrom(token_world(n=5, m=2).encoder)
    encoder.opset_import[0].version = 17
    with pytest.raises(AssertionError, match="opset"):
        build_graph(replace(random_parts(d=12), encoder=encoder))


# -- prompts of awkward length ------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_parts(token_world: Callable[..., Any]) -> GraphParts:
    """A graph over ids: 80 tokens, then the padding."""
    parts, rng = random_parts(d=12), np.random.default_rng(4)
    grams = rng.normal(size=(81 + BIGRAM_BUCKETS, 4)).astype(np.float32)
    grams[:, -1] = grams[:, -1] ** 2
    grams[[7, 80]] = 0  # never seen; padding
    linear = replace(parts.success.linear, grams=grams)
    encoder = token_world(n=5, m=2).encoder
    return replace(parts, encoder=encoder, pad_id=80, success=replace(parts.success, linear=linear))


def by_ids(parts: GraphParts, rows: list[list[int]], width: int) -> list[Any]:
    ids = np.full((len(rows), width), parts.pad_id, np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    n = len(rows)
    side, segment = np.ones((n, N_SIDE), np.float32), np.arange(n) % 5
    embedding = np.zeros((n, parts.embedding_size), np.float32)
    session = open_session(build_graph(parts, inner=True))
    feed = {"ids": ids, "embedding": embedding, "side": side, "segment": segment}
    z, flat = session.run(("z", "estimates"), feed)
    return [z, of_graph(flat)[0]]


def test_padding_changes_nothing(text_parts: GraphParts) -> None:
    rng = np.random.default_rng(5)
    rows = [[], [3], [7], [7, 7], [79, 79], *(rng.integers(0, 80, k).tolist() for k in (2, 3, 60))]
    tight, wide = by_ids(text_parts, rows, 60), by_ids(text_parts, rows, 900)
    assert tight[0] == pytest.approx(wide[0], abs=1e-5)
    for i, row in enumerate(rows):
        alone = by_ids(text_parts, [[]] * i + [row], max(1, len(row)))  # the same segment
        assert alone[0][-1] == pytest.approx(tight[0][i], abs=1e-5)


def test_a_batch_of_empty_prompts_and_one_of_long_ones_give_finite_numbers(text_parts: GraphParts) -> None:
    for rows, width in (([[]] * 5, 1), ([[]] * 5, 4), ([[9] * 5000] * 2, 5000), ([[7] * 50] * 2, 50)):
        z, p = by_ids(text_parts, rows, width)
        assert np.isfinite(z).all() and ((p >= 0) & (p <= 1)).all()


def test_a_prompt_of_padding_alone_has_no_words(text_parts: GraphParts) -> None:
    linear = text_parts.success.linear
    z, _ = by_ids(text_parts, [[]], 3)
    assert z[0] == pytest.approx(linear.bias + linear.side.sum(axis=0) + linear.segment[0], abs=1e-5)
