"""The encoder stage: the encoder that the settings ask for, from the cache where it was made before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from router_ml.errors import BundleError, InputError
from router_ml.text import DEFAULT_MAX_CHARS
from training.encoder.artifact import FORMAT, Encoder, EncoderKind
from training.encoder.reuse import encoder_of_bundle, is_bundle
from training.encoder.silence import silence
from training.encoder.teacher import DEFAULT_TEACHER, Teacher, resolve_teacher

_MAKERS = {
    EncoderKind.STATIC: ("model2vec",),
    EncoderKind.TRANSFORMER: ("torch", "sentence-transformers", "transformers"),
}
"""Packages whose version decides whether a cached encoder is still the one that would be made."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Which encoder to make, and where to keep it."""

    teacher: str = DEFAULT_TEACHER
    """Hub name of a sentence-transformers model, a folder that holds one, or that of a bundle, whose encoder is used
    again: then nothing else here matters."""
    kind: EncoderKind = EncoderKind.STATIC
    """`static`: microseconds a prompt; `transformer`: the teacher itself, milliseconds."""
    dimension: int = 256
    """Numbers a vector of the static encoder, at most the teacher's own; a transformer keeps the teacher's."""
    max_chars: int = DEFAULT_MAX_CHARS
    """Longer prompts are cut in the middle to this many characters."""
    cache_dir: Path | None = None
    """Finished encoders are kept here; None: `router-ml` in $XDG_CACHE_HOME or ~/.cache."""

    def __post_init__(self) -> None:
        if self.kind not in set(EncoderKind):
            raise InputError(f"`kind` must be one of {[str(kind) for kind in EncoderKind]}, found {self.kind!r}")
        if self.dimension < 1:
            raise InputError(f"`dimension` must be at least 1, found {self.dimension}")
        if self.max_chars < 4:
            raise InputError(f"`max_chars` must be at least 4, found {self.max_chars}")


def prepare_encoder(settings: EncoderSettings) -> Encoder:
    """Resolve the teacher, then load its encoder from the cache or make it and cache it; that of a bundle is taken out.

    A damaged cache entry is made anew, with a warning in the log. Raises what `resolve_teacher`
    or `encoder_of_bundle` raises, and InputError when the teacher cannot be loaded or the cache cannot be written.
    """
    if is_bundle(settings.teacher):
        return encoder_of_bundle(settings.teacher)
    teacher = resolve_teacher(settings.teacher)
    kind = EncoderKind(settings.kind)
    versions = {package: metadata.version(package) for package in _MAKERS[kind]}
    entry = cache_dir(settings) / _entry_name(teacher, settings, versions)
    if entry.exists():
        try:
            return Encoder.load(entry)
        except BundleError as error:
            _LOG.warning("the cached encoder is damaged and is made anew: %s", error)
    _LOG.info("making the %s encoder of %s; this is done once and takes about half a minute", kind, teacher.name)
    encoder = _made(teacher, settings, versions)
    _store(encoder, entry)
    return encoder


def _made(teacher: Teacher, settings: EncoderSettings, versions: dict[str, str]) -> Encoder:
    """The makers import heavy libraries, which a cached encoder does without."""
    if settings.kind == EncoderKind.STATIC:
        from training.encoder.static import static_encoder

        return static_encoder(teacher, settings.dimension, settings.max_chars, versions)
    with silence():
        from training.encoder.transformer import transformer_encoder

    return transformer_encoder(teacher, settings.max_chars, versions)


def _entry_name(teacher: Teacher, settings: EncoderSettings, versions: dict[str, str]) -> str:
    dimension = settings.dimension if settings.kind == EncoderKind.STATIC else None
    identity = [FORMAT, teacher.name, teacher.fingerprint, settings.kind, dimension, settings.max_chars, versions]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    readable = re.sub(r"[^\w.-]+", "-", teacher.name)[-60:]
    return f"{settings.kind}-{readable}-{digest[:16]}"


def cache_dir(settings: EncoderSettings) -> Path:
    if settings.cache_dir is not None:
        return settings.cache_dir / "encoders"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "router-ml" / "encoders"


def _store(encoder: Encoder, entry: Path) -> None:
    """Write beside the entry and rename, so that no reader ever sees half of one."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=entry.parent, ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch) / "encoder"
            folder.mkdir()
            encoder.write(folder)
            shutil.rmtree(entry, ignore_errors=True)
            try:
                folder.rename(entry)
            except OSError:
                if not entry.exists():  # else another process has just put the same encoder there
                    raise
    except OSError as error:
        raise InputError(
            f"{entry.parent}: the encoder cannot be cached here ({error.strerror}); "
            "make room, make it writable or choose another folder with `cache_dir`"
        ) from None
