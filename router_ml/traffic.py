"""The traffic document: which version a server decides by, and which A/B tests run beside it.

It is what the file `current` of a folder of versions holds: the bare name of a version's folder, or one JSON object,

    {"champion": "<folder>", "layer_salt": "...",
     "tests": [{"name": "shorter", "salt": "...", "unit": "session", "segments": null, "start": 0.0, "share": 0.1,
                "arms": [{"name": "control", "version": "<folder>"}, {"name": "v12", "version": "<folder>"}]}],
     "shadows": [{"name": "next", "salt": "...", "unit": "request", "segments": ["chat"], "share": 0.05,
                  "version": "<folder>"}]}

replaced in one step. `experiment` says what its fields mean.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from router_ml.errors import InputError
from router_ml.experiment import Arm, Experiment, Shadow, Unit
from router_ml.types import AbTest, ArmDescription, ShadowTest

POINTER = "current"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}")
"""Of tests and arms; `<test>/<arm>` fits into a label of the metrics whole."""
_EPSILON = 1e-9
"""Ends of stretches are sums of shares, which rounding may move past each other."""
_POPULATION = {"name", "salt", "unit", "segments", "share"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who decides what. Versions are named by their folders."""

    champion: str
    """Decides what is in no test."""
    layer_salt: str = ""
    """Of the layer that the tests divide among them."""
    tests: tuple[Experiment, ...] = ()
    shadows: tuple[Shadow, ...] = ()

    @property
    def versions(self) -> tuple[str, ...]:
        """All that are named, once each, the champion first."""
        arms = [arm.version for test in self.tests for arm in test.arms]
        return tuple(dict.fromkeys([self.champion, *arms, *(shadow.version for shadow in self.shadows)]))

    def __str__(self) -> str:
        told = [f"test {test.name} ({test.share:.4g} of {test.unit}s to each arm)" for test in self.tests]
        told += [f"shadow {shadow.name} ({shadow.share:.4g} of {shadow.unit}s)" for shadow in self.shadows]
        return self.champion + "".join(f", {each}" for each in told)


class InForce(NamedTuple):
    """The traffic document with the versions that its folders hold, as servers tell of it."""

    version: str
    """The champion's."""
    bundle_sha256: str
    tests: tuple[AbTest, ...]
    shadows: tuple[ShadowTest, ...]


def is_name(text: str) -> bool:
    """Whether a test or an arm may be called so."""
    return _NAME.fullmatch(text) is not None


def in_force(traffic: Traffic, identity: Mapping[str, tuple[str, str]]) -> InForce:
    """`identity` gives version name and bundle hash of each folder that the document names."""
    tests = tuple(
        AbTest(
            test.name,
            test.salt,
            test.unit,
            test.segments or (),
            test.share,
            test.start,
            tuple(ArmDescription(arm.name, *identity[arm.version]) for arm in test.arms),
        )
        for test in traffic.tests
    )
    shadows = tuple(
        ShadowTest(each.name, each.salt, each.unit, each.segments or (), each.share, *identity[each.version])
        for each in traffic.shadows
    )
    return InForce(*identity[traffic.champion], tests, shadows)


def read_traffic(folder: Path) -> Traffic | None:
    """What the pointer of a folder of versions holds; None when there is none yet. InputError names file and field."""
    try:
        text = (folder / POINTER).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / POINTER}: cannot be read ({error}); expected the name of a folder") from None
    return parse_traffic(text, str(folder / POINTER))


def write_traffic(folder: Path, traffic: Traffic) -> None:
    """Let the pointer hold this, in one step; a bare name where nothing is tested. InputError when it is wrong."""
    text = json.dumps(asdict(traffic)) if traffic.tests or traffic.shadows else traffic.champion
    parse_traffic(text, str(folder / POINTER))
    fresh = folder / f".{POINTER}-{os.getpid()}"
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / POINTER)


def parse_traffic(text: str, source: str) -> Traffic:
    """Build and check; InputError names `source` and the field at fault."""
    text = text.strip()
    try:
        if not text.startswith("{"):
            return Traffic(_folder(text, ""))
        traffic = _traffic(json.loads(text))
        _check_layer(traffic)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: neither the name of a folder nor JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{source}: brackets nested without end; expected a traffic document") from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return traffic


def _traffic(data: Any) -> Traffic:
    given = _mapping(data, {"champion", "layer_salt", "tests", "shadows"}, "", optional={"tests", "shadows"})
    tests = tuple(_experiment(row, f"tests[{i}]") for i, row in enumerate(_list(given.get("tests", []), "tests")))
    shadows = tuple(_shadow(row, f"shadows[{i}]") for i, row in enumerate(_list(given.get("shadows", []), "shadows")))
    _check_unique([each.name for each in (*tests, *shadows)], "`tests` and `shadows`")
    return Traffic(_folder(given["champion"], "`champion`: "), _text(given, "layer_salt", ""), tests, shadows)


def _experiment(row: Any, where: str) -> Experiment:
    given = _mapping(row, _POPULATION | {"start", "arms"}, where)
    arms = tuple(_arm(arm, f"{where}.arms[{i}]") for i, arm in enumerate(_list(given["arms"], f"{where}.arms")))
    if len(arms) < 2:
        raise InputError(f"`{where}.arms` must hold two arms or more, found {len(arms)}")
    _check_unique([arm.name for arm in arms], f"`{where}.arms`")
    test = Experiment(**_population(given, where), start=_number(given, "start", where), arms=arms)
    if test.start >= 1 or test.end > 1 + _EPSILON:
        raise InputError(
            f"`{where}`: {len(arms)} arms of {test.share:g} from {test.start:g} on reach {test.end:g}, beyond 1; "
            "lower `share` or `start`"
        )
    return test


def _shadow(row: Any, where: str) -> Shadow:
    given = _mapping(row, _POPULATION | {"version"}, where)
    return Shadow(**_population(given, where), version=_folder(given["version"], f"`{where}.version`: "))


def _arm(row: Any, where: str) -> Arm:
    given = _mapping(row, {"name", "version"}, where)
    return Arm(_name(given, where), _folder(given["version"], f"`{where}.version`: "))


def _population(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a `Population`."""
    unit, segments = given["unit"], given["segments"]
    if unit not in tuple(Unit):
        raise InputError(f"`{where}.unit` must be one of {', '.join(Unit)}, found {unit!r}")
    if segments is not None and not (
        isinstance(segments, list) and segments and all(isinstance(each, str) and each for each in segments)
    ):
        raise InputError(f"`{where}.segments` must be null or a list of one segment or more, found {segments!r}")
    return {
        "name": _name(given, where),
        "salt": _text(given, "salt", where),
        "unit": Unit(unit),
        "segments": None if segments is None else tuple(segments),
        "share": _number(given, "share", where),
    }


def _check_layer(traffic: Traffic) -> None:
    """Tests that may take the same requests have stretches of their own."""
    for one, other in combinations(traffic.tests, 2):
        if one.segments is not None and other.segments is not None and not set(one.segments) & set(other.segments):
            continue
        names = f"tests `{one.name}` and `{other.name}`"
        if one.unit is not other.unit:
            raise InputError(
                f"{names} take the same segments by different units ({one.unit}, {other.unit}), so they cannot be kept "
                "apart; give them the same unit, or segments of their own"
            )
        if max(one.start, other.start) < min(one.end, other.end) - _EPSILON:
            raise InputError(
                f"{names} overlap: [{one.start:g}, {one.end:g}) and [{other.start:g}, {other.end:g}) of the same "
                "segments; move `start`, lower `share`, or give them segments of their own"
            )


def _mapping(data: Any, known: set[str], where: str, optional: Collection[str] = ()) -> dict[str, Any]:
    at = f"`{where}`: " if where else ""
    if not isinstance(data, dict):
        raise InputError(f"{at}expected an object with {', '.join(sorted(known))}, found {type(data).__name__}")
    if unknown := sorted(set(data) - known):
        raise InputError(f"{at}unknown keys {unknown}; known are {', '.join(sorted(known))}")
    if missing := sorted(known.difference(optional, data)):
        raise InputError(f"{at}lacks {', '.join(f'`{key}`' for key in missing)}")
    return data


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"`{where}` must be a list, found {value!r}")
    return value


def _name(given: Mapping[str, Any], where: str) -> str:
    name = given["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"`{where}.name` must be up to 30 letters, digits, `.`, `_` and `-`, found {name!r}")
    return name


def _text(given: Mapping[str, Any], key: str, where: str) -> str:
    value = given[key]
    if not isinstance(value, str):
        raise InputError(f"`{'.'.join(filter(None, (where, key)))}` must be a string, found {value!r}")
    return value


def _number(given: Mapping[str, Any], key: str, where: str) -> float:
    value = given[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InputError(f"`{where}.{key}` must be a number in [0, 1], found {value!r}")
    return float(value)


def _folder(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"{where}expected the name of a folder beside it, found {str(name)[:80]!r}")
    return name


def _check_unique(names: list[str], where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{where} hold {', '.join(f'`{name}`' for name in twice)} more than once; names must differ")
