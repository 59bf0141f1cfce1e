"""The parity gate and the bundle: nothing is written unless the graph says what the native models say."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from router_ml import bundle
from router_ml.canary import canaries_of, canary_requests
from router_ml.catalog import Catalog
from router_ml.errors import GateError
from router_ml.heads import OUTPUTS, deviations, estimate, of_graph
from router_ml.router import Router
from router_ml.types import Estimates, Float64Array
from training.dataset import Dataset, Prompts
from training.graph import INNER_OUTPUTS, GraphParts, build_graph
from training.progress import watched
from training.uncertainty import Uncertainty

TOLERANCE = 1e-5
_TOKENS_A_RUN = 16_384


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Largest difference between graph and native models over the held-out prompts."""

    n_prompts: int
    p_success: float
    """In probability."""
    relative: float
    """Of expected tokens and latency, relative."""


def check_parity(parts: GraphParts, data: Dataset, index: NDArray[np.int64]) -> ParityReport:
    """Compare graph and native models on prompts `index`; GateError when they differ by more than `TOLERANCE`.

    The linear layer is compared on its own. The trees are compared on the rows that the graph
    built: a logit that differs in its last bit may fall on the other side of a threshold,
    which says nothing about either implementation.
    """
    session = bundle.open_session(build_graph(parts, inner=True))
    worst_p = worst_relative = 0.0
    names = (*OUTPUTS, *INNER_OUTPUTS)
    for part in watched(list(chunks(data, index)), "checking the graph"):
        features = data.features(part, parts.pad_id)
        flat, z, rows = session.run(names, features.feed())
        p, tokens, latency = of_graph(flat)
        linear = parts.success.linear.logits(data.prompts, part)
        worst_p = max(worst_p, _largest(_sigmoid(z), _sigmoid(linear)))
        built = parts.success.features_of(z, data.prompts, part)
        worst_relative = max(worst_relative, _largest(rows, built))
        worst_p = max(worst_p, _largest(p, parts.success.probabilities(z.astype(np.float64), rows)))
        for found, model in ((tokens, parts.output_tokens), (latency, parts.latency_ms)):
            expected = model.predict(rows, parts.success.n_threads)
            worst_relative = max(worst_relative, _largest(found, expected, relative=True))
    report = ParityReport(len(index), worst_p, worst_relative)
    if max(worst_p, worst_relative) > TOLERANCE:
        raise GateError(
            f"the exported graph differs from the native models by {worst_p:.2g} in probability and "
            f"{worst_relative:.2g} in relative size, more than {TOLERANCE:g}; nothing was written, please report this"
        )
    return report


def check_uncertainty(graph: bytes, uncertainty: Uncertainty, prompts: Prompts, index: NDArray[np.int64]) -> None:
    """Compare the second graph with its model on prompts `index`; GateError when they differ by over `TOLERANCE`."""
    session = bundle.open_session(graph)
    found = deviations(session, prompts.embedding[index], prompts.side[index], prompts.segment[index])
    worst = _largest(found, uncertainty.deviations(prompts, index), relative=True)
    if not worst <= TOLERANCE:
        raise GateError(
            f"the exported graph of the uncertainty differs from its model by {worst:.2g} in relative size, more than "
            f"{TOLERANCE:g}; nothing was written, please report this"
        )


def estimates_of(
    session: ort.InferenceSession,
    data: Dataset,
    index: NDArray[np.int64],
    pad_id: int,
    input_token_ratio: tuple[float, ...],
) -> Estimates:
    """Estimates of the prompts `index`, by the very graph that serves."""
    ratio = np.array(input_token_ratio, dtype=np.float32)
    parts = [estimate(session, data.features(part, pad_id), ratio) for part in chunks(data, index)]
    fields = ("p_success", "output_tokens", "latency_ms", "input_tokens")
    return Estimates(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def chunks(data: Dataset, index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """`index` in order, cut so that each part stays below `_TOKENS_A_RUN` padded tokens, or has one prompt."""
    lengths = np.diff(data.prompts.start)[index]
    start, longest = 0, 1
    for stop, length in enumerate(lengths):
        longest = max(longest, int(length))
        if stop > start and (stop + 1 - start) * longest > _TOKENS_A_RUN:
            yield index[start:stop]
            start, longest = stop, max(1, int(length))
    if start < len(index):
        yield index[start:]


def write_bundle(
    path: Path,
    manifest: bundle.Manifest,
    graph: bytes,
    catalog: Catalog,
    tokenizer_json: bytes | None,
    uncertainty: bytes | None = None,
) -> str:
    """Write with what its canaries are answered, and read back; returns the hash."""
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        bundle.write(Path(scratch) / "bundle", manifest, graph, catalog, tokenizer_json)
        router = Router.load(Path(scratch) / "bundle")
    requests = canary_requests(router.bundle)
    canaries = canaries_of(requests, router.estimate(requests))
    digest = bundle.write(path, replace(manifest, canaries=canaries), graph, catalog, tokenizer_json, uncertainty)
    bundle.verify(path)
    return digest


def _largest(found: NDArray[np.floating], expected: NDArray[np.floating], *, relative: bool = False) -> float:
    """Largest absolute or relative difference; unknown (NaN) on both sides is agreement, on one side it is not."""
    if (np.isnan(found) != np.isnan(expected)).any():
        return float("inf")
    difference = np.nan_to_num(np.abs(found - expected) / (np.abs(expected) if relative else 1.0))
    return float(difference.max()) if difference.size else 0.0


def _sigmoid(x: NDArray[np.floating]) -> Float64Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))
