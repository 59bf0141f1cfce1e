"""A folder of versions and a pointer to what to serve: what a server follows, whoever fills it.

    bundles/current            the name of the version to serve, or a traffic document; replaced in one step
    bundles/<version>-<hash>/  bundles

A follower of MLflow fills it (`serve --follow`), or rsync, or a person: first the bundles, then the pointer; see
`traffic` for what that may hold.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from router_ml import bundle as bundles
from router_ml.bundle import MANIFEST
from router_ml.canary import check_canaries, request_of
from router_ml.catalog import Catalog
from router_ml.errors import BundleError
from router_ml.exploration import Exploration
from router_ml.router import Router
from router_ml.traffic import Traffic, read_traffic, write_traffic

_KEPT_BESIDE = 2
"""Versions that stay in the folder beside those in force, for a way back."""
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


def publish(folder: Path, source: Path) -> str:
    """Copy a bundle into the folder, verify the copy, point to it alone; the name it has there.

    Each step is whole or not at all, so that whoever reads meanwhile sees the old version or the new one.
    BundleError when `source` is no whole bundle, OSError when the folder cannot be written.
    """
    name = add_version(folder, source)
    write_traffic(folder, Traffic(name))
    drop_old(folder)
    return name


def add_version(folder: Path, source: Path) -> str:
    """Copy a bundle into the folder and verify the copy, for a pointer to come; the name it has there.

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
    return name


def drop_old(folder: Path) -> None:
    """Remove all versions but those that the pointer names and the latest others.

    Only what looks like one of our bundles; a server that still serves one has it in memory.
    """
    traffic = read_traffic(folder)
    named = set(traffic.versions) if traffic else set()
    published = [path for path in folder.iterdir() if (path / MANIFEST).is_file() and not path.name.startswith(".")]
    by_age = sorted(published, key=lambda path: path.stat().st_ctime, reverse=True)
    for path in [path for path in by_age if path.name not in named][_KEPT_BESIDE:]:
        shutil.rmtree(path, ignore_errors=True)
