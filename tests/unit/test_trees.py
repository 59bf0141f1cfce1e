from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router_ml.features import SIDE_FEATURES
from training.trees import (
    N_EMBEDDING,
    TreeSettings,
    fit_trees,
    float32_not_above,
    raw_scores,
    row_feature_names,
    row_features,
    tree_nodes,
)

ONE_THREAD = TreeSettings(n_threads=1, n_trees=15)


@given(st.floats(allow_nan=False))
@example(1e308)
@example(-1e308)
@example(math.inf)
@example(-math.inf)
@example(1e-50)
@example(-1e-50)
@example(-0.0)
@example(float(np.finfo(np.float32).max) * (1 + 1e-9))
def test_the_lowered_threshold_is_the_largest_float32_not_above(value: float) -> None:
    low = float32_not_above(value)
    assert float(np.float32(low)) == low <= value
    if low < math.inf:
        with np.errstate(over="ignore"):
            assert float(np.nextafter(np.float32(low), np.float32(np.inf))) > value


@given(st.floats(width=32, allow_nan=False), st.floats(allow_nan=False))
def test_a_float32_takes_the_same_branch_at_the_lowered_threshold(x: float, threshold: float) -> None:
    assert (np.float32(x) <= np.float32(float32_not_above(threshold))) == (x <= threshold)


@pytest.mark.parametrize("size", [4, N_EMBEDDING, 40])
def test_a_row_holds_what_the_names_say(size: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3))
    embedding = rng.normal(size=(5, size)).astype(np.float32)
    side = rng.normal(size=(5, len(SIDE_FEATURES))).astype(np.float32)
    segment, log_odds = np.array([0, 2, 1, 0, 7]), np.array([-1, 0.5, 2], np.float32)
    rows = row_features(logits, embedding, side, segment, log_odds)
    names = row_feature_names(size)
    assert rows.dtype == np.float32 and rows.shape == (15, len(names))
    for i in range(5):
        for j in range(3):
            row = dict(zip(names, rows[3 * i + j], strict=True))
            assert row["mean_logit"] == pytest.approx(logits[i].mean(), abs=1e-6)
            assert row["logit"] == np.float32(logits[i, j])
            assert row["logit_difference"] == pytest.approx(logits[i, j] - logits[i].mean(), abs=1e-6)
            assert (row["segment"], row["model"], row["model_log_odds"]) == (segment[i], j, log_odds[j])
            assert [row[name] for name in SIDE_FEATURES] == side[i].tolist()
            assert row[f"embedding_{min(size, N_EMBEDDING) - 1}"] == embedding[i, min(size, N_EMBEDDING) - 1]


def table(n: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(n, 4)).astype(np.float32)
    return features, (rng.random(n) < 1 / (1 + np.exp(-features[:, 0]))).astype(float), rng.integers(1, 4, n) * 1.0


def test_the_same_seed_grows_the_same_trees_and_another_does_not() -> None:
    features, target, weight = table()
    texts = [
        fit_trees(
            features,
            target,
            weight,
            objective="cross_entropy",
            offset=None,
            settings=TreeSettings(n_threads=1, n_trees=5, seed=seed),
        )
        .model_to_string()
        .split("parameters:")[0]
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_trees_start_from_the_offset() -> None:
    features, target, weight = table()
    right = np.where(target > 0, 8.0, -8.0)
    grown = [
        fit_trees(features, target, weight, objective="cross_entropy", offset=offset, settings=ONE_THREAD)
        for offset in (right, np.zeros(1000))
    ]
    added, learned = (np.abs(raw_scores(booster, features, 1)).max() for booster in grown)
    assert added < 0.05 < 0.3 < learned  # nothing is left to learn beyond a right offset


def test_flat_arrays_form_whole_binary_trees() -> None:
    features, target, weight = table()
    booster = fit_trees(features, target, weight, objective="poisson", offset=None, settings=ONE_THREAD)
    nodes = tree_nodes(booster)
    assert max(nodes.tree) + 1 == booster.num_trees() == 15
    for tree in range(15):
        own = [k for k, t in enumerate(nodes.tree) if t == tree]
        assert [nodes.node[k] for k in own] == list(range(len(own)))
        inner = [k for k in own if nodes.mode[k] == "BRANCH_LEQ"]
        children = [child for k in inner for child in (nodes.true_node[k], nodes.false_node[k])]
        assert sorted(children) == list(range(1, len(own)))
        leaves = [node for t, node in zip(nodes.leaf_tree, nodes.leaf_node, strict=True) if t == tree]
        assert leaves == [nodes.node[k] for k in own if nodes.mode[k] == "LEAF"]
        assert len(leaves) == len(inner) + 1 <= ONE_THREAD.n_leaves


def test_features_that_say_nothing_give_one_leaf() -> None:
    _, target, weight = table()
    same = np.ones((1000, 3), np.float32)
    booster = fit_trees(same, target, weight, objective="cross_entropy", offset=np.zeros(1000), settings=ONE_THREAD)
    nodes = tree_nodes(booster)
    assert nodes.mode == ["LEAF"] and nodes.leaf_value == [0]


def test_a_small_table_still_teaches_something() -> None:
    features, target, weight = table(200)
    booster = fit_trees(features, target, weight, objective="cross_entropy", offset=None, settings=ONE_THREAD)
    assert "BRANCH_LEQ" in tree_nodes(booster).mode  # no split of 200 rows leaves `min_rows_in_leaf` on both sides
