"""The file of rejected rows: one JSON object per line with file, row, reason and the values as they were found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import pyarrow as pa

from router_ml.errors import InputError
from training.validation import Fault


class RejectsFile:
    """Written when the first row is rejected; one of an earlier run goes. With no path, rows are only counted.

    InputError when it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stream: TextIO | None = None

    def __enter__(self) -> RejectsFile:
        if self.path is not None:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise self._unwritable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, file: Path, row: int, fault: Fault, values: Mapping[str, Any]) -> None:
        """Add one rejected row."""
        if self.path is None:
            return
        told = {"file": str(file), "row": row, "reason": fault.reason, "field": fault.field, "expected": fault.expected}
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self.path.open("w", encoding="utf-8")
            # ASCII, so that what is not valid UTF-8 can be told as well.
            self._stream.write(json.dumps(told | {"values": dict(values)}, default=str) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: rejected rows cannot be written ({error.strerror or error})")


def plain_value(values: pa.Array, i: int) -> Any:
    """The value at `i` as JSON can hold it; what is neither text nor number is spelled out."""
    try:
        value = values[i].as_py()
    except UnicodeDecodeError:
        value = values.cast(pa.binary())[i].as_py().decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
