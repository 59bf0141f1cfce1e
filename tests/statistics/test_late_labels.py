"""On the simulated world: outcomes as they stand in a log are biased, and those that training takes are not."""

from __future__ import annotations

import numpy as np
import pytest

from training.labels import Labels, LabelSettings, Silence
from training.synthetic.reporting import Reporting
from training.synthetic.table import simulate
from training.synthetic.traffic import TrafficSettings
from training.synthetic.world import World

DAYS, PER_DAY = 10, 1200
LATE = Reporting(success_hours=30.0, failure_hours=1.0)


def successes(reporting: Reporting | None, settings: LabelSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What training takes of each row (NaN unknown), which rows are mature, and what came of all of them."""
    world = World.create(3)
    labels = Labels(settings)
    found = [
        value
        for batch in labels.watch(simulate(world, TrafficSettings(DAYS, PER_DAY, reporting=reporting)))
        for value in batch.column("success").to_pylist()
    ]
    truth = [
        value
        for batch in simulate(world, TrafficSettings(DAYS, PER_DAY))
        for value in batch.column("success").to_pylist()
    ]
    return np.array(found, dtype=float), labels.mature()[0], np.array(truth, dtype=float)


def test_the_newest_rows_look_worse_than_they_are_until_they_are_mature() -> None:
    found, mature, truth = successes(LATE, LabelSettings())
    day = slice(-PER_DAY, None)
    assert truth[day].mean() - np.nanmean(found[day]) > 0.2  # of the last day hardly any success has come in
    assert not mature[day].any()
    known = mature & ~np.isnan(found)
    error = np.sqrt(truth.var() / known.sum())
    naive, waited = np.nanmean(found) - truth.mean(), found[known].mean() - truth.mean()
    assert naive < -4 * error
    assert abs(waited) < 2 * error
    assert mature.mean() > 0.55


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_silence_declared_to_be_success_is_right_but_for_failures_that_nobody_reports(share: float) -> None:
    complaints = Reporting(success_share=0.0, failure_share=share, failure_hours=6.0)
    as_is, _, truth = successes(complaints, LabelSettings({"": Silence.UNKNOWN}))
    assert np.nanmean(as_is) == 0.0
    found, mature, _ = successes(complaints, LabelSettings({"": Silence.SUCCESS}))
    failures = (1 - truth[mature]).mean()
    error = np.sqrt(truth.var() / mature.sum())
    assert 1 - found[mature].mean() == pytest.approx(share * failures, abs=4 * error)
    newest = found[~mature]
    assert 1 - newest.mean() < 0.9 * share * (1 - truth[~mature]).mean()  # complaints about them are still to come
