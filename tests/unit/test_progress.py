"""Bars on a terminal, silence in a pipe."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pyarrow as pa
import pytest

from training.progress import watched, watched_rows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def batches() -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pydict({"x": list(range(n))}) for n in (3, 4)]


def test_nothing_is_shown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(watched([1, 2], "counting")) == [1, 2]
    assert [batch.num_rows for batch in watched_rows(batches(), "reading")] == [3, 4]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_and_how_far() -> None:
    with redirect_stderr(Terminal()) as terminal:
        assert list(watched([1, 2], "counting")) == [1, 2]
        assert len(list(watched_rows(batches(), "reading"))) == 2
    assert "counting" in terminal.getvalue() and "reading" in terminal.getvalue()
    assert "/2 [" in terminal.getvalue()
