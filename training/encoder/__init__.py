"""The encoder stage: from a sentence-transformers model, the teacher, to one folder that turns text into vectors.

`prepare_encoder` is the whole stage. The folder holds::

    encoder.onnx     input `ids` int64 [n, L], padded; output `embedding` float32 [n, d] of unit length,
                     zero for a row without tokens; every other name starts with `enc_`
    tokenizer.json   of the `tokenizers` library
    encoder.json     the card: kind, teacher, dimension, tokenizer settings, versions, hashes
"""

from __future__ import annotations

from training.encoder.artifact import Encoder, EncoderCard, EncoderKind
from training.encoder.prepare import EncoderSettings, prepare_encoder
from training.encoder.teacher import DEFAULT_TEACHER, Teacher, resolve_teacher
from training.encoder.vectors import teacher_vectors

__all__ = [
    "DEFAULT_TEACHER",
    "Encoder",
    "EncoderCard",
    "EncoderKind",
    "EncoderSettings",
    "Teacher",
    "prepare_encoder",
    "resolve_teacher",
    "teacher_vectors",
]
