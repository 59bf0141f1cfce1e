"""The benchmark's pictures: curves of each table, who is ahead by how much, and what few logs give."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from training.benchmark.contest import HULL, NOT_RIVALS, OURS
from training.benchmark.little_data import SmallTable
from training.benchmark.standings import Standing
from training.benchmark.suite import BenchmarkReport, TableReport
from training.metrics import router_curve
from training.plots import BLUE, GREY, ORANGE, RED, cost_quality_figure, new_figure, set_title

_DRAWN = ("segment means", "TF-IDF + LR", "kNN on MiniLM", "matrix factors")


def benchmark_figures(report: BenchmarkReport) -> dict[str, Figure]:
    """File name -> picture."""
    found = {f"cost_quality_{table.name}.png": _curves(table) for table in report.tables}
    found |= {f"little_data_{t.name}.png": _little_data(t.name, t.little_data) for t in report.tables if t.little_data}
    standings = [standing for table in report.tables for standing in table.standings.values()]
    everything = [*standings, *report.pooled] if len(report.tables) > 1 else standings
    return found | {"aiq_gain.png": _gains(everything)}


def _curves(table: TableReport) -> Figure:
    curves, standing = table.curves[True], table.standings[True]
    baselines = {name: router_curve(curves.points[name]) for name in _DRAWN}
    subtitle = f"{table.name}, {standing.splits[0]}, segment known, {len(curves.models)} models"
    return cost_quality_figure(curves.points[OURS], curves.models, baselines, "Quality against cost", subtitle)


def _gains(standings: Sequence[Standing]) -> Figure:
    """AIQ of our router minus that of each baseline, with intervals; a row per table and baseline."""
    rows = [
        (f"{name}", line.aiq_gain, standing)
        for standing in standings
        for name, line in standing.lines.items()
        if line.aiq_gain is not None and name not in NOT_RIVALS
    ]
    figure, axes = new_figure((8.5, 1.2 + 0.2 * (len(rows) + len(standings))))
    y, labels, places = 0, [], []
    last: Standing | None = None
    for name, gain, standing in rows:
        if standing is not last:
            knowledge = "known" if standing.segment_known else "hidden"
            tables = standing.table if standing.n_models else "all tables"
            axes.text(0.0, y + 0.2, f" {tables}, segment {knowledge}", fontsize=8, fontweight="bold", va="center",
                      transform=axes.get_yaxis_transform())  # fmt: skip
            y, last = y + 1, standing
        assert gain is not None
        colour = BLUE if gain.low > 0 else RED if gain.high < 0 else GREY
        axes.plot([gain.low, gain.high], [y, y], color=colour, linewidth=1.6)
        axes.plot([gain.estimate], [y], "o", color=colour, markersize=4)
        labels.append(name)
        places.append(y)
        y += 1
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(y, -1)
    axes.set_xscale("symlog", linthresh=0.02)
    axes.set_xlabel("AIQ of router-ml minus that of the baseline, 95 % paired bootstrap (logarithmic beyond 0.02)")
    set_title(axes, "Ahead or behind", "blue: ahead beyond noise, red: behind, grey: cannot tell")
    return figure


def _little_data(name: str, sizes: Sequence[SmallTable]) -> Figure:
    figure, axes = new_figure((6.2, 4.2))
    x = [small.size for small in sizes]
    drawn = ((OURS, BLUE, "o-"), ("segment means", ORANGE, "s--"), ("TF-IDF + LR", RED, "^-."), (HULL, GREY, ":"))
    for contestant, colour, style in drawn:
        axes.plot(x, [small.standing.lines[contestant].aiq for small in sizes], style, color=colour, label=contestant)
    for small in sizes:
        label = f"deployed {small.standing.deployed:.0%}"
        axes.annotate(label, (small.size, small.standing.lines[OURS].aiq), (0, 8), textcoords="offset points",
                      fontsize=7, ha="center")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{size:,}" for size in x])
    axes.minorticks_off()
    axes.set_xlabel("logged prompts")
    axes.set_ylabel("AIQ on held-out prompts")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    set_title(axes, "Little data", f"{name}, segment known, mean of {len(sizes[0].standing.splits)} splits")
    return figure
