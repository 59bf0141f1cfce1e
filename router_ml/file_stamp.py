"""Whether files have changed, without reading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def file_stamp(paths: Iterable[Path]) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when one of the files does; None stands for a file that cannot be seen."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            stat = path.stat()
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)
