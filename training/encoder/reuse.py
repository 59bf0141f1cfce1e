"""The encoder inside a bundle, taken out again: for logs that hold its embeddings in place of text."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from router_ml import bundle
from router_ml.errors import InputError
from router_ml.text import TokenizerSettings
from training.encoder.artifact import Encoder, EncoderCard, EncoderKind
from training.encoder.static import IR_VERSION, OPSET

_MARK = "enc_"
"""Begins every name that the encoder brought into the graph (see the package docstring)."""


def is_bundle(folder: str | Path) -> bool:
    """Whether this is the folder of a bundle, not that of a teacher."""
    return all((Path(folder) / name).is_file() for name in (bundle.MANIFEST, bundle.GRAPH))


def encoder_of_bundle(folder: str | Path) -> Encoder:
    """The encoder of a bundle: the same vectors for the same text.

    BundleError on a damaged bundle; InputError on one that was trained on embeddings alone, or
    by a version that did not name its encoder.
    """
    folder = Path(folder)
    manifest, _, parts = bundle.verify(folder)
    if manifest.tokenizer is None or "sha256" not in manifest.encoder:
        raise InputError(
            f"{folder}: holds no encoder that can be used again: it was trained on embeddings alone, or by an older "
            "version of router-ml; name another bundle, or a sentence-transformers model"
        )
    tokenizer = TokenizerSettings.from_dict(manifest.tokenizer, source=str(folder / bundle.MANIFEST))
    card = EncoderCard(
        EncoderKind(manifest.encoder["kind"]),
        manifest.encoder["name"],
        manifest.encoder["teacher_sha256"],
        manifest.embedding_size,
        tokenizer,
        {},
    )
    model = _taken_out(onnx.load_from_string(parts[bundle.GRAPH]), manifest.embedding_size)
    sha256 = str(manifest.encoder["sha256"])
    return Encoder(card, model.SerializeToString(), parts[bundle.TOKENIZER], sha256=sha256)


def _taken_out(whole: onnx.ModelProto, dimension: int) -> onnx.ModelProto:
    """The reverse of how `training.graph` takes an encoder in."""
    nodes = []
    for node in whole.graph.node:
        if node.output[0].startswith(_MARK):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.output[:] = ["embedding" if name == "enc_embedding" else name for name in node.output]
            nodes.append(copy)
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "L"])],
        [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", dimension])],
        [constant for constant in whole.graph.initializer if constant.name.startswith(_MARK)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
