"""How sure the success model is: the second graph of a bundle, asked only by a router that explores by it.

The linear layer is a Bayesian logistic regression whose prior deviations are its shrinkage. Laplace's approximation
(MacKay 1992) gives the posterior variance of a score z_j = w_j . phi as phi' A_j^-1 phi with
A_j = prior^-1 + sum_i count_ij p_ij (1 - p_ij) phi_i phi_i'. Kept of it is what can be learned from other prompts and
differs between models: for each model its own weights, given the weights that all share, of the bias, the segment, the
side features and the leading principal components of the embedding. Left out: n-grams, which teach little beyond
their own, the trees, and what the shared weights do to all models alike. The variance therefore tells where outcomes
of one model are few: in a segment, in a neighbourhood of prompts, or at all.

Array letters: n prompts, m models, d embedding, f side features, s segments, k = components + f + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.linalg import solve_triangular

from router_ml.features import SIDE_FEATURES
from router_ml.heads import DEVIATION
from router_ml.types import Float32Array, Float64Array
from training.dataset import Prompts
from training.fit import SuccessFit
from training.linear import blocks, centred, standardised

COMPONENTS = 24
_OPSET, _IR_VERSION = 18, 10


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """The deviation of model j's log-odds is the length of ``(known @ place + offset) @ dense[j] + segment[:, j]``."""

    place: Float32Array
    """[d + f, k], from embedding and side features to the features phi but for the segment."""
    offset: Float32Array
    """[k]"""
    dense: Float32Array
    """[m, k, k + 1]"""
    segment: Float32Array
    """[s + 1, m, k + 1]; row 0 is the unknown segment."""

    def deviations(self, prompts: Prompts, index: NDArray[np.int64]) -> Float64Array:
        """Standard deviations [len(index), m] of the log-odds of success."""
        found = np.empty((len(index), len(self.dense)))
        for part in blocks(len(index)):
            at = index[part]
            known = np.hstack([prompts.embedding[at], prompts.side[at]]).astype(np.float64)
            phi = known @ self.place + self.offset
            root = np.einsum("nk,mkl->nml", phi, self.dense.astype(np.float64)) + self.segment[prompts.segment[at]]
            found[part] = np.sqrt((root**2).sum(axis=2))
        return found


def fit_uncertainty(prompts: Prompts, fit: SuccessFit, n_segments: int) -> Uncertainty:
    """The posterior of a fitted model, from the prompts and outcomes that it was fitted on."""
    index, settings = fit.index, fit.linear
    place, offset = _place(prompts, index, settings.scale)
    k, m, own = place.shape[1], fit.count.shape[1], settings.own_scale
    # Features are scaled so that each weight has prior deviation 1.
    place, offset = place * own, offset * own
    place[:, -1], offset[-1] = 0.0, settings.bias_scale
    of_segment = own * settings.segment_scale or 1e-6
    slope = fit.model.calibration.slope

    precision = np.tile(np.eye(k), (m, 1, 1))
    cross, alone = np.zeros((m, n_segments + 1, k)), np.ones((m, n_segments + 1))
    weight = fit.count * fit.p_success * (1 - fit.p_success) * slope**2
    for part in blocks(len(index)):
        at = index[part]
        phi = np.hstack([prompts.embedding[at], prompts.side[at]]).astype(np.float64) @ place + offset
        for j in range(m):
            weighted = phi * weight[part, j, None]
            precision[j] += phi.T @ weighted
            for column in range(k):
                cross[j, :, column] += of_segment * np.bincount(
                    prompts.segment[at], weighted[:, column], n_segments + 1
                )
            alone[j] += of_segment**2 * np.bincount(prompts.segment[at], weight[part, j], n_segments + 1)

    # Segments first: the factor of A is [[a, 0], [c / a, C]] with C C' the Schur complement, and a segment's own
    # column of its inverse needs no other segment.
    dense, by_segment = np.zeros((m, k, k + 1)), np.zeros((n_segments + 1, m, k + 1))
    for j in range(m):
        schur = precision[j] - np.einsum("sk,sl->kl", cross[j] / alone[j][:, None], cross[j])
        root = np.linalg.cholesky(schur)
        dense[j, :, :k] = slope[j] * solve_triangular(root, np.eye(k), lower=True).T
        towards = solve_triangular(root, (cross[j] / alone[j][:, None]).T, lower=True).T
        by_segment[:, j, :k] = -slope[j] * of_segment * towards
        by_segment[:, j, k] = slope[j] * of_segment / np.sqrt(alone[j])
    return Uncertainty(*(each.astype(np.float32) for each in (place, offset, dense, by_segment)))


def _place(prompts: Prompts, index: NDArray[np.int64], scale: float) -> tuple[Float64Array, Float64Array]:
    """What phi is before the prior: components of the embedding, side features, and a last column for the bias."""
    embedding, weight, middle = centred(prompts.embedding[index], scale)
    spread = embedding.T.astype(np.float64) @ embedding
    n_components = min(COMPONENTS, len(middle))
    axes = np.linalg.eigh(spread)[1][:, ::-1][:, :n_components] * weight
    _, side_weight, side_offset = standardised(prompts.side[index], scale)
    d, f = len(middle), len(side_weight)
    place = np.zeros((d + f, n_components + f + 1))
    place[:d, :n_components] = axes
    place[d:, n_components:-1] = np.diag(side_weight)
    # As in the linear layer, the last side feature, the flag for text, carries the offset of the others.
    place[-1, n_components:-1] -= side_offset
    return place, np.concatenate([-middle @ axes, np.zeros(f + 1)])


def uncertainty_graph(uncertainty: Uncertainty) -> bytes:
    """The graph: `vector` [n, d], `side` [n, f] and `segment` [n] to `deviation` [n, m]."""
    m, k, width = uncertainty.dense.shape
    d = len(uncertainty.place) - len(SIDE_FEATURES)
    constants = {
        "place": uncertainty.place,
        "offset": uncertainty.offset,
        "dense": uncertainty.dense.transpose(1, 0, 2).reshape(k, m * width),
        "segments": uncertainty.segment.reshape(-1, m * width),
        "shape": np.array([-1, m, width], dtype=np.int64),
        "last": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Concat", ["vector", "side"], ["known"], axis=1),
        helper.make_node("Gemm", ["known", "place", "offset"], ["phi"]),
        helper.make_node("Gather", ["segments", "segment"], ["of_segment"]),
        helper.make_node("Gemm", ["phi", "dense", "of_segment"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["root"]),
        helper.make_node("ReduceL2", ["root", "last"], list(DEVIATION), keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "uncertainty",
        [
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", d]),
            helper.make_tensor_value_info("side", TensorProto.FLOAT, ["n", len(SIDE_FEATURES)]),
            helper.make_tensor_value_info("segment", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info(DEVIATION[0], TensorProto.FLOAT, ["n", m])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="router-ml",
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
