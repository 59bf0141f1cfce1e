"""The report of a bench: lines for a person, plain JSON types for a program."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from router_ml.bench.figures import Figure, Target
from router_ml.bench.in_process import PARTS
from router_ml.bench.run import Report

_COLUMNS = f"{'p50':>7} {'p90':>7} {'p99':>7} {'p99.9':>8} {'per s':>8} {'CPU µs':>7}"
_IDLE_LOAD = 0.3
_PUNCTUAL_US = 200.0
_NO_LATENCY = " " * 32


def report_dict(report: Report) -> dict[str, Any]:
    """Everything in `Report`; figures by name, times in microseconds unless the key names another unit."""
    version = report.version
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": report.machine,
        "cores": dataclasses.asdict(report.cores),
        "version": {
            "version": version.version,
            "bundle_sha256": version.bundle_sha256,
            "models": len(version.models),
            "offers": len(version.offers),
            "encoder": version.encoder,
            "embedding_size": version.embedding_size,
        },
        "settings": dataclasses.asdict(report.settings),
        "figures": {figure.name: figure.to_dict() for figure in report.figures},
        "parts_us": {str(tokens): parts for tokens, parts in report.parts_us.items()},
    }


def report_lines(report: Report) -> list[str]:
    """The same for a person."""
    width = max(len(figure.what) for figure in report.figures)
    lines = [*_about(report), "", f"{'microseconds; medians of rounds':<{width}}  {_COLUMNS}"]
    for figure in report.figures:
        lines += _figure_lines(figure, width)
    if report.parts_us:
        lines += ["", "where Router.route spends it, median microseconds, each part with a clock around it:"]
        lines.append(f"{'tokens':>8}" + "".join(f"{part:>11}" for part in PARTS))
        for tokens, parts in report.parts_us.items():
            lines.append(f"{tokens:8d}" + "".join(f"{parts[part]:11.1f}" for part in PARTS))
    targets = [target for figure in report.figures for target in figure.targets]
    return [*lines, "", f"{sum(target.met for target in targets)} of {len(targets)} targets met", *_doubts(report)]


def _doubts(report: Report) -> list[str]:
    """What makes the figures say more about the machine than about the program."""
    doubts = []
    load = report.machine["load_before"]
    if load is not None and load > _IDLE_LOAD:
        doubts.append(f"other work ran on this machine (load {load:.2f} before): figures are too high")
    late = next((f.beside["generator_late_p99_us"] for f in report.figures if f.name == "unary_open_loop"), 0.0)
    if late > _PUNCTUAL_US:
        doubts.append(
            f"the load generator had to wait for its own core (p99 {late:,.0f} µs late): latencies hold that too"
        )
    return doubts


def _about(report: Report) -> list[str]:
    machine, version, settings = report.machine, report.version, report.settings
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = machine["load_before"]
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {_pinning(report)}"
        + (f"; load before: {load:.2f}" if load is not None else ""),
        versions,
        f"{len(version.models)} models, {len(version.offers)} offers, {version.encoder}, "
        f"{version.embedding_size} dimensions, version {version.version}",
        f"over gRPC: prompts of {settings.tokens} tokens, {settings.rounds} rounds of {settings.seconds:g} s; "
        f"in process: {settings.rounds} rounds of {settings.calls} calls",
        "targets are set for prompts of 128 tokens, 11 models, one core for the server, nothing else running",
    ]


def _pinning(report: Report) -> str:
    cores = report.cores
    server = f"server on core {_listed(cores.server)}, " if cores.server else ""
    return f"{server}load from core {_listed(cores.generators)}" if cores.generators else "nothing pinned"


def _listed(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))


def _figure_lines(figure: Figure, width: int) -> list[str]:
    latency = figure.latency
    cells = _NO_LATENCY
    if latency is not None:
        cells = f"{latency.p50:7.0f} {latency.p90:7.0f} {latency.p99:7.0f} {latency.p99_9:8.0f}"
    cells += f" {figure.per_second:8,.0f}" if figure.per_second is not None else ""
    cells += f" {figure.cpu_us:7.1f}" if figure.cpu_us is not None else ""
    lines = [f"{figure.what:<{width}}  {cells}".rstrip()]
    if figure.beside:
        lines.append("    " + ", ".join(f"{key.replace('_', ' ')} {_number(x)}" for key, x in figure.beside.items()))
    lines += [f"    {_target(target)}" for target in figure.targets]
    return lines


def _target(target: Target) -> str:
    sign, unit = "≥" if target.at_least else "≤", f" {target.unit}" if target.unit else ""
    found = f"{_number(target.found)}{unit}"
    return f"{'met' if target.met else 'MISSED'}: {target.what} {sign} {target.limit:g}{unit}, found {found}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.4g}"
