from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from router_ml.errors import BundleError, InputError
from router_ml.router import Router
from router_ml.types import Request
from training.encoder import EncoderSettings, prepare_encoder
from training.encoder.reuse import is_bundle

TEXTS = ["bab deb", "xrob " * 50, "?", "", "bab, xrob! UNKNOWN ünïcödé"]


def test_the_encoder_of_a_bundle_gives_the_vectors_and_ids_of_that_bundle(tiny_bundle: Path) -> None:
    encoder = prepare_encoder(EncoderSettings(str(tiny_bundle)))
    router = Router.load(tiny_bundle, digests=True)
    decisions = [router.decide(Request(text=text, input_tokens=3)) for text in TEXTS if text]
    expected = [decision.digest.embedding for decision in decisions if decision.digest]
    found = encoder.encode(TEXTS)
    assert found[[0, 1, 2, 4]] == pytest.approx(np.array(expected), abs=1e-6)
    assert not found[3].any()
    assert router.bundle.tokenizer is not None
    assert [row.tolist() for row in encoder.tokenizer.batch(TEXTS)] == [
        row.tolist() for row in router.bundle.tokenizer.batch(TEXTS)
    ]


def test_it_keeps_the_name_by_which_embeddings_are_known(tiny_bundle: Path) -> None:
    manifest = Router.load(tiny_bundle).bundle.manifest
    encoder = prepare_encoder(EncoderSettings(str(tiny_bundle)))
    assert encoder.sha256 == manifest.encoder["sha256"]
    assert (str(encoder.card.kind), encoder.card.teacher) == (manifest.encoder["kind"], manifest.encoder["name"])
    assert encoder.card.dimension == manifest.embedding_size


def test_a_bundle_of_embeddings_alone_has_none(embedding_bundle: Path) -> None:
    with pytest.raises(InputError, match="holds no encoder that can be used again: it was trained on embeddings alone"):
        prepare_encoder(EncoderSettings(str(embedding_bundle)))


def test_a_damaged_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, damaged)
    with (damaged / "graph.onnx").open("ab") as graph:
        graph.write(b"more")
    with pytest.raises(BundleError, match=r"graph\.onnx: changed"):
        prepare_encoder(EncoderSettings(str(damaged)))


def test_a_folder_of_a_teacher_is_not_taken_for_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not is_bundle(tmp_path) and not is_bundle("sentence-transformers/all-MiniLM-L6-v2")
