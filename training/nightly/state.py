"""The folder of the nightly job: one night at a time, each stage a file that is whole or not there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from router_ml.errors import InputError, RouterMlError
from training.atomic import fresh_file
from training.nightly.inputs import Inputs

SAME_NIGHT = timedelta(hours=12)
"""A night that stopped half-way is gone on with for so long; later one begins anew, with all that came since."""

_INPUTS, _DONE, _SUPERSEDED = "inputs", "done", "superseded"
_HEAVY = ("outcomes.parquet", "bundle")
"""Not needed once a night is over: the bundle is in the registry, the rows are in the journal."""


@dataclass(frozen=True, slots=True)
class Night:
    """The folder of one night."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    def find(self, stage: str) -> dict[str, Any] | None:
        """What a stage left; None where it did not finish."""
        try:
            found: dict[str, Any] = json.loads((self.folder / f"{stage}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder / stage}.json: damaged ({error}); remove its folder to begin the night anew"
            ) from None
        return found

    def once(self, stage: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the stage left, after doing it if it was not done; unknown numbers must be None already."""
        found = self.find(stage)
        if found is None:
            write_json(self.folder / f"{stage}.json", do())
            found = self.find(stage)
            assert found is not None
        return found

    @property
    def inputs(self) -> Inputs:
        found = self.find(_INPUTS)
        assert found is not None  # `begin` wrote it
        return Inputs.from_dict(found)

    @property
    def is_over(self) -> bool:
        return any((self.folder / f"{name}.json").exists() for name in (_DONE, _SUPERSEDED))

    @property
    def is_done(self) -> bool:
        return (self.folder / f"{_DONE}.json").exists()

    def close(self, outcome: dict[str, Any], *, superseded: bool = False) -> None:
        """The last mark, then what nobody needs any more goes."""
        write_json(self.folder / f"{_SUPERSEDED if superseded else _DONE}.json", outcome)
        self.clear()

    def forget(self) -> None:
        """Remove the night; the next begins with what there is then."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove what a finished night does not need, and what half-done work of a killed process left."""
        for path in (*(self.folder / name for name in _HEAVY), *self.folder.glob(".*"), *self.folder.glob("*/.*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class Work:
    """All nights of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nights = folder / "nights"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time; RouterMlError when there is another."""
        try:
            self._nights.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}); name another --work") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
                raise RouterMlError(
                    f"{self.folder}: another nightly run (process {holder}) is at work here; nothing was done. "
                    "Let it finish, or give each job a --work of its own"
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)  # which unlocks, as does the death of the process

    def nights(self) -> list[Night]:
        """Oldest first."""
        found = [Night(path) for path in sorted(self._nights.iterdir()) if path.is_dir()]
        return sorted((night for night in found if night.find(_INPUTS)), key=lambda night: night.inputs.started)

    def unfinished(self) -> list[Night]:
        """Nights that stopped half-way, oldest first."""
        return [night for night in self.nights() if not night.is_over]

    def to_resume(self, settings_sha256: str, now: datetime) -> Night | None:
        """The night to go on with: the newest, where it stopped half-way a short time ago under the same settings."""
        unfinished = self.unfinished()
        if not unfinished:
            return None
        inputs = unfinished[-1].inputs
        recent = now - inputs.started < SAME_NIGHT
        return unfinished[-1] if recent and inputs.settings_sha256 == settings_sha256 else None

    def of(self, inputs: Inputs) -> Night | None:
        """The night with the same inputs, if it was finished."""
        return next((n for n in self.nights() if n.is_done and n.inputs.sha256 == inputs.sha256), None)

    def begin(self, inputs: Inputs) -> Night:
        """A new night; a folder of the same name that never got its inputs is begun again."""
        folder = self._nights / f"{inputs.started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{inputs.sha256[:12]}"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{_INPUTS}.json", inputs.to_dict())
        return Night(folder)

    def last_done(self, before: Night) -> Night | None:
        """The newest finished night other than `before`."""
        done = [night for night in self.nights() if night.is_done and night.id != before.id]
        return done[-1] if done else None


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Whole and on disk, or not there."""
    with fresh_file(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
