"""Vectors of the teacher itself: what baselines of the benchmark look at; milliseconds a text, so they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.text import clean, cut
from router_ml.types import Float32Array
from training.atomic import fresh_file
from training.encoder.prepare import EncoderSettings, cache_dir
from training.encoder.silence import silence
from training.encoder.teacher import resolve_teacher


def teacher_vectors(texts: Sequence[str], settings: EncoderSettings) -> Float32Array:
    """Unit vectors [n, d] of the teacher, which cuts at its own length; cached by the texts."""
    teacher = resolve_teacher(settings.teacher)
    kept = [clean(cut(text, settings.max_chars)) for text in texts]
    digest = hashlib.sha256(teacher.fingerprint.encode())
    for text in kept:
        digest.update(hashlib.sha256(text.encode()).digest())
    entry = cache_dir(settings).parent / "vectors" / f"{digest.hexdigest()[:24]}.npy"
    if entry.exists():
        return np.asarray(np.load(entry, allow_pickle=False))
    vectors = _encode(teacher.path, kept)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with fresh_file(entry) as scratch, scratch.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
    return vectors


def _encode(path: Path, texts: list[str]) -> Float32Array:
    with silence():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(path), device="cpu")
        vectors = model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=None)
    return np.asarray(vectors, dtype=np.float32)
