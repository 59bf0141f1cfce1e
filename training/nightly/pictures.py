"""Two pictures of a night: quality against cost, and calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from router_ml.types import Rule
from training.metrics import router_curve, sweep_points
from training.nightly.choices import Models, Version
from training.nightly.judges import Judges, estimates_on
from training.nightly.others import means_by_segment
from training.operating import fill_outcomes, willingness_grid
from training.plots import calibration_figure, cost_quality_figure, save_figure

CURVE, CALIBRATION = "cost_quality.svg", "calibration.svg"
_PROMPTS_OF_CURVE = 6000
_LEVELS_OF_CURVE = 60


def draw(judges: Judges, folder: Path) -> None:
    rows, action = judges.requests.data.rows, judges.requests.action
    p = estimates_on(judges.new, judges.requests)[0]
    y = np.full(p.shape, np.nan)
    y[np.arange(len(rows)), action] = rows.success
    y[np.isnan(p)] = np.nan
    seen = ~np.isnan(y).all(axis=0)
    if seen.any():
        figure = calibration_figure(np.nan_to_num(p[:, seen]), y[:, seen], "Calibration on the newest days")
        save_figure(figure, folder / CALIBRATION)
    _curve(judges, folder / CURVE)


def _curve(judges: Judges, path: Path) -> None:
    """Cost and quality of the new version, the champion and the segment means over the willingness to pay."""
    new, champion = judges.new, judges.champion
    data = new.data.keep_models(new.policy.models)
    index = data.prompts_with_rows()
    index = index[:: -(-len(index) // _PROMPTS_OF_CURVE)]
    if len(index) < 2:
        return
    part, price = new.estimates.take(index), new.policy.cheapest(new.price)[index]
    outcomes = fill_outcomes(data, index, part.p_success.astype(np.float64), price)
    offered = np.unique(new.policy.column)
    grid = willingness_grid(new.price[index])
    grid = grid[:: max(1, len(grid) // _LEVELS_OF_CURVE)]
    place = np.full(len(new.policy.models), -1)
    place[offered] = np.arange(len(offered))
    success, cost = outcomes.success[:, offered], outcomes.cost_usd[:, offered]
    usable = ~np.isnan(cost).any(axis=1)

    def sweep(version: Version) -> Models:
        """[levels, prompts], columns of `offered`."""
        own, rule = version.estimates.take(index), version.bundle.points.rule
        levels = grid if rule is Rule.PROMISE else np.linspace(0, 1, _LEVELS_OF_CURVE)
        names = [new.policy.models.index(name) if name in new.policy.models else -1 for name in version.policy.models]
        columns: Models = np.where(np.array(names) >= 0, place[names], -1)[version.policy.column]
        return np.stack(
            [columns[version.policy.choose_at(own, rule, level, version.price[index]).chosen] for level in levels]
        )

    points = sweep_points(success[usable], cost[usable], sweep(new)[:, usable])
    others = {}
    if champion is not None:
        theirs = sweep(champion)
        fits = usable & (theirs >= 0).all(axis=0)
        if fits.sum() > 1:
            others["champion"] = router_curve(sweep_points(success[fits], cost[fits], theirs[:, fits]))
    table = means_by_segment(judges)[data.prompts.segment[index]][:, offered]
    means = np.stack([(table - level * price[:, offered])[usable].argmax(axis=1) for level in grid])
    others["segment means"] = router_curve(sweep_points(success[usable], cost[usable], means))
    names = tuple(new.policy.models[j] for j in offered)
    subtitle = f"{int(usable.sum()):,} prompts of the newest days; {outcomes.basis}"
    save_figure(cost_quality_figure(points, names, others, "Quality against cost", subtitle), path)
