"""Boosted trees over rows of prompt x model: one ensemble for all models.

Every row describes one prompt on one model, so a model with few outcomes shares the
trees of the others. Features are float32, thresholds are lowered to float32, so that
LightGBM and the graph take the same branch on every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from router_ml.features import SIDE_FEATURES
from router_ml.types import Float32Array, Float64Array

N_EMBEDDING = 16
"""Leading dimensions of the embedding that the trees see; a distilled one orders them by variance."""


def row_feature_names(embedding_size: int) -> tuple[str, ...]:
    """What a row holds: first of its prompt, then of the pair, then of its model."""
    return (
        "mean_logit",
        *(f"embedding_{k}" for k in range(min(N_EMBEDDING, embedding_size))),
        *SIDE_FEATURES,
        "segment",
        "logit",
        "logit_difference",
        "model_log_odds",
        "model",
    )


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """Small trees, few of them: the linear layer has done most of the work, and each costs serving time."""

    n_trees: int = 40
    n_leaves: int = 4
    learning_rate: float = 0.075
    min_rows_in_leaf: int = 500
    n_threads: int = 2
    seed: int = 0


def row_features(
    logits: Float64Array | Float32Array,
    embedding: Float32Array,
    side: Float32Array,
    segment: NDArray[np.int64],
    model_log_odds: Float32Array,
) -> Float32Array:
    """Rows [n * m, features], prompt after prompt, from logits [n, m]; the graph builds the same."""
    n, m = logits.shape
    z = logits.astype(np.float32)
    mean = z.mean(axis=1, keepdims=True, dtype=np.float32)
    of_prompt = np.concatenate([mean, embedding[:, :N_EMBEDDING], side, segment[:, None].astype(np.float32)], axis=1)
    of_model = np.stack([model_log_odds, np.arange(m, dtype=np.float32)], axis=1)
    parts = [np.repeat(of_prompt, m, axis=0), z.reshape(-1, 1), (z - mean).reshape(-1, 1), np.tile(of_model, (n, 1))]
    return np.concatenate(parts, axis=1)


def fit_trees(
    features: Float32Array,
    target: Float64Array,
    weight: Float64Array,
    *,
    objective: str,
    offset: Float64Array | None,
    settings: TreeSettings,
) -> lgb.Booster:
    """Boost from `offset` [rows] towards `target` [rows]; `objective` is LightGBM's `cross_entropy` or `poisson`."""
    parameters: dict[str, Any] = {
        "objective": objective,
        "num_leaves": settings.n_leaves,
        "learning_rate": settings.learning_rate,
        # A leaf never holds more than a twentieth of a small table, so that one still learns something.
        "min_data_in_leaf": int(min(settings.min_rows_in_leaf, max(20, len(target) // 20))),
        "lambda_l2": 10.0,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "use_missing": False,
        "boost_from_average": False,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": settings.n_threads,
        "seed": settings.seed,
        "verbose": -1,
    }
    data = lgb.Dataset(features, label=target, weight=weight, init_score=offset)
    return lgb.train(parameters, data, num_boost_round=settings.n_trees)


def raw_scores(booster: lgb.Booster, features: Float32Array, n_threads: int) -> Float64Array:
    """Sum of leaf values [rows], without offset or link."""
    return np.asarray(booster.predict(features, raw_score=True, num_threads=n_threads))


@dataclass(frozen=True, slots=True)
class TreeNodes:
    """An ensemble as the flat arrays of ONNX' TreeEnsembleRegressor; [nodes] and [leaves]."""

    tree: list[int]
    node: list[int]
    feature: list[int]
    threshold: list[float]
    mode: list[str]
    true_node: list[int]
    false_node: list[int]
    leaf_tree: list[int]
    leaf_node: list[int]
    leaf_value: list[float]


def tree_nodes(booster: lgb.Booster) -> TreeNodes:
    """Flatten an ensemble; thresholds become the largest float32 not above each, exact for float32 inputs."""
    nodes = TreeNodes([], [], [], [], [], [], [], [], [], [])
    for index, tree in enumerate(booster.dump_model()["tree_info"]):
        _flatten(nodes, index, tree["tree_structure"], [0])
    return nodes


def _flatten(nodes: TreeNodes, tree: int, part: dict[str, Any], counter: list[int]) -> int:
    own = counter[0]
    counter[0] += 1
    place = len(nodes.tree)
    nodes.tree.append(tree)
    nodes.node.append(own)
    if "split_feature" not in part:
        for column, value in ((nodes.feature, 0), (nodes.true_node, 0), (nodes.false_node, 0)):
            column.append(value)
        nodes.threshold.append(0.0)
        nodes.mode.append("LEAF")
        nodes.leaf_tree.append(tree)
        nodes.leaf_node.append(own)
        nodes.leaf_value.append(part["leaf_value"])
        return own
    if part["decision_type"] != "<=":
        raise AssertionError(f"unexpected split {part['decision_type']!r}: no feature is categorical")
    nodes.feature.append(part["split_feature"])
    nodes.threshold.append(float32_not_above(part["threshold"]))
    nodes.mode.append("BRANCH_LEQ")
    nodes.true_node.append(-1)
    nodes.false_node.append(-1)
    nodes.true_node[place] = _flatten(nodes, tree, part["left_child"], counter)
    nodes.false_node[place] = _flatten(nodes, tree, part["right_child"], counter)
    return own


def float32_not_above(value: float) -> float:
    """The largest float32 that is not above `value`."""
    with np.errstate(over="ignore"):  # beyond the range it is infinite, and one step down the largest
        rounded = np.float32(value)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > value else rounded)
