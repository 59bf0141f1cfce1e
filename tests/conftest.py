"""What tests of every folder may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA_FILES = ("routerbench_subset.parquet", "zeroeval.parquet", "routellm_mmlu.parquet")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real outcomes; they are not redistributed, so a machine may not have them."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("ROUTER_ML_DATA") or default)
    missing = [name for name in DATA_FILES if not (folder / name).is_file()]
    if missing:
        pytest.skip(f"no real outcomes: {folder} lacks {', '.join(missing)}; set ROUTER_ML_DATA to their folder")
    return folder
