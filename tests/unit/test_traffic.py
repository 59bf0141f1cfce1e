"""The traffic document: read, written, and refused with the field at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router_ml.errors import InputError
from router_ml.experiment import Arm, Experiment, Shadow, Unit
from router_ml.traffic import POINTER, Traffic, parse_traffic, read_traffic, write_traffic


def entry(name: str = "shorter", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "salt": "abc",
        "unit": "session",
        "segments": None,
        "start": 0.0,
        "share": 0.1,
        "arms": [{"name": "control", "version": "v1-ab"}, {"name": "v2", "version": "v2-cd"}],
    } | changes


SHADOW = {"name": "next", "salt": "x", "unit": "request", "segments": ["chat"], "share": 1, "version": "v3-ef"}


def document(**changes: Any) -> str:
    return json.dumps({"champion": "v1-ab", "layer_salt": "layer", "tests": [entry()], "shadows": [SHADOW]} | changes)


def test_a_document_says_who_decides_what() -> None:
    traffic = parse_traffic(document(), "current")
    arms = (Arm("control", "v1-ab"), Arm("v2", "v2-cd"))
    assert traffic == Traffic(
        "v1-ab",
        "layer",
        (Experiment("shorter", "abc", Unit.SESSION, None, 0.1, 0.0, arms),),
        (Shadow("next", "x", Unit.REQUEST, ("chat",), 1.0, "v3-ef"),),
    )
    assert traffic.versions == ("v1-ab", "v2-cd", "v3-ef")


def test_a_bare_name_is_a_champion_without_tests() -> None:
    assert parse_traffic("v1-ab\n", "current") == Traffic("v1-ab")


@pytest.mark.parametrize("text", [document(), "v1-ab"])
def test_what_is_written_is_read_again_and_replaced_in_one_step(text: str, tmp_path: Path) -> None:
    write_traffic(tmp_path, Traffic("other"))
    write_traffic(tmp_path, parse_traffic(text, "current"))
    assert read_traffic(tmp_path) == parse_traffic(text, "current")
    assert [path.name for path in tmp_path.iterdir()] == [POINTER]


def test_without_a_test_a_bare_name_is_written_which_older_servers_read(tmp_path: Path) -> None:
    write_traffic(tmp_path, Traffic("v1-ab", layer_salt="kept for nobody"))
    assert (tmp_path / POINTER).read_text() == "v1-ab\n"


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the name of a folder"):
        write_traffic(tmp_path, Traffic("../up"))
    assert read_traffic(tmp_path) is None


@pytest.mark.parametrize("text", ["", "../elsewhere", "/etc", ".", ".hidden", "a/b"])
def test_a_bare_name_is_that_of_a_folder_beside_it_and_nothing_else(text: str, tmp_path: Path) -> None:
    (tmp_path / POINTER).write_text(text)
    with pytest.raises(InputError, match=r"current: expected the name of a folder beside it"):
        read_traffic(tmp_path)


ARMS = entry()["arms"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither the name of a folder nor JSON"),
        ('{"tests":' + "[" * 100_000, "nor JSON|nested without end"),
        ("{}", "lacks `champion`, `layer_salt`"),
        (document(champion="a/b"), "`champion`: expected the name of a folder"),
        (document(champion=7), "`champion`: expected the name of a folder"),
        (document(layer_salt=None), "`layer_salt` must be a string"),
        (document(extra=1), r"unknown keys \['extra'\]"),
        (document(tests={}), "`tests` must be a list"),
        (document(tests=[3]), r"`tests\[0\]`: expected an object with arms"),
        (document(tests=[entry() | {"ramp": 1}]), r"`tests\[0\]`: unknown keys \['ramp'\]"),
        (document(tests=[{k: v for k, v in entry().items() if k != "salt"}]), r"`tests\[0\]`: lacks `salt`"),
        (document(tests=[entry(unit="user")]), r"`tests\[0\].unit` must be one of session, tenant, request"),
        (document(tests=[entry(name="a b")]), r"`tests\[0\].name` must be up to 30 letters"),
        (document(tests=[entry(name="a/b")]), r"`tests\[0\].name` must be up to 30 letters"),
        (document(tests=[entry(segments=[])]), r"`tests\[0\].segments` must be null or a list"),
        (document(tests=[entry(segments="chat")]), r"`tests\[0\].segments` must be null or a list"),
        (document(tests=[entry(share=-0.1)]), r"`tests\[0\].share` must be a number in \[0, 1\]"),
        (document(tests=[entry(share=True)]), r"`tests\[0\].share` must be a number"),
        (document(tests=[entry(share=float("nan"))]), r"`tests\[0\].share` must be a number"),
        (document(tests=[entry(start="0")]), r"`tests\[0\].start` must be a number"),
        (document(tests=[entry(share=0.51)]), r"`tests\[0\]`: 2 arms of 0.51 from 0 on reach 1.02, beyond 1"),
        (document(tests=[entry(start=1)]), "beyond 1"),
        (document(tests=[entry(arms=ARMS[:1])]), r"`tests\[0\].arms` must hold two arms or more, found 1"),
        (document(tests=[entry(arms=[ARMS[0], ARMS[0]])]), r"`tests\[0\].arms` hold `control` more than once"),
        (document(tests=[entry(arms=[ARMS[0], {"name": "b", "version": ".."}])]), r"\[1\].version`: expected the name"),
        (document(tests=[entry("next")]), "`tests` and `shadows` hold `next` more than once"),
        (document(shadows=[SHADOW | {"share": 2}]), r"`shadows\[0\].share` must be a number"),
        (document(tests=[entry("a"), entry("b", start=0.1)]), r"tests `a` and `b` overlap: \[0, 0.2\) and \[0.1,"),
        (document(tests=[entry("a"), entry("b", start=0.5, unit="tenant")]), "by different units"),
    ],
)  # fmt: skip
def test_a_wrong_document_is_refused_by_its_field(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^bundles/current: .*({message})"):
        parse_traffic(text, "bundles/current")


def test_tests_that_touch_or_are_of_other_segments_may_run_at_once() -> None:
    thirds = [entry("a", share=1 / 6), entry("b", start=1 / 3, share=1 / 6), entry("c", start=2 / 3, share=1 / 6)]
    assert len(parse_traffic(document(tests=thirds), "current").tests) == 3
    apart = [entry("a", segments=["chat"]), entry("b", segments=["code"], unit="tenant")]
    assert len(parse_traffic(document(tests=apart), "current").tests) == 2


def test_all_of_the_traffic_may_be_in_a_test_of_three() -> None:
    arms = [{"name": f"arm-{k}", "version": "v"} for k in range(3)]
    assert parse_traffic(document(tests=[entry(share=1 / 3, arms=arms)]), "current").tests[0].end == pytest.approx(1)
