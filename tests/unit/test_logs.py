from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from router_ml.logs import set_up_logs


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "info")
    logging.getLogger("router_ml.rollout").info(
        "version %s is in force\nnow", "7", extra={"version": "7", "workers": 2}
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    found = json.loads(line)
    age = datetime.now(UTC) - datetime.fromisoformat(found.pop("time"))
    assert 0 <= age.total_seconds() < 60
    assert found == {
        "level": "info",
        "logger": "router_ml.rollout",
        "message": "version 7 is in force\nnow",
        "pid": os.getpid(),
        "version": "7",
        "workers": 2,
    }


def test_an_exception_stays_on_the_line_of_its_record(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json")
    try:
        raise ValueError("seven")
    except ValueError:
        logging.getLogger("a").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: seven")


def test_a_field_cannot_pass_for_what_every_record_has(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json")
    logging.getLogger("a").error("m", extra={"level": "fine", "pid": 0, "path": object})
    found = json.loads(capsys.readouterr().err)
    assert (found["level"], found["pid"], found["path"]) == ("error", os.getpid(), "<class 'object'>")


def test_text_is_for_a_person_and_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()
    logging.getLogger("router_ml.server").info("quiet")
    logging.getLogger("router_ml.journal").warning("is written again")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" WARNING router_ml.journal: is written again")
