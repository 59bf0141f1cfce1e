"""The encoder folder: written and checked here, and run through the very graph that the bundle will hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from router_ml.errors import BundleError
from router_ml.text import Int64Array, Tokenizer, TokenizerSettings
from router_ml.types import Float32Array

FORMAT = 2
"""Of encoder.json. Raise it when an older reader would go wrong; caches of another format are made anew."""

MODEL_FILE, TOKENIZER_FILE, CARD_FILE = "encoder.onnx", "tokenizer.json", "encoder.json"

_TOKENS_A_RUN = 8192  # n * L of one run of a graph: larger ones fall out of the processor's cache
_TEXTS_A_BLOCK = 16_384


class EncoderKind(StrEnum):
    """How text becomes a vector."""

    STATIC = "static"
    """Weighted sum of one vector per token, distilled from the teacher: microseconds."""

    TRANSFORMER = "transformer"
    """The teacher itself: milliseconds."""


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """What there is to know of an encoder."""

    kind: EncoderKind
    teacher: str
    teacher_sha256: str
    dimension: int
    tokenizer: TokenizerSettings
    versions: dict[str, str]
    """Package -> version of what made it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": FORMAT} | fields | {"tokenizer": self.tokenizer.to_dict()}


class Encoder:
    """Text to unit vectors [n, d]. Safe to share between threads."""

    def __init__(
        self, card: EncoderCard, model_bytes: bytes, tokenizer_json: bytes, *, sha256: str | None = None
    ) -> None:
        self.card = card
        self.sha256 = sha256 or _identity(card, model_bytes, tokenizer_json)
        """Names what turns text into vectors; of one that comes out of a bundle it is as the bundle says."""
        self.model_bytes = model_bytes
        """ONNX, as the package docstring of `training.encoder` describes it."""
        self.tokenizer_json = tokenizer_json
        self.tokenizer = Tokenizer(tokenizer_json, card.tokenizer)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if card.kind is EncoderKind.STATIC:  # too little work in it to share among threads
            options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        """Read an encoder folder; BundleError names the file that is missing, damaged or of another format."""
        folder = Path(folder)
        where = folder / CARD_FILE
        try:
            data = json.loads(where.read_bytes())
            contents = {file: (folder / file).read_bytes() for file in (MODEL_FILE, TOKENIZER_FILE)}
        except OSError as error:
            raise BundleError(f"{folder}: not a complete encoder folder ({error})") from None
        except ValueError as error:
            raise BundleError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise BundleError(f"{where}: expected `format` {FORMAT}; make the encoder anew with this version")
        _verify(data.pop("files", None), contents, folder)
        return cls(_card(data, str(where)), contents[MODEL_FILE], contents[TOKENIZER_FILE])

    def write(self, folder: Path) -> None:
        """Write the three files into an existing folder."""
        contents = {MODEL_FILE: self.model_bytes, TOKENIZER_FILE: self.tokenizer_json}
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        card = self.card.to_dict() | {"files": {file: _sha256(content) for file, content in contents.items()}}
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """Unit vectors [n, d] of n texts, in their order; a zero row where the text has no token."""
        out = np.empty((len(texts), self.card.dimension), dtype=np.float32)
        for start in range(0, len(texts), _TEXTS_A_BLOCK):
            block = slice(start, start + _TEXTS_A_BLOCK)
            out[block] = self.encode_ids(self.tokenizer.batch(texts[block]))
        return out

    def encode_ids(self, rows: Sequence[Int64Array]) -> Float32Array:
        """The same for n rows of ids from `self.tokenizer`."""
        out = np.empty((len(rows), self.card.dimension), dtype=np.float32)
        for chunk in _chunks([len(row) for row in rows]):
            ids = self.tokenizer.pad([rows[i] for i in chunk])
            out[chunk] = self._session.run(["embedding"], {"ids": ids})[0]
        return out


def _chunks(lengths: Sequence[int]) -> Iterator[NDArray[np.intp]]:
    """Indices of rows of similar length, at most `_TOKENS_A_RUN` padded tokens together unless one row has more."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > _TOKENS_A_RUN:
            yield order[start:stop]
            start = stop


def _card(data: dict[str, Any], source: str) -> EncoderCard:
    known = {field.name for field in dataclasses.fields(EncoderCard)}
    if set(data) != known:
        raise BundleError(f"{source}: expected the keys {sorted(known)}, found {sorted(data)}")
    if data["kind"] not in set(EncoderKind):
        raise BundleError(
            f"{source}: `kind` must be one of {[str(kind) for kind in EncoderKind]}, found {data['kind']!r}"
        )
    tokenizer = TokenizerSettings.from_dict(data["tokenizer"], source=source)
    return EncoderCard(**{**data, "kind": EncoderKind(data["kind"]), "tokenizer": tokenizer})


def _verify(expected: Any, contents: dict[str, bytes], folder: Path) -> None:
    found = {file: _sha256(content) for file, content in contents.items()}
    for file, digest in found.items():
        wanted = expected.get(file) if isinstance(expected, dict) else None
        if digest != wanted:
            raise BundleError(
                f"{folder / file}: expected SHA-256 {wanted}, found {digest}; the file was changed or cut"
            )


def _identity(card: EncoderCard, model_bytes: bytes, tokenizer_json: bytes) -> str:
    settings = json.dumps(card.tokenizer.to_dict(), sort_keys=True).encode()
    return _sha256(b"".join(hashlib.sha256(part).digest() for part in (model_bytes, tokenizer_json, settings)))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
