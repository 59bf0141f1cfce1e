"""The one place that decides what is test data.

Three parts: FIT teaches the models, TUNE sets what nothing else may have seen
(the operating points), TEST judges. Identical prompts never straddle parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from router_ml.errors import InputError

FIT, TUNE, TEST = 0, 1, 2
"""Codes of the parts, earliest first."""

SplitBy = Literal["auto", "own", "time", "random"]
_NAMES = ("to fit", "to tune", "to test")

Part = NDArray[np.int8]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How rows are held out; InputError when a value is out of its range."""

    test_share: float = 0.2
    """Share of the rows (by time) or prompts (at random) that is TEST, in (0, 1)."""
    tune_share: float = 0.2
    """Share of what is not TEST that is TUNE, in (0, 1)."""
    seed: int = 0
    """Salt of the draw by prompt."""
    by: SplitBy = "auto"
    """`own`: the file's column; `time`: the newest rows; `random`: by prompt; `auto`: the first of these that works."""

    def __post_init__(self) -> None:
        for name in ("test_share", "tune_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"`{name}` must lie between 0 and 1, both excluded; found {getattr(self, name)}")
        if self.by not in get_args(SplitBy):
            raise InputError(f"`by` must be one of {', '.join(get_args(SplitBy))}; found {self.by!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The part of each of r rows."""

    part: Part
    """[r], FIT, TUNE or TEST."""
    by: SplitBy
    """The way that was taken; never `auto`."""
    n_rows: tuple[int, int, int]
    """Rows of FIT, TUNE and TEST."""
    n_prompts: tuple[int, int, int]
    """Distinct prompts of the same."""
    description: str
    """For the report."""
    test_from_us: int | None = None
    """By time: Unix microseconds from which rows are TEST; rows of prompts seen earlier lie elsewhere all the same."""

    def check_parts(self) -> None:
        """InputError when a part holds no row: too few prompts to learn from and to judge on."""
        empty = [name for name, n in zip(_NAMES, self.n_rows, strict=True) if not n]
        if empty:
            raise InputError(
                f"the split leaves no row {' and none '.join(empty)} ({self.description}); "
                "add logs with more distinct prompts, or split in another way or with another seed"
            )


def assign_split(
    prompt_ids: Sequence[str] | NDArray[Any],
    time_us: NDArray[np.int64] | None,
    own_split: Sequence[str | None] | NDArray[Any] | None,
    *,
    settings: SplitSettings,
    contents: ArrayLike | None = None,
) -> Split:
    """Assign each of r rows to FIT, TUNE or TEST.

    `time_us` [r] are Unix microseconds, negative where unknown; `own_split` [r] is `train`, `test`,
    or null or empty where it does not say, which counts as `train`. `contents` [r], texts or hashes,
    are equal where prompts are, for files that give one prompt several ids: rows that share an id or
    a content are one prompt. A prompt goes as a whole

    - `own`: to TEST when any of its rows is `test`; TUNE is drawn by prompt from the rest;
    - `time`: to the earliest part that any of its rows falls in, so that no prompt of TEST was seen before;
    - `random`: where the salted hash of its id (or content) says, whatever the order and number of rows.

    By time the cut lies between two different times, so shares are met only as nearly as ties and
    recurring prompts allow. InputError when `by` asks for a way that the rows do not allow.
    """
    prompt = _prompts(prompt_ids, contents)
    draw = _Draw(prompt, _labels(prompt_ids if contents is None else contents), settings.seed)
    own = _own_part(own_split, len(prompt))
    by = settings.by
    if by == "own" and not (own >= 0).any():
        raise InputError("to split by `own`, the column `split` must say `train` or `test`; no row has either")
    if by == "own" or (by == "auto" and {FIT, TEST} <= set(np.unique(own).tolist())):
        test = draw.any_of(own == TEST)
        return _finish(prompt, draw.tuned(test, settings.tune_share), "own", "by the file's own `split`")
    found = None if by == "random" else _by_time(prompt, time_us, settings)
    if found is not None:
        return found
    if by == "time":
        raise InputError("to split by `time`, every row needs a `timestamp`, and they must span at least three times")
    part = draw.tuned(draw.below("test", settings.test_share), settings.tune_share)
    return _finish(prompt, part, "random", f"at random by prompt, seed {settings.seed}")


class _Draw:
    """Random choices by prompt that depend on nothing but the prompt and the seed."""

    def __init__(self, prompt: Index, labels: pa.DictionaryArray, seed: int) -> None:
        self._prompt = prompt
        self._labels = labels
        self._seed = seed

    def below(self, salt: str, share: float) -> NDArray[np.bool_]:
        """[r], true for a share of the prompts."""
        prefix = f"{salt}:{self._seed}:"
        names = self._labels.dictionary.cast(pa.string()).to_pylist()
        digests = b"".join(hashlib.blake2b(f"{prefix}{name}".encode(), digest_size=8).digest() for name in names)
        uniform = np.frombuffer(digests, dtype=">u8").astype(np.float64) / 2.0**64
        row = uniform[self._labels.indices.to_numpy()]
        # One draw per prompt, whichever of its labels comes first in the file.
        lowest = np.full(self._prompt.max(initial=-1) + 1, np.inf)
        np.minimum.at(lowest, self._prompt, row)
        result: NDArray[np.bool_] = lowest[self._prompt] < share
        return result

    def any_of(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[r], true for all rows of a prompt that has one of `rows`."""
        marked = np.zeros(self._prompt.max(initial=-1) + 1, dtype=np.bool_)
        marked[self._prompt[rows]] = True
        result: NDArray[np.bool_] = marked[self._prompt]
        return result

    def tuned(self, test: NDArray[np.bool_], tune_share: float) -> Part:
        """TEST where `test`, TUNE for a share of the other prompts."""
        tune = self.below("tune", tune_share)
        return np.where(test, TEST, np.where(tune, TUNE, FIT)).astype(np.int8)


def _by_time(prompt: Index, time_us: NDArray[np.int64] | None, settings: SplitSettings) -> Split | None:
    """None where times are missing, or leave a part empty."""
    if time_us is None or not len(time_us) or (time_us < 0).any():
        return None
    test_from = _cut(time_us, settings.test_share)
    tune_from = None if test_from is None else _cut(time_us[time_us < test_from], settings.tune_share)
    if test_from is None or tune_from is None:
        return None
    by_row = (time_us >= tune_from).astype(np.int8) + (time_us >= test_from).astype(np.int8)
    earliest = np.full(prompt.max() + 1, TEST, dtype=np.int8)
    np.minimum.at(earliest, prompt, by_row)
    part: Part = earliest[prompt]
    if len(np.unique(part)) < 3:
        return None
    how = f"by time: tune from {_date(tune_from)}, test from {_date(test_from)}"
    return replace(_finish(prompt, part, "time", how), test_from_us=test_from)


def _cut(times: NDArray[np.int64], share: float) -> int | None:
    """The time from which about `share` of the times lie; None when all are equal."""
    ordered = np.sort(times)
    middle = ordered[min(len(ordered) - 1, round(len(ordered) * (1 - share)))]
    places = (np.searchsorted(ordered, middle), np.searchsorted(ordered, middle, side="right"))
    inside = [int(place) for place in places if 0 < place < len(ordered)]
    if not inside:
        return None
    return int(ordered[min(inside, key=lambda place: abs(len(ordered) - place - share * len(ordered)))])


def _prompts(prompt_ids: Sequence[str] | NDArray[Any], contents: ArrayLike | None) -> Index:
    """[r], number of the prompt of each row: rows are joined by id, and by content where given."""
    ids = _labels(prompt_ids)
    by_id: Index = ids.indices.to_numpy().astype(np.int64)
    if contents is None:
        return by_id
    texts = _labels(contents)
    n_ids, n_texts = len(ids.dictionary), len(texts.dictionary)
    edge = (by_id, n_ids + texts.indices.to_numpy())
    size = n_ids + n_texts
    joined = coo_array((np.ones(len(by_id), dtype=np.int8), edge), shape=(size, size))
    component: Index = connected_components(joined, directed=False)[1].astype(np.int64)
    _, prompt = np.unique(component[by_id], return_inverse=True)
    return np.asarray(prompt, dtype=np.int64)


def _labels(values: ArrayLike) -> pa.DictionaryArray:
    labels = pa.array(values)
    if labels.null_count:
        raise InputError(
            "every row needs a `prompt_id`; read the table with `read_outcomes`, which makes those missing"
        )
    return labels.dictionary_encode()


def _own_part(own_split: Sequence[str | None] | NDArray[Any] | None, n: int) -> Part:
    """[r], FIT for `train`, TEST for `test`, -1 where it does not say."""
    if own_split is None:
        return np.full(n, -1, dtype=np.int8)
    values = pa.array(own_split, pa.string())
    test, train = (pc.equal(values, word).fill_null(False).to_numpy(zero_copy_only=False) for word in ("test", "train"))
    return np.where(test, TEST, np.where(train, FIT, -1)).astype(np.int8)


def _finish(prompt: Index, part: Part, by: SplitBy, how: str) -> Split:
    n_rows = _counts(part)
    # A prompt lies in one part, so any of its rows tells which.
    n_prompts = _counts(part[np.unique(prompt, return_index=True)[1]])
    parts = ", ".join(
        f"{rows:,} rows ({prompts:,} prompts) {name}"
        for rows, prompts, name in zip(n_rows, n_prompts, _NAMES, strict=True)
    )
    return Split(part, by, n_rows, n_prompts, f"{how}; {parts}")


def _counts(part: Part) -> tuple[int, int, int]:
    fit, tune, test = np.bincount(part, minlength=3).tolist()
    return fit, tune, test


def _date(time_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).strftime("%Y-%m-%d %H:%M UTC")
