"""Keeps a folder of versions in step with an alias in MLflow; a process of its own, which servers outlive.

    python -m training.follow models:/router@champion bundles/ [--every 5] [--once]

MLflow down, slow or gone: the folder stays as it is, one warning says so, and the next look comes as usual.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from router_ml.errors import InputError, RouterMlError
from router_ml.versions import publish
from training import registry

_LOG = logging.getLogger("training.follow")


def pull(reference: str, folder: Path, seen: str | None) -> str:
    """Publish the version behind a reference, unless it is the one `seen` before; what to call it next time.

    InputError or RouterMlError when the registry has no such version or its bundle is damaged; OSError when
    the folder cannot be written; MLflow's own errors when it does not answer.
    """
    version = registry.look_up(reference)
    name = f"{version.name}/{version.version} {version.source}"
    if name != seen:
        with tempfile.TemporaryDirectory(prefix="router-ml-follow-") as scratch:
            published = publish(
                folder, registry.resolve(f"models:/{version.name}/{version.version}", into=Path(scratch))
            )
        _LOG.info("%s is version %d, published as %s", reference, version.version, published)
    return name


def follow(reference: str, folder: Path, every_s: float, parent: int) -> None:
    """Look every `every_s` seconds until `parent` is not this process's parent any more."""
    seen, trouble = None, None
    while os.getppid() == parent:
        try:
            seen = pull(reference, folder, seen)
            if trouble:
                _LOG.warning("%s: MLflow answers again", reference)
            trouble = None
        except Exception as error:  # whatever MLflow raises, and it raises much, what is served stays
            if str(error) != trouble:
                _LOG.warning("%s: cannot be followed for now, what is served stays: %s", reference, error)
            trouble = str(error)
        time.sleep(every_s)


def main() -> int:
    """Follow until the parent ends, or look once; 2 when the one look finds nothing to serve."""
    parser = argparse.ArgumentParser(prog="training.follow", description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--once", action="store_true")
    # Told, since it may be gone before this process can ask who it was.
    parser.add_argument("--parent", type=int, default=os.getppid(), metavar="PID")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.once:
        follow(args.reference, args.folder, args.every, args.parent)
        return 0
    try:
        pull(args.reference, args.folder, None)
    except (InputError, RouterMlError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
