"""The benchmark in words."""

from __future__ import annotations

from collections.abc import Sequence

from training.benchmark.contest import HULL, NOT_RIVALS, OURS
from training.benchmark.little_data import MEANS, SmallTable
from training.benchmark.speed import Speed
from training.benchmark.stability import Flips
from training.benchmark.standings import Line, Standing
from training.benchmark.suite import BenchmarkReport, TableReport
from training.intervals import Interval
from training.text_table import table

_HEAD = (
    "",
    "AIQ",
    "ours minus this [95 %]",
    "quality at 20 % cost",
    "at 50 %",
    "cost at 97 %",
    "at 99 %",
    "at 100 %",
    "Brier",
    "ECE",
    "seconds",
)


def benchmark_lines(report: BenchmarkReport) -> list[str]:
    """What `benchmark` prints."""
    lines: list[str] = []
    for one in report.tables:
        lines += _table(one)
    if len(report.tables) > 1:
        lines += ["", "== all tables together, each weighing the same"]
        for standing in report.pooled:
            lines += ["", *standing_lines(standing), *_summary(standing)]
    if report.speed:
        lines += ["", *_speed(report.speed)]
    return lines


def standing_lines(standing: Standing) -> list[str]:
    """A row per contestant."""
    knowledge = "known" if standing.segment_known else "hidden"
    models = f", {standing.n_models} models" if standing.n_models else ""
    one = standing.splits[0]
    splits = f"{len(standing.splits)} random splits ({one} to {standing.splits[-1]})"
    if len(standing.splits) == 1:
        splits = f"one random split ({one})" if one.startswith("seed") else f"its own split ({one})"
    head = f"{standing.table}, segment {knowledge}: {standing.n_prompts:,} prompts judged{models}, {splits}"
    rows = [_HEAD, *(_row(name, line, standing) for name, line in standing.lines.items())]
    return [head, *table(rows)]


def _table(one: TableReport) -> list[str]:
    lines = ["", f"== {one.name}"]
    if one.counts_calls:
        lines.append("no cost is logged: a call of the better model counts 1, of the other 0")
    for standing in (*one.standings.values(), *one.own_split.values()):
        lines += ["", *standing_lines(standing), *_calibration(standing), *_two_models(standing)]
        if standing.deployed < 1:
            lines.append(
                f"verdict: deployed in {standing.deployed:.0%} of the splits; in the others the fallback played"
            )
    if one.little_data:
        lines += ["", *_little_data(one.little_data)]
    if one.promise:
        lines += ["", "promise:", *(f"  {line}" for line in one.promise.lines())]
    if one.flips:
        lines += ["", *_flips(one.flips)]
    return lines


def _row(name: str, line: Line, standing: Standing) -> tuple[str, ...]:
    seconds = standing.seconds.get(name)
    return (
        name,
        f"{line.aiq:.4f}",
        "" if line.aiq_gain is None else _signed(line.aiq_gain),
        "" if line.quality_at_20 is None else f"{line.quality_at_20:.3f}",
        "" if line.quality_at_50 is None else f"{line.quality_at_50:.3f}",
        *(f"{share:.0%}" for share in (line.cost_share_97, line.cost_share_99, line.cost_share_100)),
        "" if line.brier is None else f"{line.brier:.4f}",
        "" if line.ece is None else f"{line.ece:.3f}",
        "" if seconds is None else f"{seconds:.1f}",
    )


def _signed(gain: Interval) -> str:
    return f"{gain.estimate:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def _summary(standing: Standing) -> list[str]:
    rivals = {name: line for name, line in standing.lines.items() if name not in NOT_RIVALS}
    ahead = [name for name, line in rivals.items() if line.aiq_gain is not None and line.aiq_gain.low > 0]
    others = [name for name in rivals if name not in ahead]
    ours = standing.lines[OURS]
    dearer = [name for name, line in rivals.items() if line.cost_share_99 <= ours.cost_share_99]
    words = f"ahead in AIQ beyond noise of {len(ahead)} of {len(rivals)} baselines"
    words += f"; not shown for {', '.join(others)}" if others else ""
    cheaper = "cheapest of all at 99 %" if not dearer else f"at 99 % not cheaper than {', '.join(dearer)}"
    return [f"{words}; {cheaper}"]


def _calibration(standing: Standing) -> list[str]:
    found = standing.calibration
    if not found:
        return []
    worst = max(found, key=lambda name: found[name].ece)
    within = sum(each.ece <= 0.05 for each in found.values())
    c = found[worst]
    return [
        f"calibration by model: {within} of {len(found)} within 0.05; worst {worst} with {c.ece:.3f} on {c.n_rows:,} "
        f"prompts, where {c.by_chance:.3f} would be noise alone"
    ]


def _two_models(standing: Standing) -> list[str]:
    if standing.two_models is None:
        return []
    t = standing.two_models
    return [f"of two models: APGR {t['apgr']:.3f}, CPT(50) {t['cpt_50']:.1%}, CPT(80) {t['cpt_80']:.1%}"]


def _little_data(sizes: Sequence[SmallTable]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("logged prompts", "AIQ", "over the hull [95 %]", "over means per model", "cost at 99 %", "deployed")
    ]
    for small in sizes:
        lines = small.standing.lines
        over_hull, over_means = lines[HULL].aiq_gain, lines[MEANS].aiq_gain
        assert over_hull is not None and over_means is not None
        rows.append(
            (
                f"{small.size:,}",
                f"{lines[OURS].aiq:.4f}",
                _signed(over_hull),
                _signed(over_means),
                f"{lines[OURS].cost_share_99:.0%}",
                f"{small.standing.deployed:.0%}",
            )
        )
    return ["little data (segment known; the hull is known only afterwards):", *table(rows)]


def _flips(flips: Sequence[Flips]) -> list[str]:
    lines = []
    for each in flips:
        knowledge = "known" if each.segment_known else "hidden"
        rows = [("", OURS, "TF-IDF + LR")]
        rows += [(name, f"{share:.1%}", f"{each.tf_idf[name]:.1%}") for name, share in each.router.items()]
        lines += [
            f"decisions that flip, segment {knowledge}, {each.n_prompts:,} prompts, both at {each.quality_kept:.0%} of "
            "the best model's quality:",
            *table(rows),
        ]
    return lines


def _speed(speed: Speed) -> list[str]:
    latency = ", ".join(f"{p50:.0f} µs at {tokens} tokens" for tokens, p50 in speed.p50_us.items())
    return [
        f"serving ({speed.table}, {speed.n_models} models, one thread, in process): p50 {latency}; "
        f"bundle {speed.bundle_mb:.1f} MB"
    ]
