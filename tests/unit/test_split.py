from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.errors import InputError
from training.split import FIT, TEST, TUNE, Split, SplitSettings, assign_split

DAY_US = 86_400_000_000

row = st.tuples(
    st.integers(0, 30).map("prompt-{}".format),
    st.integers(0, 20).map(lambda day: day * DAY_US),
    st.sampled_from(["train", "test", "", None]),
    st.integers(0, 40).map("text {}".format),
)
tables = st.lists(row, min_size=1, max_size=120)
ways = st.sampled_from(["auto", "random"])
anything = settings(max_examples=60, deadline=None)


def split(rows: list[tuple[Any, ...]], *, times: bool, own: bool, contents: bool = False, **options: Any) -> Split:
    ids, time_us, own_split, texts = zip(*rows, strict=True)
    return assign_split(
        ids,
        np.array(time_us, dtype=np.int64) if times else None,
        own_split if own else None,
        contents=texts if contents else None,
        settings=SplitSettings(**options),
    )


def numbered(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


@anything
@given(tables, st.booleans(), st.booleans(), ways, st.integers(0, 5))
def test_every_row_is_in_one_part_and_no_prompt_in_two(
    rows: list[tuple[Any, ...]], times: bool, own: bool, by: str, seed: int
) -> None:
    found = split(rows, times=times, own=own, by=by, seed=seed)
    assert len(found.part) == len(rows) == sum(found.n_rows)
    assert set(found.part.tolist()) <= {FIT, TUNE, TEST}
    parts: dict[str, set[int]] = {}
    for (prompt_id, *_), part in zip(rows, found.part.tolist(), strict=True):
        parts.setdefault(prompt_id, set()).add(part)
    assert all(len(of_prompt) == 1 for of_prompt in parts.values())
    assert sum(found.n_prompts) == len(parts)


@anything
@given(tables, st.booleans(), st.booleans(), ways, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(
    rows: list[tuple[Any, ...]], times: bool, own: bool, by: str, random: Any
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    whole = split(rows, times=times, own=own, contents=True, by=by)
    shuffled = split([rows[i] for i in order], times=times, own=own, contents=True, by=by)
    assert shuffled.part.tolist() == whole.part[order].tolist()
    assert shuffled.description == whole.description


@anything
@given(tables, tables)
def test_added_rows_do_not_move_others_when_drawn_at_random(
    rows: list[tuple[Any, ...]], more: list[tuple[Any, ...]]
) -> None:
    few = split(rows, times=False, own=False, by="random")
    many = split(rows + more, times=False, own=False, by="random")
    assert many.part[: len(rows)].tolist() == few.part.tolist()


@anything
@given(tables, st.booleans(), st.booleans())
def test_equal_contents_stay_together_whatever_their_ids(rows: list[tuple[Any, ...]], times: bool, own: bool) -> None:
    found = split(rows, times=times, own=own, contents=True)
    for column in (0, 3):
        parts: dict[str, set[int]] = {}
        for values, part in zip(rows, found.part.tolist(), strict=True):
            parts.setdefault(values[column], set()).add(part)
        assert all(len(of_one) == 1 for of_one in parts.values())


@anything
@given(tables, st.booleans())
def test_no_prompt_of_test_was_seen_before_the_cut_in_time(rows: list[tuple[Any, ...]], contents: bool) -> None:
    found = split(rows, times=True, own=False, contents=contents)
    if found.by != "time":
        return
    times = np.array([values[1] for values in rows])
    assert times[found.part == TEST].min() > times[found.part == FIT].min()
    newest_seen = times[found.part == TEST].min()
    judged = {values[0] for values, part in zip(rows, found.part, strict=True) if part == TEST}
    assert not judged & {values[0] for values in rows if values[1] < newest_seen}


def test_shares_are_those_of_the_settings() -> None:
    found = assign_split(numbered(50_000), None, None, settings=SplitSettings(test_share=0.3, tune_share=0.1))
    fit, tune, test = np.array(found.n_rows) / 50_000
    assert (round(fit, 2), round(tune, 2), round(test, 2)) == (0.63, 0.07, 0.3)


def test_another_seed_draws_other_prompts() -> None:
    first, second = (
        assign_split(numbered(1000), None, None, settings=SplitSettings(seed=seed)).part for seed in (0, 1)
    )
    assert 0.2 < np.mean(first != second) < 0.8


def test_tune_does_not_depend_on_the_share_of_test() -> None:
    small, large = (
        assign_split(numbered(1000), None, None, settings=SplitSettings(test_share=share)).part for share in (0.1, 0.4)
    )
    assert set(np.flatnonzero(small == TEST)) < set(np.flatnonzero(large == TEST))
    assert set(np.flatnonzero(large == TUNE)) < set(np.flatnonzero(small == TUNE))


def test_by_time_the_newest_rows_are_test_and_the_description_says_from_when() -> None:
    times = np.arange(100) * DAY_US // 10
    found = assign_split(numbered(100), times, None, settings=SplitSettings())
    assert found.by == "time"
    assert found.part.tolist() == [FIT] * 64 + [TUNE] * 16 + [TEST] * 20
    assert found.description.startswith("by time: tune from 1970-01-07 09:36 UTC, test from 1970-01-09 00:00 UTC;")
    assert "20 rows (20 prompts) to test" in found.description


def test_a_prompt_that_recurs_goes_to_the_earliest_part_it_occurs_in() -> None:
    ids = numbered(100)
    ids[99] = ids[0]
    found = assign_split(ids, np.arange(100, dtype=np.int64), None, settings=SplitSettings())
    assert found.part[99] == FIT
    assert found.n_rows == (65, 16, 19)


def test_equal_times_are_not_torn_apart() -> None:
    times = np.repeat(np.array([1, 2, 3], dtype=np.int64), [10, 20, 70])
    found = assign_split(numbered(100), times, None, settings=SplitSettings())
    assert found.n_rows == (10, 20, 70)


@pytest.mark.parametrize(
    "times", [[1, 2, 3, 4, 5] * 19 + [-1] * 5, [5] * 100, [1] * 50 + [2] * 50], ids=["a gap", "one time", "two times"]
)
def test_without_enough_times_the_draw_is_by_prompt(times: list[int]) -> None:
    time_us = np.array(times, dtype=np.int64)
    assert assign_split(numbered(100), time_us, None, settings=SplitSettings()).by == "random"
    with pytest.raises(InputError, match="`timestamp`"):
        assign_split(numbered(100), time_us, None, settings=SplitSettings(by="time"))


def test_the_files_own_test_set_is_kept_and_tune_drawn_from_the_rest() -> None:
    own = ["train"] * 700 + ["test"] * 200 + [""] * 100
    found = assign_split(numbered(1000), np.arange(1000, dtype=np.int64), own, settings=SplitSettings())
    assert found.by == "own"
    assert np.flatnonzero(found.part == TEST).tolist() == list(range(700, 900))
    assert 120 < found.n_rows[TUNE] < 200


def test_a_prompt_in_both_own_parts_is_only_tested_on() -> None:
    ids = ["same", *numbered(20), "same"]
    own = ["train"] * 15 + ["test"] * 7
    found = assign_split(ids, None, own, settings=SplitSettings())
    assert (found.part[0], found.part[-1]) == (TEST, TEST)


def test_an_own_split_without_test_is_not_taken_unless_asked() -> None:
    own = ["train"] * 50
    assert assign_split(numbered(50), None, own, settings=SplitSettings()).by == "random"
    assert assign_split(numbered(50), None, own, settings=SplitSettings(by="own")).by == "own"
    with pytest.raises(InputError, match="`split` must say"):
        assign_split(numbered(50), None, [""] * 50, settings=SplitSettings(by="own"))


def test_numpy_strings_and_lists_are_the_same_prompts() -> None:
    ids = numbered(200)
    listed = assign_split(ids, None, None, settings=SplitSettings())
    assert assign_split(np.array(ids), None, None, settings=SplitSettings()).part.tolist() == listed.part.tolist()


def test_an_empty_part_is_told_when_all_are_needed() -> None:
    with pytest.raises(InputError, match=r"no row .*to test .*distinct prompts"):
        assign_split(["a", "a"], None, ["train", "train"], settings=SplitSettings(by="own")).check_parts()
    assign_split(numbered(500), None, None, settings=SplitSettings()).check_parts()


def test_no_rows_have_no_parts() -> None:
    found = assign_split([], np.zeros(0, dtype=np.int64), [], settings=SplitSettings())
    assert found.n_rows == (0, 0, 0)


@pytest.mark.parametrize("wrong", [{"test_share": 0.0}, {"tune_share": 1.0}, {"by": "chance"}])
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
        SplitSettings(**wrong)


def test_the_own_split_of_real_outcomes_leaks_no_question(data_dir: Path) -> None:
    table = pq.read_table(data_dir / "routerbench_subset.parquet", columns=["prompt_id", "question", "split"])
    questions = np.array(table["question"].to_pylist())
    found = assign_split(
        table["prompt_id"].to_pylist(), None, table["split"].to_pylist(), contents=questions, settings=SplitSettings()
    )
    assert found.by == "own"
    assert not set(questions[found.part == TEST]) & set(questions[found.part != TEST])
