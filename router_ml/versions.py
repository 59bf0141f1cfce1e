"""A folder of versions and a pointer to the one to serve: what a server follows, whoever fills it.

    bundles/current            the name of the version to serve, one line, replaced in one step
    bundles/<version>-<hash>/  bundles

A follower of MLflow fills it (`serve --follow`), or rsync, or a person: first the bundle, then the pointer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from router_ml import bundle as bundles
from router_ml.bundle import MANIFEST
from router_ml.canary import check_canaries, request_of
from router_ml.catalog import Catalog
from router_ml.errors import BundleError, InputError
from router_ml.exploration import Exploration
from router_ml.router import Router

POINTER = "current"
_KEPT = 3
"""Versions that stay in the folder when a further one is published, the one in force among them."""
_WARM_ROUNDS = 20


def open_version(
    path: str | Path,
    catalog: Catalog | None = None,
    *,
    digests: bool = False,
    exploration: Exploration | None = None,
    like: Router | None = None,
) -> Router:
    """A router that is verified, answers its canaries as where it was made, and is warm; BundleError otherwise.

    `like` is the version before it; see `Router.load`.
    """
    router = Router.load(path, catalog=catalog, digests=digests, exploration=exploration, like=like)
    requests = [request_of(canary) for canary in router.bundle.manifest.canaries]
    if requests:
        check_canaries(router.bundle, router.estimate(requests))
        for _ in range(_WARM_ROUNDS):
            for part in (requests, *([request] for request in requests)):
                router.decide_batch(part)
    return router


def current(folder: Path) -> str | None:
    """The name that the pointer holds; None when there is none yet. InputError when it names nothing below `folder`."""
    try:
        name = (folder / POINTER).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / POINTER}: cannot be read ({error}); expected the name of a folder") from None
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"{folder / POINTER}: expected the name of a folder beside it, found {name[:80]!r}")
    return name


def publish(folder: Path, source: Path) -> str:
    """Copy a bundle into the folder, verify the copy, point to it; the name it has there.

    Each step is whole or not at all, so that whoever reads meanwhile sees the old version or the new one.
    BundleError when `source` is no whole bundle, OSError when the folder cannot be written.
    """
    manifest, digest, _ = bundles.verify(source)
    name = f"{manifest.version}-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name / MANIFEST).is_file():
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        try:
            shutil.copytree(source, fresh, dirs_exist_ok=True)
            if bundles.verify(fresh)[1] != digest:
                raise BundleError(f"{source}: changed while it was copied; publish it again")
            fresh.chmod(0o755)
            fresh.rename(folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    point_to(folder, name)
    _drop_old(folder, keep=name)
    return name


def point_to(folder: Path, name: str) -> None:
    """Let the pointer name that version, in one step."""
    fresh = folder / f".{POINTER}-{os.getpid()}"
    with fresh.open("w", encoding="utf-8") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / POINTER)


def _drop_old(folder: Path, keep: str) -> None:
    """Only what looks like one of our bundles; a server that still serves one has it in memory."""
    published = [path for path in folder.iterdir() if (path / MANIFEST).is_file() and not path.name.startswith(".")]
    by_age = sorted(published, key=lambda path: path.stat().st_ctime, reverse=True)
    for path in [path for path in by_age if path.name != keep][_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
