"""Versions of the registered model, and the aliases that say which is in force."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_ml.errors import GateError, InputError
from training.registry.runs import BUNDLE, LoggedRun
from training.registry.store import (
    DEFAULT_SETTINGS,
    RegistrySettings,
    client_of,
    database_of,
    local_path,
    store_folder,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
"""The champion before the present one."""

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: int
    run_id: str
    source: str
    """Address of its bundle folder."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


def version_of_run(run: LoggedRun, settings: RegistrySettings = DEFAULT_SETTINGS) -> int | None:
    """Number of the registered version whose bundle is of this run; None: there is none."""
    with client_of(settings) as client:
        found = client.search_model_versions(f"name = '{settings.model_name}' and run_id = '{run.run_id}'")
        return min((int(version.version) for version in found), default=None)


def champion_number(settings: RegistrySettings = DEFAULT_SETTINGS) -> int | None:
    """Number of the champion, None where there is none; InputError where the store does not say."""
    return aliases(settings).get(CHAMPION)


def aliases(settings: RegistrySettings = DEFAULT_SETTINGS) -> dict[str, int]:
    """Alias -> number of the version that it names; InputError where the store does not say."""
    database = database_of(tracking_uri(settings))
    if database is not None and not database.exists():
        return {}
    with client_of(settings) as client:
        found = client.search_registered_models(f"name = '{settings.model_name}'")
        return {alias: int(number) for alias, number in found[0].aliases.items()} if found else {}


def promote(version: int, instead_of: int | None, settings: RegistrySettings = DEFAULT_SETTINGS) -> None:
    """Make a version the champion in place of `instead_of`, which `previous` names from now on.

    Doing it again changes nothing. GateError when another version has become the champion meanwhile.
    """
    current = champion_number(settings)
    if current not in (instead_of, version):
        raise GateError(
            f"the champion was changed to version {current} meanwhile, and version {version} was judged against "
            f"{'none' if instead_of is None else instead_of}; nothing was promoted, judge it again"
        )
    if instead_of is not None:
        set_alias(PREVIOUS, instead_of, settings)
    set_alias(CHAMPION, version, settings)


def roll_back(settings: RegistrySettings = DEFAULT_SETTINGS) -> tuple[int, int]:
    """Make the champion before the present one the champion again; the numbers of the one that went and the one that
    came. InputError where there is none to go back to.

    `previous` names nothing afterwards, so that doing it again cannot bring back what was withdrawn.
    """
    named = aliases(settings)
    if CHAMPION not in named or PREVIOUS not in named:
        raise InputError(
            f"model `{settings.model_name}` has no version to go back to: `{PREVIOUS}` names none. "
            "It does after a promotion; promote a version instead"
        )
    set_alias(CHAMPION, named[PREVIOUS], settings)
    with client_of(settings) as client:
        client.delete_registered_model_alias(settings.model_name, PREVIOUS)
    return named[CHAMPION], named[PREVIOUS]


def tag_version(version: int, tags: Mapping[str, str], settings: RegistrySettings = DEFAULT_SETTINGS) -> None:
    """Add to the history that the registry tells of a version."""
    with client_of(settings) as client:
        for name, value in tags.items():
            client.set_model_version_tag(settings.model_name, str(version), name, value)


def register(
    run: LoggedRun,
    settings: RegistrySettings = DEFAULT_SETTINGS,
    *,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    alias: str | None = None,
) -> int:
    """Make the bundle of a run the next version of the registered model, and return its number."""
    with client_of(settings) as client:
        if settings.model_name not in {model.name for model in client.search_registered_models()}:
            client.create_registered_model(settings.model_name)
        version = client.create_model_version(
            settings.model_name,
            source=f"{run.artifact_uri}/{BUNDLE}",
            run_id=run.run_id,
            tags=dict(tags or {}),
            description=description or None,
        )
        if alias is not None:
            client.set_registered_model_alias(settings.model_name, alias, str(version.version))
        return int(version.version)


def set_alias(alias: str, version: int, settings: RegistrySettings = DEFAULT_SETTINGS) -> None:
    """Let `alias` name that version of the registered model; InputError when there is no such version."""
    look_up(f"models:/{settings.model_name}/{version}", settings)
    with client_of(settings) as client:
        client.set_registered_model_alias(settings.model_name, alias, str(version))


def is_reference(text: str) -> bool:
    """Whether `text` names a registered version rather than a folder."""
    return text.startswith("models:/")


def look_up(reference: str, settings: RegistrySettings = DEFAULT_SETTINGS) -> RegisteredVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` names; InputError when there is none."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"`{reference}` is not a version: expected `models:/NAME@ALIAS` or `models:/NAME/NUMBER`")
    database = database_of(tracking_uri(settings))
    if database is not None and not database.exists():
        raise InputError(
            f"`{reference}`: there is no MLflow store at `{database}`; train first, "
            "or set MLFLOW_TRACKING_URI to the store that holds the version"
        )
    with client_of(settings) as client:
        found = _find_version(client, reference, **match.groupdict())
        return RegisteredVersion(
            name=found.name,
            version=int(found.version),
            run_id=found.run_id or "",
            source=found.source or "",
            aliases=tuple(found.aliases),
            tags=dict(found.tags),
        )


def resolve(reference: str, settings: RegistrySettings = DEFAULT_SETTINGS, into: Path | None = None) -> Path:
    """The local bundle folder of a registered version.

    The artifact itself where the store is local, also after ``mlruns/`` was moved or
    copied; otherwise a download below `into`, an empty folder, by default a new temporary one.
    InputError when the version or its files do not exist.
    """
    version = look_up(reference, settings)
    source = local_path(version.source)
    if source is None:
        into = into or Path(tempfile.mkdtemp(prefix="router-ml-"))
        with client_of(settings):
            from mlflow.artifacts import download_artifacts

            return Path(
                download_artifacts(artifact_uri=version.source, dst_path=str(into), tracking_uri=tracking_uri(settings))
            )
    candidates = [source]
    store = store_folder(settings)
    if store is not None and version.run_id in source.parts:
        candidates.append(store / "artifacts" / Path(*source.parts[source.parts.index(version.run_id) :]))
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = " and ".join(f"`{candidate}`" for candidate in candidates)
    raise InputError(f"`{reference}` is registered, but its files are gone: looked at {looked}; train again")


def _find_version(
    client: MlflowClient, reference: str, name: str, alias: str | None, version: str | None
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        raise InputError(f"`{reference}`: no registered model `{name}`; there are {_listed(sorted(models))}")
    if alias is not None:
        aliases = [f"{found} (version {number})" for found, number in sorted(models[name].aliases.items())]
        raise InputError(f"`{reference}`: model `{name}` has no alias `{alias}`; there are {_listed(aliases)}")
    numbers = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
    raise InputError(f"`{reference}`: model `{name}` has no version {version}; there are {_listed(numbers)}")


def _listed(names: list[Any]) -> str:
    return ", ".join(str(name) for name in names) or "none"
