"""The static encoder: one int8 vector and one float scale per token, summed and brought to unit length.

The teacher reads each token of its vocabulary alone; the results are reduced by principal
components and weighted by smooth inverse frequency, estimated from the token's rank (model2vec;
Arora, Liang and Ma 2017). Since the sum is normalised, the weight is part of the vector.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from router_ml.errors import InputError
from router_ml.text import TokenizerSettings
from router_ml.types import Float32Array
from training.encoder.artifact import Encoder, EncoderCard, EncoderKind
from training.encoder.silence import offline, silence
from training.encoder.teacher import Teacher

OPSET, IR_VERSION = 18, 10
"""Of both kinds of encoder; onnxruntime reads this IR since 1.18."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Distilled:
    """What model2vec makes of a teacher."""

    vectors: Float32Array
    """[v, d], weights included."""
    tokenizer_json: bytes
    unknown_id: int | None


def static_encoder(teacher: Teacher, dimension: int, max_chars: int, versions: dict[str, str]) -> Encoder:
    """Distil the teacher (22 s for the default one) into an encoder of at most `dimension` numbers a text."""
    distilled = distil(teacher, dimension)
    size, found = distilled.vectors.shape
    if found != dimension:
        _LOG.warning("%s yields vectors of %d numbers, fewer than the %d asked for", teacher.name, found, dimension)
    # The unknown token says nothing of a text; model2vec leaves it out, and so must we.
    drop_ids = () if distilled.unknown_id is None else (distilled.unknown_id,)
    settings = TokenizerSettings(pad_id=size, max_chars=max_chars, drop_ids=drop_ids)
    card = EncoderCard(EncoderKind.STATIC, teacher.name, teacher.sha256, found, settings, versions)
    return Encoder(card, static_graph(distilled.vectors).SerializeToString(), distilled.tokenizer_json)


def distil(teacher: Teacher, dimension: int) -> Distilled:
    """Vectors and tokenizer by model2vec with its default weighting; InputError when it cannot load the teacher."""
    with silence(), offline():
        from model2vec.distill import distill_from_model
        from model2vec.quantization import DType
        from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

        try:
            model = AutoModel.from_pretrained(teacher.path, use_safetensors=True, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(teacher.path, local_files_only=True)
            if not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise ValueError("its tokenizer has no tokenizer.json form")
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(f"{teacher.path}: transformers cannot load it as a model ({error})") from None
        with _one_thread():
            static = distill_from_model(model, tokenizer, device="cpu", pca_dims=dimension, quantize_to=DType.Float32)
    static.tokenizer.no_truncation()
    static.tokenizer.no_padding()
    # Through JSON once more: the library indents differently between versions.
    text = json.dumps(json.loads(static.tokenizer.to_str()), ensure_ascii=False)
    return Distilled(np.asarray(static.embedding, dtype=np.float32), text.encode(), static.unk_token_id)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Batches of three tokens a row gain little from threads, and on a busy machine their barriers cost minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def static_graph(vectors: Float32Array) -> onnx.ModelProto:
    """The graph of `training.encoder` over vectors [v, d]; row v, the padding, has scale zero.

    The scales multiply as a matrix product, which is three to ten times faster than gathering floats.
    """
    scale, table = _quantised(vectors)
    dimension = vectors.shape[1]
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["ids", "enc_one"], ["enc_ids"]),
        node("Gather", ["enc_scale", "enc_ids"], ["enc_weights"]),  # [n, 1, L]
        node("Gather", ["enc_table", "ids"], ["enc_rows"]),
        node("Cast", ["enc_rows"], ["enc_vectors"], to=TensorProto.FLOAT),  # [n, L, d]
        node("MatMul", ["enc_weights", "enc_vectors"], ["enc_product"]),
        node("Squeeze", ["enc_product", "enc_one"], ["enc_sum"]),
        node("LpNormalization", ["enc_sum"], ["embedding"], axis=1, p=2),  # a zero vector stays zero
    ]
    for position, each in enumerate(nodes):
        each.name = f"enc_{position}_{each.op_type}"
    constants: dict[str, NDArray[Any]] = {
        "enc_one": np.array([1], np.int64),
        "enc_scale": scale,
        "enc_table": table,
    }
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "L"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dimension])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _quantised(vectors: Float32Array) -> tuple[Float32Array, NDArray[np.int8]]:
    """Scale [v + 1] and int8 table [v + 1, d], the padding row last."""
    padded = np.vstack([vectors, np.zeros_like(vectors[:1])])
    scale = np.abs(padded).max(axis=1) / np.float32(127)
    table = np.rint(padded / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    return scale.astype(np.float32), table
