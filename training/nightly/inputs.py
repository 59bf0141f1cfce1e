"""What a night is made of: named and hashed before anything else happens, so that a rerun works on the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router_ml.catalog import Catalog
from router_ml.errors import InputError
from router_ml.segments import journal_files
from training.pipeline import TrainSettings
from training.registry import RegistrySettings
from training.sources import find_sources

_OPEN = ".open"


@dataclass(frozen=True, slots=True)
class NightlySettings:
    """Everything that the nightly job can be told."""

    work: Path
    """Folder of its state and reports."""
    journal: Path | None = None
    logs: tuple[Path, ...] = ()
    """Imported outcome tables, files or folders."""
    catalog: Catalog | None = None
    days: int = 28
    """Of history, back from the newest row."""
    left_out_days: tuple[str, ...] = ()
    """ISO dates (UTC) whose rows are not used, since something is wrong with them."""
    confidence: float = 0.95
    """Of the gates, in (0, 1)."""
    latency_budget_us: float = 1000.0
    """Highest median time of a decision in this process."""
    train: TrainSettings = field(default_factory=TrainSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)

    def __post_init__(self) -> None:
        if self.journal is None and not self.logs:
            raise InputError("nothing to learn from: give --journal DIR, --logs FILE, or both")

    @property
    def sha256(self) -> str:
        """Of all that changes what a night does; where things lie does not."""
        catalog = self.catalog.to_dict() if self.catalog else None
        train = asdict(self.train)
        train["encoder"].pop("cache_dir")
        told = [
            self.days,
            sorted(self.left_out_days),
            self.confidence,
            self.latency_budget_us,
            self.registry.model_name,
        ]
        return _digest([catalog, train, told])


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one night, pinned."""

    started: datetime
    settings_sha256: str
    segments: tuple[Path, ...]
    """Closed segments of the journal, which never change again."""
    logs: tuple[Path, ...]
    sha256: str
    """Of the settings, the names and sizes of the segments and the content of the logs."""
    champion: int | None
    """Version to beat; None: there is none yet."""

    def to_dict(self) -> dict[str, Any]:
        paths = {name: [str(path) for path in getattr(self, name)] for name in ("segments", "logs")}
        return asdict(self) | paths | {"started": self.started.isoformat()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Inputs:
        paths = {name: tuple(map(Path, data[name])) for name in ("segments", "logs")}
        return cls(**data | paths | {"started": datetime.fromisoformat(data["started"])})


def find_inputs(settings: NightlySettings, champion: int | None, now: datetime | None = None) -> Inputs:
    """What there is now. InputError: a folder or file that is not there, or nothing in any of them."""
    segments = closed_segments(settings.journal) if settings.journal else []
    logs = find_sources(settings.logs) if settings.logs else []
    if not segments and not logs:
        raise InputError(
            f"{settings.journal}: the journal holds no closed segment yet; a server closes one when it is full or "
            "stops, so wait for one, or give --logs"
        )
    sizes = [[path.name, path.stat().st_size] for path in segments]
    identity = _digest([settings.sha256, sizes, [_content(path) for path in logs]])
    return Inputs(now or datetime.now(UTC), settings.sha256, tuple(segments), tuple(logs), identity, champion)


def closed_segments(journal: Path) -> list[Path]:
    """In the order they were begun; those still open come another night."""
    if not journal.is_dir():
        raise InputError(f"{journal}: no such folder; name the one that `router-ml serve --journal` writes")
    return [path for path in journal_files(journal) if not path.name.endswith(_OPEN)]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _digest(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
