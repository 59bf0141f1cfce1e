"""The README says only what the program does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from router_ml.cli import _parser

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_NAMES = "demo|simulate|ingest|train|predict|evaluate|benchmark|serve|route"
_SHOWN = re.compile(rf"^(?:\$ |  )?(router-ml (?:{_NAMES}) [^#\n]*)", re.MULTILINE)
COMMANDS = sorted(set(_SHOWN.findall(README)))


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_it_shows_is_one_that_the_program_takes(command: str) -> None:
    _parser().parse_args(shlex.split(command)[1:])


def test_it_shows_every_command() -> None:
    shown = {command.split()[1] for command in COMMANDS}
    assert {"train", "evaluate", "predict", "route", "serve", "ingest"} <= shown


def test_python_it_shows_compiles() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")
