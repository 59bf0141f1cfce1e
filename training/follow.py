"""Keeps a folder of versions in step with MLflow; a process of its own, which servers outlive.

    python -m training.follow models:/router@champion bundles/ [--every 5] [--once]

What an alias names is served; behind the champion also the A/B tests and shadows that run. MLflow down, slow or
gone: the folder stays as it is, one warning says so, and the next look comes as usual.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from router_ml.errors import InputError, RouterMlError
from router_ml.experiment import Arm, Experiment, Shadow
from router_ml.traffic import Traffic, read_traffic, write_traffic
from router_ml.versions import add_version, drop_old
from training import registry
from training.live_tests import LiveTest
from training.registry import CHAMPION, RegisteredVersion, RegistrySettings

_LOG = logging.getLogger("training.follow")


class Wanted(NamedTuple):
    """What MLflow says is to be served."""

    champion: RegisteredVersion
    tests: tuple[LiveTest, ...]
    """Those that take traffic."""
    unreadable: tuple[str, ...] = ()
    """Why a test is not among them though it runs."""


class Follower:
    """The folder of versions, and what was put there."""

    def __init__(self, reference: str, folder: Path) -> None:
        self._reference = reference
        self._folder = folder
        self._seen: Wanted | None = None
        self._folders: dict[tuple[str, int, str], str] = {}
        """Version -> its folder."""
        self._told: set[str] = set()

    def pull(self) -> None:
        """Let the folder serve what MLflow says, where that has changed.

        InputError or RouterMlError when the registry has no such version or the champion's bundle is damaged; OSError
        when the folder cannot be written; MLflow's own errors when it does not answer. A test whose versions or
        tags cannot be had is left out, with a warning: the champion must not wait for it.
        """
        wanted = wanted_of(self._reference)
        if wanted == self._seen:
            return
        for trouble in wanted.unreadable:
            self._tell(f"a test takes no traffic: {trouble}")
        champion = self._published(wanted.champion)
        settings, tests, whole = RegistrySettings(model_name=wanted.champion.name), [], True
        for test in wanted.tests:
            try:
                versions = [
                    registry.look_up(f"models:/{wanted.champion.name}/{arm.version}", settings) for arm in test.arms
                ]
                tests.append((test, [self._published(version) for version in versions]))
            except (RouterMlError, OSError) as error:
                whole = False
                self._tell(f"test {test.name} takes no traffic: {error}")
        traffic = traffic_of(champion, tests)
        if traffic != read_or_none(self._folder):
            write_traffic(self._folder, traffic)
            _LOG.info("%s: version %d, published as %s", self._reference, wanted.champion.version, traffic)
        drop_old(self._folder)
        self._seen = wanted if whole else None

    def _published(self, version: RegisteredVersion) -> str:
        """Name of its folder; fetched and verified where it is not there yet."""
        key = version.name, version.version, version.source
        name = self._folders.get(key)
        if name is None or not (self._folder / name).is_dir():
            with tempfile.TemporaryDirectory(prefix="router-ml-follow-") as scratch:
                bundle = registry.resolve(f"models:/{version.name}/{version.version}", into=Path(scratch))
                name = self._folders[key] = add_version(self._folder, bundle)
        return name

    def _tell(self, trouble: str) -> None:
        if trouble not in self._told:
            self._told.add(trouble)
            _LOG.warning("%s: %s", self._reference, trouble)


def wanted_of(reference: str) -> Wanted:
    """As MLflow has it now. Tests are of the champion; whoever follows another alias or a number gets none."""
    version = registry.look_up(reference)
    if not reference.endswith(f"@{CHAMPION}"):
        return Wanted(_timeless(version), ())
    unreadable: list[str] = []
    tests = registry.live_tests(RegistrySettings(model_name=version.name), unreadable=unreadable)
    # Verdicts change with every look at a test, and nothing here depends on them.
    taking = tuple(replace(test, verdicts={}) for test in tests if test.share > 0)
    return Wanted(_timeless(version), taking, tuple(unreadable))


def traffic_of(champion: str, tests: Sequence[tuple[LiveTest, Sequence[str]]]) -> Traffic:
    """The traffic document; with each test the folders of its arms."""
    split = [
        Experiment(
            test.name,
            test.salt,
            test.unit,
            test.segments,
            test.share,
            test.start,
            tuple(Arm(arm.name, folder) for arm, folder in zip(test.arms, folders, strict=True)),
        )
        for test, folders in tests
        if not test.is_shadow
    ]
    shadows = [
        Shadow(test.name, test.salt, test.unit, test.segments, test.share, folders[0])
        for test, folders in tests
        if test.is_shadow
    ]
    return Traffic(champion, next((test.layer_salt for test, _ in tests), ""), tuple(split), tuple(shadows))


def read_or_none(folder: Path) -> Traffic | None:
    """What the folder's pointer holds; None where that is nothing, or nothing that can be read."""
    try:
        return read_traffic(folder)
    except InputError:
        return None


def _timeless(version: RegisteredVersion) -> RegisteredVersion:
    """Without its aliases and tags, which change while what is served does not."""
    return replace(version, aliases=(), tags={})


def follow(reference: str, folder: Path, every_s: float, parent: int) -> None:
    """Look every `every_s` seconds until `parent` is not this process's parent any more."""
    follower, trouble = Follower(reference, folder), None
    while os.getppid() == parent:
        try:
            follower.pull()
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
        Follower(args.reference, args.folder).pull()
    except (InputError, RouterMlError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
