"""The one ONNX graph of a bundle: from ids and side features to probabilities, tokens and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from router_ml.features import SIDE_FEATURES
from router_ml.heads import OUTPUTS, VECTOR
from training.cost import MagnitudeModel
from training.fit import SuccessModel
from training.linear import BIGRAM_BUCKETS, BIGRAM_FACTOR
from training.trees import N_EMBEDDING, row_feature_names, tree_nodes

INNER_OUTPUTS = ("z", "rows")
"""Linear logits [n, m] and rows of the trees [n * m, features]: added for the parity gate, not for serving."""

_OPSET, _ML_OPSET, _IR_VERSION = 18, 3, 10


@dataclass(frozen=True, slots=True)
class GraphParts:
    """What a graph is made of."""

    encoder: onnx.ModelProto | None
    """None: embeddings alone."""
    pad_id: int
    embedding_size: int
    success: SuccessModel
    output_tokens: MagnitudeModel
    latency_ms: MagnitudeModel


@dataclass(slots=True)
class _Builder:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: NDArray[np.generic] | np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], domain=domain, name=output, **attributes))
        return output

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))


def build_graph(parts: GraphParts, *, inner: bool = False) -> bytes:
    """Serialise the graph; `inner` adds `INNER_OUTPUTS`."""
    g = _Builder()
    m = len(parts.success.model_log_odds)
    embedding = _embedding(g, parts)
    z = _linear(g, parts, embedding)
    _trees(g, parts, z, m)
    _outputs(g, parts, z)
    names = [*OUTPUTS, *((VECTOR,) if parts.encoder else ()), *(INNER_OUTPUTS if inner else ())]
    outputs = [_output(name, m, parts.embedding_size) for name in names]
    graph = helper.make_graph(g.nodes, "router", _inputs(parts), outputs, g.constants)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)],
        ir_version=_IR_VERSION,
        producer_name="router-ml",
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _inputs(parts: GraphParts) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", parts.embedding_size]),
        helper.make_tensor_value_info("side", TensorProto.FLOAT, ["n", len(SIDE_FEATURES)]),
        helper.make_tensor_value_info("segment", TensorProto.INT64, ["n"]),
    ]


def _output(name: str, m: int, d: int) -> onnx.ValueInfoProto:
    shapes: dict[str, list[str | int]] = {
        "estimates": ["n", 3 * m],
        VECTOR: ["n", d],
        "z": ["n", m],
        "rows": ["row", "feature"],
    }
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])


def _embedding(g: _Builder, parts: GraphParts) -> str:
    """The encoder's vector plus the given one: of the two, one is zero."""
    if parts.encoder is None:
        return "embedding"
    opset = {entry.domain: entry.version for entry in parts.encoder.opset_import}
    if opset.get("", _OPSET) != _OPSET:
        raise AssertionError(f"the encoder is of opset {opset}, the graph of {_OPSET}")
    for node in parts.encoder.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = ["enc_embedding" if name == "embedding" else name for name in node.output]
        g.nodes.append(copy)
    g.constants += list(parts.encoder.graph.initializer)
    return g.add("Add", ["enc_embedding", "embedding"], VECTOR)


def _linear(g: _Builder, parts: GraphParts, embedding: str) -> str:
    """Logits z [n, m]: one product of everything that is known of the prompt.

    `known` is side features, the segment's number and logits, embedding, lexical logits; what is a
    logit already passes through an identity.
    """
    linear = parts.success.linear
    m = len(linear.bias)
    number = np.arange(len(linear.segment), dtype=np.float32)[:, None]
    g.add("Gather", [g.constant("segment_table", np.hstack([number, linear.segment])), "segment"], "segment_row")
    eye, nothing = np.eye(m, dtype=np.float32), np.zeros((1, m), np.float32)
    blocks = [linear.side, nothing, eye, linear.embedding]
    inputs = ["side", "segment_row", embedding]
    if parts.encoder is not None:
        inputs.append(_lexical(g, parts))
        blocks.append(eye)
    g.add("Concat", inputs, "known", axis=1)
    weight = g.constant("known_weight", np.concatenate(blocks))
    return g.add("Gemm", ["known", weight, g.constant("bias", linear.bias)], "z")


def _lexical(g: _Builder, parts: GraphParts) -> str:
    """Sum of n-gram rows over the root of the sum of squared idf; see `training.linear`."""
    table = parts.success.linear.grams.copy()
    m = table.shape[1] - 1
    # Where no n-gram was ever seen, the root must not be zero; beside an idf of one this is nothing.
    table[:, -1] = np.maximum(table[:, -1], 1e-12)
    axis = g.ints("axis_1", 1)
    g.add("Slice", ["ids", g.ints("first", 0), g.ints("before_last", -1), axis], "left")
    g.add("Slice", ["ids", g.ints("second", 1), g.ints("end", 1 << 62), axis], "right")
    g.add("Mul", ["left", g.ints("factor", BIGRAM_FACTOR)], "left_scaled")
    g.add("Add", ["left_scaled", "right"], "pair")
    # Remainder minus buckets, in one step: it counts from the end of the table, where the bigrams lie.
    g.add("BitwiseOr", ["pair", g.ints("minus_buckets", -BIGRAM_BUCKETS)], "bigram")
    pad = g.ints("pad", parts.pad_id)
    # The row of the padding token is empty: no prompt ever held it.
    g.add("Equal", ["right", pad], "is_pad")
    g.add("Where", ["is_pad", pad, "bigram"], "bigram_or_pad")
    g.add("Concat", ["ids", "bigram_or_pad"], "grams", axis=1)
    g.add("Gather", [g.constant("gram_table", table), "grams"], "gram_rows")
    g.add("ReduceSum", ["gram_rows", axis], "gram_sum", keepdims=0)
    g.add("Split", ["gram_sum", g.ints("sum_and_square", m, 1)], "gram_logit", axis=1)
    g.nodes[-1].output.append("square")
    g.add("Sqrt", ["square"], "norm")
    return g.add("Div", ["gram_logit", "norm"], "lexical_logit")


def _trees(g: _Builder, parts: GraphParts, z: str, m: int) -> None:
    """Rows as `training.trees.row_features` builds them, by one product, then the three ensembles as one.

    The product only places and sums: every weight is 0, 1 or 1/m, so what is copied is copied exactly.
    """
    lead, side = min(N_EMBEDDING, parts.embedding_size), len(SIDE_FEATURES)
    shown = side + 1 + m + lead
    g.add("Slice", ["known", g.ints("shown_start", 0), g.ints("shown_end", shown), g.ints("shown_axis", 1)], "shown")
    g.add("Concat", ["shown", z], "placed", axis=1)
    names = row_feature_names(parts.embedding_size)
    width = len(names)
    place = np.zeros((shown + m, m, width), np.float32)
    fixed = np.zeros((m, width), np.float32)
    column = {name: k for k, name in enumerate(names)}
    for k, name in enumerate(SIDE_FEATURES):
        place[k, :, column[name]] = 1
    place[side, :, column["segment"]] = 1
    for k in range(lead):
        place[side + 1 + m + k, :, column[f"embedding_{k}"]] = 1
    every = np.arange(m)
    place[shown + every, every, column["logit"]] = 1
    place[shown:, :, column["mean_logit"]] = 1 / m
    place[shown:, :, column["logit_difference"]] = np.eye(m) - 1 / m
    fixed[:, column["model_log_odds"]] = parts.success.model_log_odds
    fixed[:, column["model"]] = every
    weight = g.constant("place", place.reshape(shown + m, m * width))
    g.add("Gemm", ["placed", weight, g.constant("fixed", fixed.reshape(-1))], "row_list")
    g.add("Reshape", ["row_list", g.ints("row_shape", -1, width)], "rows")
    _ensemble(g, parts)


def _ensemble(g: _Builder, parts: GraphParts) -> None:
    boosters = (parts.success.booster, parts.output_tokens.booster, parts.latency_ms.booster)
    nodes: dict[str, list[float]] = {key: [] for key in ("tree", "node", "feature", "threshold", "true", "false")}
    modes: list[str] = []
    leaves: dict[str, list[float]] = {key: [] for key in ("tree", "node", "target", "value")}
    first = 0
    for target, booster in enumerate(boosters):
        if booster is None:
            continue
        flat = tree_nodes(booster)
        for key, values in (("node", flat.node), ("feature", flat.feature), ("threshold", flat.threshold)):
            nodes[key] += values
        nodes["tree"] += [tree + first for tree in flat.tree]
        nodes["true"] += flat.true_node
        nodes["false"] += flat.false_node
        modes += flat.mode
        leaves["tree"] += [tree + first for tree in flat.leaf_tree]
        leaves["node"] += flat.leaf_node
        leaves["value"] += flat.leaf_value
        leaves["target"] += [target] * len(flat.leaf_tree)
        first += flat.tree[-1] + 1
    if not first:  # no ensemble at all: one leaf of zero keeps the graph of one shape
        nodes |= {key: [0] for key in nodes}
        leaves |= {key: [0] for key in leaves}
        modes = ["LEAF"]
    g.add(
        "TreeEnsembleRegressor",
        ["rows"],
        "tree_scores",
        domain="ai.onnx.ml",
        n_targets=3,
        aggregate_function="SUM",
        post_transform="NONE",
        nodes_treeids=nodes["tree"],
        nodes_nodeids=nodes["node"],
        nodes_featureids=nodes["feature"],
        nodes_values=[float(value) for value in nodes["threshold"]],
        nodes_modes=modes,
        nodes_truenodeids=nodes["true"],
        nodes_falsenodeids=nodes["false"],
        target_treeids=leaves["tree"],
        target_nodeids=leaves["node"],
        target_ids=leaves["target"],
        target_weights=[float(value) for value in leaves["value"]],
    )


def _outputs(g: _Builder, parts: GraphParts, z: str) -> None:
    """`estimates` [n, 3 m], model after model: odds of success, expected output tokens, expected latency."""
    success = parts.success
    m = len(success.model_log_odds)
    every = np.arange(m)
    slope, offset = np.ones((m, 3), np.float32), np.zeros((m, 3), np.float32)
    slope[:, 0], offset[:, 0] = success.calibration.slope, success.calibration.offset
    for k, model in ((1, parts.output_tokens), (2, parts.latency_ms)):
        offset[:, k] = np.log(model.level)
    by_logit = np.zeros((m, m, 3), np.float32)
    by_logit[every, every, 0] = slope[:, 0]
    g.add("Reshape", ["tree_scores", g.ints("score_shape", -1, 3 * m)], "scores")
    g.add("Mul", ["scores", g.constant("slope", slope.reshape(-1))], "sloped")
    weight = g.constant("logit_weight", by_logit.reshape(m, 3 * m))
    g.add("Gemm", [z, weight, g.constant("offset", offset.reshape(-1))], "linear_part")
    g.add("Add", ["sloped", "linear_part"], "logarithms")
    g.add("Exp", ["logarithms"], "estimates")
