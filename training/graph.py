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
from router_ml.heads import OUTPUTS
from training.cost import MagnitudeModel
from training.fit import SuccessModel
from training.linear import BIGRAM_BUCKETS, BIGRAM_FACTOR
from training.trees import N_EMBEDDING, tree_nodes

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
    scores = _trees(g, parts, z, embedding, m)
    _outputs(g, parts, z, scores)
    names = (*OUTPUTS, *INNER_OUTPUTS) if inner else OUTPUTS
    graph = helper.make_graph(g.nodes, "router", _inputs(parts), [_output(name, m) for name in names], g.constants)
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


def _output(name: str, m: int) -> onnx.ValueInfoProto:
    shape: list[str | int | None] = ["row", "feature"] if name == "rows" else ["n", m]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


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
    return g.add("Add", ["enc_embedding", "embedding"], "vector")


def _linear(g: _Builder, parts: GraphParts, embedding: str) -> str:
    linear = parts.success.linear
    g.add("Concat", [embedding, "side"], "dense", axis=1)
    g.constant("dense_weight", np.concatenate([linear.embedding, linear.side]))
    g.add("Gemm", ["dense", "dense_weight", g.constant("bias", linear.bias)], "dense_logit")
    g.add("Gather", [g.constant("segment_table", linear.segment), "segment"], "segment_logit")
    if parts.encoder is None:
        return g.add("Add", ["dense_logit", "segment_logit"], "z")
    g.add("Add", ["dense_logit", "segment_logit"], "wordless_logit")
    return g.add("Add", ["wordless_logit", _lexical(g, parts)], "z")


def _lexical(g: _Builder, parts: GraphParts) -> str:
    """Sum of n-gram rows over the root of the sum of squared idf; see `training.linear`."""
    table = parts.success.linear.grams
    m = table.shape[1] - 1
    vocabulary = len(table) - BIGRAM_BUCKETS
    axis = g.ints("axis_1", 1)
    g.add("Slice", ["ids", g.ints("first", 0), g.ints("before_last", -1), axis], "left")
    g.add("Slice", ["ids", g.ints("second", 1), g.ints("end", 1 << 62), axis], "right")
    g.add("Mul", ["left", g.ints("factor", BIGRAM_FACTOR)], "left_scaled")
    g.add("Add", ["left_scaled", "right"], "pair")
    g.add("Mod", ["pair", g.ints("buckets", BIGRAM_BUCKETS)], "bucket")
    g.add("Add", ["bucket", g.ints("vocabulary", vocabulary)], "bigram")
    pad = g.ints("pad", parts.pad_id)
    # The row of the padding token is zero: no prompt ever held it.
    g.add("Equal", ["right", pad], "is_pad")
    g.add("Where", ["is_pad", pad, "bigram"], "bigram_or_pad")
    g.add("Concat", ["ids", "bigram_or_pad"], "grams", axis=1)
    g.add("Gather", [g.constant("gram_table", table), "grams"], "gram_rows")
    g.add("ReduceSum", ["gram_rows", axis], "gram_sum", keepdims=0)
    g.add("Split", ["gram_sum", g.ints("sum_and_norm", m, 1)], "gram_logit", axis=1)
    g.nodes[-1].output.append("square")
    g.add("Max", ["square", g.constant("tiny", np.float32(1e-12))], "square_safe")
    g.add("Sqrt", ["square_safe"], "norm")
    return g.add("Div", ["gram_logit", "norm"], "lexical_logit")


def _trees(g: _Builder, parts: GraphParts, z: str, embedding: str, m: int) -> str:
    """Rows as `training.trees.row_features` builds them, then the three ensembles as one; [n, m, 3]."""
    lead = min(N_EMBEDDING, parts.embedding_size)
    axis = g.ints("rows_axis_1", 1)
    g.add("ReduceMean", [z, axis], "mean", keepdims=1)
    g.add("Slice", [embedding, g.ints("lead_start", 0), g.ints("lead_end", lead), axis], "lead")
    g.add("Cast", ["segment"], "segment_float", to=TensorProto.FLOAT)
    g.add("Unsqueeze", ["segment_float", axis], "segment_column")
    g.add("Concat", ["mean", "lead", "side", "segment_column"], "of_prompt_flat", axis=1)
    g.add("Unsqueeze", ["of_prompt_flat", axis], "of_prompt_once")
    width = 2 + lead + len(SIDE_FEATURES)
    # Adding zeros broadcasts, and leaves every float as it is.
    g.add("Add", ["of_prompt_once", g.constant("per_model", np.zeros((1, m, width), np.float32))], "of_prompt")
    g.add("Sub", [z, "mean"], "difference")
    last = g.ints("axis_2", 2)
    g.add("Unsqueeze", [z, last], "z_column")
    g.add("Unsqueeze", ["difference", last], "difference_column")
    traits = np.stack([parts.success.model_log_odds, np.arange(m, dtype=np.float32)], axis=1)[None]
    g.add("Unsqueeze", ["mean", last], "mean_column")
    g.add("Mul", ["mean_column", g.constant("zero", np.float32(0))], "per_prompt")
    g.add("Add", [g.constant("traits", traits.astype(np.float32)), "per_prompt"], "of_model")
    g.add("Concat", ["of_prompt", "z_column", "difference_column", "of_model"], "row_cube", axis=2)
    g.add("Reshape", ["row_cube", g.ints("row_shape", -1, width + 4)], "rows")
    _ensemble(g, parts)
    return g.add("Reshape", ["tree_scores", g.ints("score_shape", -1, m, 3)], "scores")


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


def _outputs(g: _Builder, parts: GraphParts, z: str, scores: str) -> None:
    g.add("Split", [scores], "success_column", axis=2, num_outputs=3)
    g.nodes[-1].output.extend(["tokens_column", "latency_column"])
    last = g.ints("squeeze_axis", 2)
    for column, name in (("success", "tree_logit"), ("tokens", "log_tokens"), ("latency", "log_latency")):
        g.add("Squeeze", [f"{column}_column", last], name)
    calibration = parts.success.calibration
    g.add("Add", [z, "tree_logit"], "logit")
    g.add("Mul", ["logit", g.constant("slope", calibration.slope.astype(np.float32))], "sloped")
    g.add("Add", ["sloped", g.constant("offset", calibration.offset.astype(np.float32))], "calibrated")
    g.add("Sigmoid", ["calibrated"], "p_success")
    for logarithm, model, name in (
        ("log_tokens", parts.output_tokens, "output_tokens"),
        ("log_latency", parts.latency_ms, "latency_ms"),
    ):
        g.add("Exp", [logarithm], f"{name}_ratio")
        g.add("Mul", [f"{name}_ratio", g.constant(f"{name}_level", model.level.astype(np.float32))], name)
