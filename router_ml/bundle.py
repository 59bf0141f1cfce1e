"""The on-disk format of a trained router, and the only file that opens ONNX sessions.

A bundle is a folder: `manifest.json`, `graph.onnx`, `uncertainty.onnx`, `catalog.json`
and, unless it was trained on embeddings alone, `tokenizer.json`. The manifest holds the SHA-256
of each other file and of itself; all are checked before anything is parsed, and
no file is a pickle.

Format 2 added canaries to the manifest; a bundle of format 1 has none. Format 3 added
`uncertainty.onnx`, how sure the estimates of success are; an older bundle has none.
To change the format: raise `FORMAT`, keep reading the older numbers here, and add a
bundle of the old format to `tests/contract` with a test that it still loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from router_ml.catalog import Catalog
from router_ml.errors import BundleError
from router_ml.features import SIDE_FEATURES
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.text import Tokenizer, TokenizerSettings

FORMAT = 3
MANIFEST, GRAPH, CATALOG, TOKENIZER = "manifest.json", "graph.onnx", "catalog.json", "tokenizer.json"
UNCERTAINTY = "uncertainty.onnx"


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt, as text or embedding, and the estimates of the bundle's models for it, each [m]; None: unknown."""

    text: str | None
    embedding: tuple[float, ...] | None
    segment: str | None
    p_success: tuple[float, ...]
    output_tokens: tuple[float | None, ...]
    latency_ms: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself."""

    version: str
    """Name of the version: time of training and start of the data fingerprint; repeatable inputs repeat it."""
    created: str
    """ISO time of training, UTC."""
    training_start: str | None
    training_end: str | None
    """ISO times of the oldest and newest row that was learned from; None when the log had none."""
    encoder: dict[str, Any]
    """Kind, teacher and its hash."""
    embedding_size: int
    models: tuple[str, ...]
    segments: tuple[str, ...]
    """Segment k of the graph's input is `segments[k - 1]`; 0 is unknown."""
    side_features: tuple[str, ...]
    """Order of the graph's input `side`."""
    row_features: tuple[str, ...]
    """Order of the features that the trees see, for a reader of the graph."""
    input_token_ratio: tuple[float, ...]
    """Per model, billed input tokens per token of the bundle's tokenizer."""
    operating_points: dict[str, Any]
    tokenizer: dict[str, Any] | None
    """Settings of the tokenizer; None when the bundle takes embeddings alone."""
    packages: dict[str, str]
    """Versions of the packages that trained it."""
    data_fingerprint: str
    """SHA-256 over the rows that training read."""
    split: dict[str, Any]
    """How rows were held out: `by` and the settings, so that an evaluation can find them again."""
    baseline: dict[str, Any]
    """Of the rows fitted on: mean success per segment and model [s + 1][m], mean cost per model [m] (null: unknown)."""
    verdict: dict[str, Any]
    """Whether the evidence carried a router: `deploy`, what the version `serves`, the `reason`."""
    canaries: tuple[Canary, ...] = ()
    """What the version answers to some prompts, to be asked again where it is loaded; see `canary`."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified, opened bundle."""

    manifest: Manifest
    sha256: str
    """Hash of the manifest, which holds the hashes of all else: names the whole content."""
    format: int
    session: ort.InferenceSession
    tokenizer: Tokenizer | None
    tokenizer_sha256: str | None
    catalog: Catalog
    points: OperatingPoints
    uncertainty: bytes | None
    """The second graph, opened only where it is asked; None in a bundle older than format 3."""


def open_session(graph: bytes) -> ort.InferenceSession:
    """One thread, no spinning: a decision is too small to share between cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def load(path: str | Path, *, like: Bundle | None = None) -> Bundle:
    """Verify every hash, then open. BundleError says which file is missing, damaged or too new.

    A tokenizer equal to that of `like` is shared with it: making one holds up all threads for some 15 ms.
    """
    path = Path(path)
    manifest, digest, parts = verify(path)
    tokenizer = tokenizer_digest = None
    if manifest.tokenizer is not None:
        settings = TokenizerSettings.from_dict(manifest.tokenizer, source=str(path / MANIFEST))
        tokenizer_digest = _digest(parts[TOKENIZER])
        if like and like.tokenizer and (like.tokenizer_sha256, like.tokenizer.settings) == (tokenizer_digest, settings):
            tokenizer = like.tokenizer
        else:
            tokenizer = Tokenizer(parts[TOKENIZER], settings)
    try:
        session = open_session(parts[GRAPH])
    except Exception as error:  # onnxruntime raises its own unrelated types
        raise BundleError(f"{path / GRAPH}: onnxruntime {ort.__version__} cannot open it ({error})") from None
    catalog, points = _catalog(path, parts), _points(path, manifest)
    uncertainty = parts.get(UNCERTAINTY)
    return Bundle(manifest, digest, FORMAT, session, tokenizer, tokenizer_digest, catalog, points, uncertainty)


def policy_of(path: str | Path, catalog: Catalog | None = None) -> tuple[Manifest, str, Policy]:
    """Verify a bundle, and open what decides by its estimates without what makes them; errors as for `load`."""
    path = Path(path)
    manifest, digest, parts = verify(path)
    return manifest, digest, Policy(catalog or _catalog(path, parts), manifest.models, _points(path, manifest))


def verify(path: Path) -> tuple[Manifest, str, dict[str, bytes]]:
    """Read and check a bundle without opening it: manifest, its hash, contents of the other files."""
    manifest, digest, files = read_manifest(path)
    return manifest, digest, _parts(path, manifest, files)


def read_manifest(path: Path) -> tuple[Manifest, str, Any]:
    """Read and check the manifest alone: what it says, its hash, and what it says of the other files."""
    raw = _read(path / MANIFEST, f"{path} is not a bundle: it has no {MANIFEST}")
    try:
        data = json.loads(raw)
        found = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"{path / MANIFEST}: damaged, not the JSON of a manifest; restore or retrain it") from None
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise BundleError(
            f"{path}: bundle format {found!r}, this program reads up to {FORMAT}; "
            "upgrade router-ml, or train the bundle with this version"
        )
    stated = data.pop("manifest_sha256", None)
    digest = _digest(_canonical(data))
    if stated != digest:
        raise BundleError(
            f"{path / MANIFEST}: changed since it was written (hash {digest[:12]}, stated {stated!s:.12})"
        )
    return _manifest(path, data), digest, data.get("files")


def write(
    path: Path,
    manifest: Manifest,
    graph: bytes,
    catalog: Catalog,
    tokenizer_json: bytes | None,
    uncertainty: bytes | None = None,
) -> str:
    """Write a bundle folder in one step and return its hash; an older bundle survives any failure before the end."""
    parts = {GRAPH: graph, CATALOG: _canonical(catalog.to_dict())}
    if tokenizer_json is not None:
        parts[TOKENIZER] = tokenizer_json
    if uncertainty is not None:
        parts[UNCERTAINTY] = uncertainty
    data = asdict(manifest) | {
        "format": FORMAT,
        "files": {name: _digest(content) for name, content in parts.items()},
    }
    digest = _digest(_canonical(data))
    parts[MANIFEST] = json.dumps(data | {"manifest_sha256": digest}, indent=1, sort_keys=True).encode()
    path = Path(path).resolve()  # a link to a bundle stays a link
    if path.exists() and not (path / MANIFEST).exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise BundleError(f"{path}: exists and is not a bundle; choose another folder for the bundle, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise BundleError(f"{path}: the bundle cannot be written there ({error})") from None
    try:
        for name, content in parts.items():
            _write_durably(fresh / name, content)
        os.chmod(fresh, 0o755)
        _swap(fresh, path)
    except OSError as error:
        raise BundleError(
            f"{path}: the bundle cannot be written ({error}); what was there before is untouched"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return digest


def _swap(fresh: Path, path: Path) -> None:
    if not path.exists():
        fresh.rename(path)
        return
    old = path.with_name(f".{path.name}-old-{os.getpid()}")
    path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _parts(path: Path, manifest: Manifest, files: Any) -> dict[str, bytes]:
    """The contents of the files that the manifest names, each of the hash it states."""
    wanted = {GRAPH, CATALOG} if manifest.tokenizer is None else {GRAPH, CATALOG, TOKENIZER}
    if not isinstance(files, dict) or set(files) - {UNCERTAINTY} != wanted:
        raise BundleError(
            f"{path / MANIFEST}: `files` must name {sorted(wanted)}, "
            f"found {sorted(files) if isinstance(files, dict) else files!r}"
        )
    parts = {}
    for name, expected in files.items():
        content = _read(path / name, f"{path / name}: missing, though the manifest names it")
        if _digest(content) != expected:
            raise BundleError(
                f"{path / name}: changed or cut short since it was written "
                f"(SHA-256 {_digest(content)[:12]}, the manifest says {expected!s:.12})"
            )
        parts[name] = content
    return parts


def _manifest(path: Path, data: Mapping[str, Any]) -> Manifest:
    values = {key: value for key, value in data.items() if key not in ("format", "files")}
    try:
        for key in ("models", "segments", "side_features", "row_features", "input_token_ratio"):
            values[key] = tuple(values[key])
        values["canaries"] = tuple(map(_canary, values.get("canaries", ())))
        manifest = Manifest(**values)
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path / MANIFEST}: fields do not match format {FORMAT} ({error})") from None
    if manifest.side_features != SIDE_FEATURES:
        raise BundleError(
            f"{path / MANIFEST}: side features {list(manifest.side_features)}, this program computes "
            f"{list(SIDE_FEATURES)}; retrain the bundle with this version"
        )
    return manifest


def _canary(data: Mapping[str, Any]) -> Canary:
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
    return Canary(**values)


def _catalog(path: Path, parts: Mapping[str, bytes]) -> Catalog:
    return Catalog.from_dict(json.loads(parts[CATALOG]), source=str(path / CATALOG))


def _points(path: Path, manifest: Manifest) -> OperatingPoints:
    try:
        return OperatingPoints.from_dict(manifest.operating_points)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{path / MANIFEST}: `operating_points` does not match format {FORMAT} "
            f"({type(error).__name__}: {error}); retrain the bundle with this version"
        ) from None


def _read(path: Path, missing: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(missing) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error})") from None


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
