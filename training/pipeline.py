"""The road as one function: outcome tables in, registered version with its evaluation out. The second page to read."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from numpy.typing import NDArray

from router_ml.bundle import Manifest
from router_ml.catalog import Catalog
from router_ml.errors import InputError
from router_ml.features import SIDE_FEATURES
from router_ml.operating_points import DEFAULT_CONFIDENCE, OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Rule
from training.dataset import Dataset, build_dataset
from training.derived_prices import catalog_from_logs
from training.encoder import Encoder, EncoderSettings, prepare_encoder
from training.evaluate import Judgement, SegmentMeans, evaluate, held_of, segment_means
from training.evidence import gather_evidence, propensity_floor
from training.export import ParityReport, check_parity, check_uncertainty, estimates_of, write_bundle
from training.fit import FitSettings
from training.graph import GraphParts
from training.operating import fill_outcomes, fit_operating_points
from training.outcomes import ReadReport, read_outcomes
from training.promise import Promise, find_promise, fix_paths
from training.split import FIT, TEST, TUNE, Split, SplitSettings, assign_split
from training.trees import row_feature_names
from training.uncertainty import fit_uncertainty, uncertainty_graph
from training.verdict import Verdict
from training.version import fit_verdict, fit_version

_PACKAGES = (
    "router-ml",
    "numpy",
    "scikit-learn",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "model2vec",
    "torch",
)

_LEFT_OUT = -1
_PARITY_PROMPTS = 20_000
"""At most so many, evenly spread: native models are slow, and more prompts would say no more of two programs."""
_REFERENCE_PROMPTS = 2000
"""Enough to see what each setting costs."""

Say = Callable[[str], None]
"""Takes one line on what is being done; prints on a terminal, is silent in a pipe."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that training can be told."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    quality_target: float = 0.97
    """Default target of the version: share of the best single model's success that it must keep."""
    rule: Rule = Rule.PROMISE
    confidence: float | None = None
    """Where given, in (0, 1), the operating points in force keep their targets with this confidence."""
    prompt_column: str = "prompt"
    """Column of the logs that holds the text to route on."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained version, not yet written anywhere."""

    manifest: Manifest
    graph: bytes
    uncertainty: bytes
    """The second graph, how sure the first one is."""
    catalog: Catalog
    tokenizer_json: bytes | None
    read: ReadReport
    split: str
    """In words."""
    n_rows: dict[str, int]
    """Rows to fit, to tune and to test on."""
    notes: tuple[str, ...]
    """What a person should know of models, prices and gaps."""
    tuning_basis: str
    """What the operating points rest on."""
    promise: Promise
    verdict: Verdict
    """Whether the evidence carries a router, and what this version serves if not."""
    parity: ParityReport
    judgement: Judgement

    def write(self, path: Path) -> str:
        """Write the bundle folder; returns its hash."""
        return write_bundle(path, self.manifest, self.graph, self.catalog, self.tokenizer_json, self.uncertainty)


def train(logs: Sequence[Path], catalog: Catalog | None, settings: TrainSettings, rejects: Path, say: Say) -> Trained:
    """From outcome tables to a trained version. InputError and GateError say what stands in the way."""
    say("reading the logs")
    table = read_outcomes(logs, prompt_column=settings.prompt_column, rejects=rejects)
    batches, encoder = _with_encoder(table.batches(), settings, say)
    data = build_dataset(batches, encoder)
    split = assign_split(
        data.prompts.prompt_id[data.rows.prompt],
        data.rows.time_us,
        data.rows.own_split,
        settings=settings.split,
    )
    split.check_parts()
    check_trainable(data)
    notes: list[str] = []
    data, split_part = _judgeable(data, split, notes)
    catalog = _catalog(catalog, data, (split_part == FIT) | (split_part == TUNE), notes)

    say("fitting the success, length and latency models")
    to_fit = data.where(split_part == FIT)
    version = fit_version(to_fit, encoder, settings.fit)
    say("asking whether the evidence carries a router")
    verdict = fit_verdict(to_fit, encoder, settings.fit, version, catalog)
    if not verdict.deploy:
        version = fit_version(to_fit, encoder, settings.fit, verdict.serves)
    parts, graph, session, ratio = version.parts, version.graph, version.session, version.ratio

    say("setting the operating points")
    tune = data.where(split_part == TUNE)
    points, basis, promise = _operating_points(to_fit, tune, session, parts, catalog, ratio, settings)

    say("checking the graph against the native models, and evaluating on held-out prompts")
    test = data.where(split_part == TEST)
    held_index = test.prompts_with_rows()
    shown = held_index[:: -(-len(held_index) // _PARITY_PROMPTS)]
    parity = check_parity(parts, data, shown)
    uncertainty = fit_uncertainty(data.prompts, version.success, len(data.segments))
    uncertainty_bytes = uncertainty_graph(uncertainty)
    check_uncertainty(uncertainty_bytes, uncertainty, data.prompts, shown)
    estimates = estimates_of(session, data, held_index, parts.pad_id, ratio)
    baseline = _baseline(data.where(split_part == FIT))
    held = held_of(test, held_index)
    judgement = evaluate(catalog, data.models, points, estimates, held, baseline)
    manifest = _manifest(data, split_part, catalog, parts, points, ratio, baseline, encoder, settings, split, verdict)
    return Trained(
        manifest=manifest,
        graph=graph,
        uncertainty=uncertainty_bytes,
        catalog=catalog,
        tokenizer_json=encoder.tokenizer_json if encoder else None,
        read=table.report,
        split=split.description.split(";")[0],
        n_rows={name: int((split_part == part).sum()) for name, part in (("fit", FIT), ("tune", TUNE), ("test", TEST))},
        notes=tuple(notes),
        tuning_basis=basis,
        promise=promise,
        verdict=verdict,
        parity=parity,
        judgement=judgement,
    )


def check_trainable(data: Dataset) -> None:
    """InputError when the table cannot teach anything: no known success, one class, one model."""
    known = data.rows.success[~np.isnan(data.rows.success)]
    if not known.size:
        raise InputError(
            "no row has a known `success`; report outcomes (0 to 1) for at least some requests, then train"
        )
    if known.min() == known.max():
        raise InputError(
            f"every known `success` is {known[0]:g}: with one class there is nothing to learn; "
            "check how outcomes are labelled, or add logs that hold both successes and failures"
        )
    models = np.unique(data.rows.model[~np.isnan(data.rows.success)])
    if len(models) < 2:
        raise InputError(
            f"only the model `{data.models[models[0]]}` has known outcomes; routing needs at least two: "
            "add logs of another model, or let a share of traffic go to one"
        )


def _with_encoder(
    batches: Iterator[pa.RecordBatch], settings: TrainSettings, say: Say
) -> tuple[Iterator[pa.RecordBatch], Encoder | None]:
    """The encoder, unless the logs hold embeddings of their own and no text; decided by the first batch."""
    first = next(batches, None)
    if first is None:
        return iter(()), None
    if all(first.column(name).null_count == len(first) for name in ("prompt", "messages", "encoder_sha256")):
        return chain((first,), batches), None
    say("preparing the encoder (the first time takes about half a minute)")
    return chain((first,), batches), prepare_encoder(settings.encoder)


def _judgeable(data: Dataset, split: Split, notes: list[str]) -> tuple[Dataset, NDArray[np.int8]]:
    """Only models with a known outcome among the rows to fit on; the others are named."""
    fitted = (split.part == FIT) & ~np.isnan(data.rows.success)
    counts = np.bincount(data.rows.model[fitted], minlength=len(data.models))
    kept = tuple(name for name, count in zip(data.models, counts, strict=True) if count)
    unknown = [name for name in data.models if name not in kept]
    if unknown:
        notes.append(f"left out, no known outcome among the rows to fit on: {', '.join(unknown)}")
    few = [f"{name} ({count})" for name, count in zip(data.models, counts.tolist(), strict=True) if 0 < count < 50]
    if few:
        notes.append(f"few outcomes, so shrunk towards what all models have in common: {', '.join(few)}")
    part = split.part
    if split.test_from_us is not None:
        # What an early prompt brought later is from the days that judge: neither learned from nor judged by.
        part = np.where((part != TEST) & (data.rows.time_us >= split.test_from_us), _LEFT_OUT, part).astype(np.int8)
    inside = np.isin(data.rows.model, [data.models.index(name) for name in kept])
    return data.keep_models(kept), part[inside]


def _catalog(catalog: Catalog | None, data: Dataset, rows: NDArray[np.bool_], notes: list[str]) -> Catalog:
    """The given catalog, or one that the logs imply; says what is in one and not in the other."""
    if catalog is None:
        return catalog_from_logs(data.where(rows), notes)
    offered = {offer.model for offer in catalog.offers}
    without = [name for name in data.models if name not in offered]
    unseen = [name for name in catalog.model_names if name not in data.models]
    if without:
        notes.append(f"in the logs but not in the catalog, so never chosen: {', '.join(without)}")
    if unseen:
        notes.append(f"in the catalog but without outcomes in the logs, so never chosen: {', '.join(unseen)}")
    if len(without) == len(data.models):
        raise InputError(
            f"no model of the logs is in the catalog; logs: {sorted(data.models)}, catalog: {sorted(offered)}"
        )
    return catalog


def _operating_points(
    to_fit: Dataset,
    data: Dataset,
    session: ort.InferenceSession,
    parts: GraphParts,
    catalog: Catalog,
    ratio: tuple[float, ...],
    settings: TrainSettings,
) -> tuple[OperatingPoints, str, Promise]:
    index = data.prompts_with_rows()
    if not len(index):
        raise InputError("too few prompts to set operating points on: none is left after the split; add logs")
    estimates = estimates_of(session, data, index, parts.pad_id, ratio)
    draft = OperatingPoints((1.0,), (0.0,), (1.0,), 1.0, settings.rule)
    policy = Policy(catalog, data.models, draft)
    p_success = estimates.p_success.astype(np.float64)
    outcomes = fill_outcomes(data, index, p_success, policy.cheapest(policy.price(estimates)))
    served = _served(policy, estimates)
    if not served.any():
        raise InputError(
            "no offer can be priced: the catalog prices by token, and the logs hold no `output_tokens` to learn from "
            "or no text to count; log them, or give `request_usd` alone in the catalog"
        )
    points = fit_operating_points(
        policy,
        estimates.take(served),
        outcomes.where(served),
        default_target=settings.quality_target,
        rule=settings.rule,
    )
    fitted = to_fit.prompts_with_rows()
    fitted = fitted[:: -(-len(fitted) // _REFERENCE_PROMPTS)]
    reference = estimates_of(session, to_fit, fitted, parts.pad_id, ratio)
    floor = propensity_floor(to_fit.rows.propensity)
    promise = find_promise(
        policy,
        estimates.take(served),
        gather_evidence(data, index, p_success, np.unique(policy.column), floor).take(served),
        fix_paths(policy, reference.take(_served(policy, reference))),
        targets=points.quality_targets,
        confidence=settings.confidence or DEFAULT_CONFIDENCE,
    )
    points = replace(
        points,
        confidence=settings.confidence,
        promised_willingness=promise.willingness,
        promised_thresholds=promise.thresholds,
    )
    return points, outcomes.basis, promise


def _served(policy: Policy, estimates: Estimates) -> NDArray[np.bool_]:
    """[n], prompts that some offer can serve."""
    return np.asarray(policy.eligible(estimates, policy.price(estimates)).any(axis=1))


def _baseline(data: Dataset) -> SegmentMeans:
    success, count = data.cells(data.rows.success)
    return SegmentMeans(
        segment_means(success, count, data.prompts.segment, len(data.segments)),
        *(data.model_means(values) for values in (data.rows.cost_usd, data.rows.output_tokens, data.rows.latency_ms)),
    )


def _manifest(
    data: Dataset,
    part: NDArray[np.int8],
    catalog: Catalog,
    parts: GraphParts,
    points: OperatingPoints,
    ratio: tuple[float, ...],
    baseline: SegmentMeans,
    encoder: Encoder | None,
    settings: TrainSettings,
    split: Split,
    verdict: Verdict,
) -> Manifest:
    times = data.rows.time_us[((part == FIT) | (part == TUNE)) & (data.rows.time_us >= 0)]
    identity = json.dumps([data.fingerprint, catalog.to_dict(), _plain(settings)], sort_keys=True)
    described = {"kind": "none", "name": "embeddings of the logs"}
    if encoder:
        card = encoder.card
        described = {"kind": str(card.kind), "name": card.teacher, "teacher_sha256": card.teacher_sha256}
        described["sha256"] = encoder.sha256
    return Manifest(
        version=hashlib.sha256(identity.encode()).hexdigest()[:12],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        training_start=_iso(times.min()) if times.size else None,
        training_end=_iso(times.max()) if times.size else None,
        encoder=described,
        embedding_size=parts.embedding_size,
        models=data.models,
        segments=data.segments,
        side_features=SIDE_FEATURES,
        row_features=row_feature_names(parts.embedding_size),
        input_token_ratio=ratio,
        operating_points=points.to_dict(),
        tokenizer=encoder.tokenizer.settings.to_dict() if encoder else None,
        packages={"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
        data_fingerprint=data.fingerprint,
        split={"by": split.by, "settings": asdict(settings.split), "test_from_us": split.test_from_us},
        baseline={
            "success": [[round(value, 6) for value in row] for row in baseline.success.tolist()],
            **{
                name: [None if np.isnan(value) else value for value in means.tolist()]
                for name, means in baseline.model_means.items()
            },
        },
        verdict={"deploy": verdict.deploy, "serves": str(verdict.serves), "reason": verdict.reason},
    )


def _plain(settings: TrainSettings) -> Any:
    """Settings that change the result; where the encoder is cached does not."""
    return json.loads(json.dumps(asdict(settings), default=str)) | {"encoder": str(settings.encoder.teacher)}


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(int(time_us) / 1e6, UTC).isoformat()
