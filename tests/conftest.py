"""What tests of every folder may ask for."""

from __future__ import annotations

import json
import os
import shutil
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from router_ml.bundle import open_session
from router_ml.features import side_matrix
from training.dataset import Dataset, Prompts, Rows
from training.encoder.static import static_graph

DATA_FILES = ("routerbench_subset.parquet", "zeroeval.parquet", "routellm_mmlu.parquet")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real outcomes; they are not redistributed, so a machine may not have them."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("ROUTER_ML_DATA") or default)
    missing = [name for name in DATA_FILES if not (folder / name).is_file()]
    if missing:
        pytest.skip(f"no real outcomes: {folder} lacks {', '.join(missing)}; set ROUTER_ML_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training import registry

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    database.touch()
    registry.champion_number(registry.RegistrySettings(tracking_uri=f"sqlite:///{database}"))
    return database


@pytest.fixture
def empty_store(tmp_path: Path, _empty_store: Path) -> Path:
    """`mlruns/` in the test's folder with a database of MLflow's in it, which takes MLflow seconds to make."""
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(_empty_store, tmp_path / "mlruns" / "mlflow.db")
    return tmp_path / "mlruns"


# -- a small world, and bundles trained on it --------------------------------------------------

EASY_WORDS = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "so", "tu") for b in "bcdfghjklmnprs"]
HARD_WORDS = [f"x{a}{b}" for a in ("ro", "va", "ze", "qu", "ky") for b in "bcdfghjklmnprs"]
SKILL = {"tiny": (2.5, 8.0), "small": (2.7, 6.0), "mid": (3.0, 4.5), "large": (3.3, 2.0)}
"""Log odds that a model answers a prompt without hard words, and what it loses on one of nothing else."""
SEGMENTS = ("chat", "code")
EMBEDDING_SIZE = 16
_PROMPTS = 800
"""Enough that the evidence carries a router; at 400 the version would decide by single models."""

CATALOG = {
    "as_of": "2026-11-01",
    "models": [
        {"name": "tiny", "context_window": 4096, "max_output_tokens": 1024},
        {"name": "small", "context_window": 16000, "max_output_tokens": 4096, "capabilities": ["tools"]},
        {"name": "mid", "context_window": 128000, "capabilities": ["tools", "vision"]},
        {"name": "large", "context_window": 200000, "capabilities": ["tools", "vision", "reasoning"]},
    ],
    "offers": [
        {"name": "tiny@us", "model": "tiny", "region": "us", "input_usd_per_mtok": 0.05, "output_usd_per_mtok": 0.2},
        {"name": "tiny@eu", "model": "tiny", "region": "eu", "input_usd_per_mtok": 0.06, "output_usd_per_mtok": 0.24},
        {
            "name": "small@eu",
            "model": "small",
            "provider": "beta",
            "region": "eu",
            "input_usd_per_mtok": 0.25,
            "output_usd_per_mtok": 1.0,
            "cached_input_usd_per_mtok": 0.025,
            "batch_input_usd_per_mtok": 0.125,
            "batch_output_usd_per_mtok": 0.5,
        },
        {
            "name": "mid@us",
            "model": "mid",
            "region": "us",
            "input_usd_per_mtok": 1.25,
            "output_usd_per_mtok": 5.0,
            "cached_input_usd_per_mtok": 0.125,
        },
        {
            "name": "large@us",
            "model": "large",
            "region": "us",
            "input_usd_per_mtok": 5.0,
            "output_usd_per_mtok": 20.0,
            "cached_input_usd_per_mtok": 0.5,
            "batch_input_usd_per_mtok": 2.5,
            "batch_output_usd_per_mtok": 10.0,
        },
        {
            "name": "large@eu",
            "model": "large",
            "region": "eu",
            "input_usd_per_mtok": 6.0,
            "output_usd_per_mtok": 24.0,
            "request_usd": 0.001,
        },
    ],
}


FLAT_CATALOG = {
    "models": [{"name": name} for name in SKILL],
    "offers": [
        {"name": name, "model": name, "request_usd": usd}
        for name, usd in zip(SKILL, (0.0001, 0.0004, 0.002, 0.01), strict=True)
    ],
}
"""Prices per request: the length of a prompt that is only an embedding is not known."""


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text bundle from the real training stages over a random static encoder. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("tiny")
    return _trained(folder, _prompt_columns(), CATALOG, teacher=_random_encoder(folder))


@pytest.fixture(scope="session")
def embedding_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same world that saw embeddings of 16 numbers and no text. Read only."""
    return _trained(tmp_path_factory.mktemp("embeddings"), _embedding_columns(), FLAT_CATALOG, teacher=None)


@pytest.fixture
def make_version(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny bundle again under another version name: `make_version("v2")`.

    `make_version("v2", "p_success", 0.01)` states canaries that are off by that much; None: unknown.
    """
    from router_ml import bundle
    from router_ml.catalog import Catalog

    def make(name: str, field: str | None = None, change: float | None = 0.0) -> Path:
        manifest, _, parts = bundle.verify(tiny_bundle)
        canaries = list(manifest.canaries)
        if field is not None:
            values = [None if change is None else value + change for value in getattr(canaries[1], field)]
            canaries[1] = replace(canaries[1], **{field: tuple(values)})
        changed = replace(manifest, version=name, canaries=tuple(canaries))
        catalog = Catalog.from_dict(json.loads(parts[bundle.CATALOG]))
        optional = parts[bundle.TOKENIZER], parts[bundle.UNCERTAINTY]
        bundle.write(tmp_path / "made" / name, changed, parts[bundle.GRAPH], catalog, *optional)
        return tmp_path / "made" / name

    return make


def _prompt_columns() -> list[tuple[dict[str, Any], float, int]]:
    """Per prompt: its columns, share of hard words, length."""
    rng = np.random.default_rng(11)
    prompts = []
    for _ in range(_PROMPTS):
        length, hard = int(rng.integers(4, 80)), rng.beta(0.7, 0.9)
        words = [str(rng.choice(HARD_WORDS if rng.random() < hard else EASY_WORDS)) for _ in range(length)]
        share = sum(word in HARD_WORDS for word in words) / length
        prompts.append(({"prompt": " ".join(words)}, share, length))
    return prompts


def _embedding_columns() -> list[tuple[dict[str, Any], float, int]]:
    """The same for embeddings: their first number is the difficulty."""
    rng = np.random.default_rng(12)
    prompts = []
    for _ in range(_PROMPTS):
        vector = rng.normal(size=EMBEDDING_SIZE)
        share = 1 / (1 + np.exp(-2 * vector[0]))
        prompts.append(({"embedding": vector.tolist()}, float(share), 40))
    return prompts


def _rows(prompts: list[tuple[dict[str, Any], float, int]]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(13)
    rows = []
    for i, (columns, hard, length) in enumerate(prompts):
        when = datetime(2026, 10, 1, tzinfo=UTC) + timedelta(hours=i)
        for k, (model, (skill, loss)) in enumerate(SKILL.items()):
            tokens = int(length * (2 + k) * rng.uniform(0.7, 1.3)) + 5
            rows.append(
                columns
                | {
                    "request_id": f"{i}-{model}",
                    "timestamp": when.isoformat(),
                    "segment": SEGMENTS[i % 2],
                    "model": model,
                    "success": float(rng.random() < 1 / (1 + np.exp(-(skill - loss * hard)))),
                    "input_tokens": length + 3,
                    "output_tokens": tokens,
                    "latency_ms": 20.0 * tokens * (1 + k),
                }
            )
    return rows


def _trained(
    folder: Path, prompts: list[tuple[dict[str, Any], float, int]], catalog: dict[str, Any], teacher: Path | None
) -> Path:
    from router_ml.catalog import Catalog
    from training.encoder import EncoderSettings
    from training.fit import FitSettings
    from training.linear import LinearSettings
    from training.pipeline import TrainSettings, train
    from training.trees import TreeSettings

    logs = folder / "logs.jsonl"
    logs.write_text("\n".join(map(json.dumps, _rows(prompts))))
    encoder = EncoderSettings(str(teacher), cache_dir=folder) if teacher else EncoderSettings()
    linear, trees = LinearSettings(scale=0.7, own_scale=1.0), TreeSettings(n_trees=20, n_leaves=7, n_threads=1)
    settings = TrainSettings(encoder=encoder, fit=FitSettings(linear=linear, trees=trees))
    trained = train([logs], Catalog.from_dict(catalog), settings, folder / "rejects.jsonl", lambda line: None)
    assert trained.verdict.deploy, trained.verdict.reason
    trained.write(folder / "bundle")
    return folder / "bundle"


def _random_encoder(folder: Path) -> Path:
    """A teacher in name only, whose static encoder of random vectors already lies in the cache below `folder`."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    from router_ml.text import TokenizerSettings
    from training.encoder import Encoder, EncoderCard, EncoderKind, EncoderSettings, resolve_teacher
    from training.encoder.prepare import _entry_name, _store, cache_dir
    from training.encoder.static import static_graph

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation]
    letters = [*string.ascii_lowercase, *string.digits]
    words = [*marks, *letters, *(f"##{letter}" for letter in letters), *EASY_WORDS, *HARD_WORDS]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({w: k for k, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vectors = np.random.default_rng(14).normal(size=(len(words), 32)).astype(np.float32)

    path = folder / "random-teacher"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    settings = EncoderSettings(str(path), cache_dir=folder)
    teacher, versions = resolve_teacher(path), {"model2vec": metadata.version("model2vec")}
    ids = TokenizerSettings(pad_id=len(words), drop_ids=(1,))
    card = EncoderCard(EncoderKind.STATIC, teacher.name, teacher.sha256, 32, ids, versions)
    encoder = Encoder(card, static_graph(vectors).SerializeToString(), tokenizer.to_str().encode())
    _store(encoder, cache_dir(settings) / _entry_name(teacher, settings, versions))
    return path


# -- numbers for the training stages: a world of tokens whose truth is known ---------------------


@dataclass(frozen=True)
class TokenWorld:
    """A dataset of random token sequences, and the true probability that each model succeeds on each prompt."""

    data: Dataset
    truth: np.ndarray
    """[n, m]"""
    encoder: onnx.ModelProto
    pad_id: int

    @property
    def vocabulary(self) -> int:
        return self.pad_id + 1


@pytest.fixture(scope="session")
def token_world() -> Callable[..., TokenWorld]:
    """Makes worlds: `token_world(n=..., m=..., seed=..., partial=...)`; partial: one model per prompt."""
    return _token_world


def _token_world(n: int = 1500, m: int = 4, seed: int = 0, *, partial: bool = False, tokens: bool = True) -> TokenWorld:
    rng = np.random.default_rng(seed)
    vocabulary, size, segments = 80, 12, 3
    encoder = static_graph(rng.normal(size=(vocabulary, size)).astype(np.float32))
    lengths = rng.integers(0, 40, n)
    start = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, vocabulary, start[-1])
    segment = rng.integers(0, segments + 1, n)
    hard = rng.normal(size=vocabulary)
    difficulty = np.array([hard[ids[a:b]].sum() / np.sqrt(max(1, b - a)) for a, b in pairwise(start)])
    ability = np.linspace(-0.5, 2.0, m) + rng.normal(0, 0.4, (segments + 1, m))[segment]
    truth = 1 / (1 + np.exp(-(ability - difficulty[:, None])))
    padded = np.full((n, max(1, lengths.max())), vocabulary)
    for i in range(n):
        padded[i, : lengths[i]] = ids[start[i] : start[i + 1]]
    (embedding,) = open_session(encoder.SerializeToString()).run(["embedding"], {"ids": padded})
    counts = np.column_stack([lengths * 5, lengths, *rng.integers(0, 9, (4, n)), np.zeros(n)])
    prompts = Prompts(
        prompt_id=np.array([f"p{i}" for i in range(n)]),
        ids=ids.astype(np.int32),
        start=start.astype(np.int64),
        embedding=embedding,
        given=np.zeros(n, dtype=bool),
        side=side_matrix(counts.tolist()),
        n_tokens=lengths.astype(np.float32),
        segment=segment.astype(np.int64),
    )
    cells = np.column_stack([np.repeat(np.arange(n), m), np.tile(np.arange(m), n)])
    propensity = np.full(n * m, np.nan)
    if partial:
        policy = 0.1 / m + 0.9 * np.exp(2 * truth) / np.exp(2 * truth).sum(axis=1, keepdims=True)
        policy /= policy.sum(axis=1, keepdims=True)
        chosen = (rng.random((n, 1)) > policy.cumsum(axis=1)).sum(axis=1).clip(0, m - 1)
        kept = chosen[cells[:, 0]] == cells[:, 1]
        cells, propensity = cells[kept], policy[cells[kept, 0], cells[kept, 1]]
    prompt, model = cells.T
    r = len(prompt)
    unknown = np.full(r, np.nan)
    output = rng.lognormal(4 + 0.3 * model, 0.4) * (1 + lengths[prompt] / 20)
    rows = Rows(
        prompt=prompt,
        model=model,
        success=(rng.random(r) < truth[prompt, model]).astype(np.float64),
        cost_usd=0.001 * 4.0**model,
        input_tokens=lengths[prompt] * 1.2,
        cached_input_tokens=unknown,
        output_tokens=output if tokens else unknown,
        latency_ms=output * 7 if tokens else unknown,
        propensity=propensity,
        time_us=np.full(r, -1),
        own_split=np.full(r, ""),
        session=np.full(r, -1),
    )
    names = tuple(f"model-{j}" for j in range(m))
    data = Dataset(prompts, rows, names, tuple(f"segment-{k}" for k in range(segments)), "0" * 64)
    return TokenWorld(data, truth, encoder, vocabulary)
