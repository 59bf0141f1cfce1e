"""The transformer encoder: the teacher itself, with its own pooling, as one graph."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import torch
from sentence_transformers import SentenceTransformer

from router_ml.errors import GateError, InputError
from router_ml.text import Int64Array, Tokenizer, TokenizerSettings
from training.encoder.artifact import Encoder, EncoderCard, EncoderKind
from training.encoder.silence import offline, silence
from training.encoder.static import IR_VERSION, OPSET
from training.encoder.teacher import Teacher

TOLERANCE = 1e-4
"""Largest difference from the teacher in any number of a unit vector."""

_PROBES = (
    "x",
    "Which of these is the cheapest model?",
    "def f(a: int) -> int:\n    return a + 1  # éß 你好\n" * 3,
    "a long prompt that fills the whole window of the model, and more; " * 60,
)


class _Graph(torch.nn.Module):
    """Padded ids [n, L] to unit vectors [n, d]."""

    def __init__(self, teacher: SentenceTransformer, pad_id: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.pad_id = pad_id

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        is_token = ids != self.pad_id
        pooled = self.teacher({"input_ids": ids, "attention_mask": is_token.long()})["sentence_embedding"]
        # Attention over nothing may be NaN, so a row without tokens is replaced rather than multiplied.
        pooled = torch.where(is_token.any(dim=1, keepdim=True), pooled, torch.zeros_like(pooled))
        return torch.nn.functional.normalize(pooled, dim=1)


def transformer_encoder(teacher: Teacher, max_chars: int, versions: dict[str, str]) -> Encoder:
    """Export the teacher; InputError when it cannot be loaded, GateError when the graph differs from it."""
    with silence(), offline():
        model = _loaded(teacher)
        tokenizer_json, settings = _tokenizer(model, teacher, max_chars)
        dimension = int(model.encode(["x"]).shape[1])
        tokenizer = Tokenizer(tokenizer_json, settings)
        graph = _Graph(model, settings.pad_id).eval()
        exported = _exported(graph, tokenizer.pad(tokenizer.batch(_PROBES[:2])), dimension)
        card = EncoderCard(EncoderKind.TRANSFORMER, teacher.name, teacher.sha256, dimension, settings, versions)
        encoder = Encoder(card, exported.SerializeToString(), tokenizer_json)
        _check_parity(encoder, graph)
    return encoder


def _loaded(teacher: Teacher) -> SentenceTransformer:
    # Eager attention: the fused kernels take shape-dependent branches that a trace would freeze.
    options = {"use_safetensors": True, "attn_implementation": "eager"}
    try:
        return SentenceTransformer(str(teacher.path), device="cpu", local_files_only=True, model_kwargs=options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{teacher.path}: sentence-transformers cannot load it as a model ({error})") from None


def _tokenizer(model: SentenceTransformer, teacher: Teacher, max_chars: int) -> tuple[bytes, TokenizerSettings]:
    tokenizer = model.tokenizer
    if tokenizer.pad_token_id is None:
        raise InputError(f"{teacher.path}: expected a tokenizer with a padding token, found none; set `pad_token`")
    config = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    settings = TokenizerSettings(
        pad_id=tokenizer.pad_token_id,
        max_chars=max_chars,
        max_tokens=model.max_seq_length,
        add_special_tokens=True,
    )
    return json.dumps(config, ensure_ascii=False).encode(), settings


def _exported(graph: _Graph, example: Int64Array, dimension: int) -> onnx.ModelProto:
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "teacher.onnx"
        torch.onnx.export(
            graph,
            (torch.from_numpy(example),),
            written,
            dynamo=False,  # the newer exporter needs a package more, and no opset that we lack
            opset_version=OPSET,
            input_names=["ids"],
            output_names=["embedding"],
            dynamic_axes={"ids": {0: "n", 1: "L"}, "embedding": {0: "n"}},
        )
        model = onnx.load(written)
    model.ir_version = IR_VERSION
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dimension
    return onnx.compose.add_prefix(model, "enc_", rename_inputs=False, rename_outputs=False)


def _check_parity(encoder: Encoder, graph: _Graph) -> None:
    """A trace can freeze what depends on the shape, so rows of other shapes than the example's are compared."""
    rows = encoder.tokenizer.batch(_PROBES)
    ours = encoder.encode_ids(rows)
    with torch.inference_mode():
        theirs = [graph(torch.tensor(np.array(row))[None]).numpy()[0] for row in rows]
    difference = float(np.abs(ours - np.array(theirs)).max())
    if not difference <= TOLERANCE:
        raise GateError(
            f"{encoder.card.teacher}: its ONNX graph differs from it by {difference:.2g} (at most {TOLERANCE:g} is "
            "allowed), so it cannot be served; choose another teacher, or the static encoder"
        )
