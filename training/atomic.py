"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from router_ml.errors import InputError


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """A scratch name beside `path`, which takes its place when the block ends well.

    InputError when it cannot be written.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # a parent that is no folder has nothing to clear away
            scratch.unlink(missing_ok=True)
