"""The column names of a file: which column of the outcome table each one fills, and what is missing or misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from router_ml.errors import InputError

_SEGMENT_ALIAS = "dataset"
_NEAR = 0.65
"""Similarity from which a name is taken for a slip: `cost` for `cost_usd` has 0.67."""
_LISTED = 30


def wanted_columns(known: Iterable[str], prompt_column: str) -> frozenset[str]:
    """All names that may be read; `known` are the columns of the table."""
    return frozenset({*known, prompt_column, _SEGMENT_ALIAS})


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of one file."""

    path: Path
    names: tuple[str, ...]
    known: tuple[str, ...]
    """Columns of the outcome table."""
    prompt_column: str

    def source(self, column: str) -> str:
        """The column of the file that fills this column of the table."""
        if column == "prompt":
            return self.prompt_column
        if column == "segment" and "segment" not in self.names:
            return _SEGMENT_ALIAS
        return column

    def unused(self) -> list[str]:
        """Columns that fill nothing, in file order."""
        used = {self.source(column) for column in self.known}
        return [name for name in self.names if name not in used]

    def near(self, name: str) -> str | None:
        """The column of the table, missing here, that `name` may have meant."""
        absent = [column for column in self.known if self.source(column) not in self.names]
        return next(iter(difflib.get_close_matches(name, absent, n=1, cutoff=_NEAR)), None)

    def check(self, *, needs_prompt: bool = True) -> None:
        """InputError when a required column is not there; it names what may have been meant."""
        for required in ("model", "success"):
            if required not in self.names:
                raise InputError(
                    f"{self.path}: no column `{required}`{self._meant(required)}; found {self._listed()}. "
                    "Every row needs the `model` that answered and its `success` (0 to 1, null where unknown)"
                )
        if self.prompt_column != "prompt" and self.prompt_column not in self.names:
            raise InputError(
                f"{self.path}: no column `{self.prompt_column}`, which was named as the column of the text"
                f"{self._meant(self.prompt_column)}; found {self._listed()}"
            )
        if needs_prompt and not {self.prompt_column, "messages", "embedding"} & set(self.names):
            raise InputError(
                f"{self.path}: none of the columns `prompt`, `messages` and `embedding`{self._meant('prompt')}; "
                f"found {self._listed()}. Name the column of the text with --prompt-column, or add embeddings"
            )

    def _meant(self, missing: str) -> str:
        near = difflib.get_close_matches(missing, self.unused(), n=1, cutoff=_NEAR)
        return f" (is it the column `{near[0]}`?)" if near else ""

    def _listed(self) -> str:
        more = ", ..." if len(self.names) > _LISTED else ""
        return ", ".join(f"`{name}`" for name in self.names[:_LISTED]) + more
