"""The report as one HTML file that needs nothing else: readable on paper, and without telling colours apart."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from training.atomic import fresh_file
from training.nightly.pictures import CALIBRATION, CURVE
from training.nightly.report import headline, saving_words

_NAMES = {
    "champion": "the champion",
    "segment means": "mean success by segment",
    "single model": "the best-value single model",
    "best model": "always the ablest model",
}
_PICTURES = (
    (CURVE, 820, "Quality against cost of the new version, the champion, the segment means and the single models"),
    (CALIBRATION, 480, "Observed success against predicted probability"),
)
"""File, width in pixels, words for those who cannot see it."""
_WIDTH, _LABEL, _VERDICT, _ROW = 860, 200, 175, 26


def write_page(path: Path, report: dict[str, Any], pictures: Path) -> None:
    """Write the page of `report` (see `report_of`) with the pictures in that folder, where there are any."""
    environment = Environment(
        loader=PackageLoader("training.nightly", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        r=report,
        headline=headline(report),
        names=_NAMES,
        pictures=[
            {"data": _data(pictures / name), "width": width, "words": words}
            for name, width, words in _PICTURES
            if (pictures / name).exists()
        ],
        forest=_forest(report["versus"]) if report["versus"] else "",
        traffic=_traffic(report["traffic"]) if report["traffic"] else "",
        saving=lambda other: saving_words(report["savings"], other),
        percent=_percent,
        points=lambda value: f"{100 * value:+.2f}",
        per_1000=lambda value: f"{1000 * value:+.3f}",
        number=lambda value: "unknown" if value is None else f"{value:.3g}",
    )
    with fresh_file(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"


def _data(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _forest(versus: dict[str, dict[str, Any]]) -> Markup:
    """Differences in value with their intervals, a line each, zero marked."""
    rows = [(_NAMES[name], d["value"]) for name, d in versus.items() if d["value"]["difference"] is not None]
    if not rows:
        return Markup("")
    low = min(0.0, *(d["low"] for _, d in rows))
    high = max(0.0, *(d["high"] for _, d in rows))
    pad = 0.05 * (high - low) or 0.01

    def x(value: float) -> float:  # pixels
        return float(_LABEL + (value - low + pad) / (high - low + 2 * pad) * (_WIDTH - _LABEL - _VERDICT))

    height = _ROW * len(rows) + 44
    axis = height - 34
    parts = [_line(x(0), 4, x(0), axis, 'stroke="#1b1b1b" stroke-dasharray="4 3"')]
    for k, (name, d) in enumerate(rows):
        y = _ROW * k + 16
        parts.append(_line(x(d["low"]), y, x(d["high"]), y, 'stroke="#0072B2" stroke-width="3"'))
        parts += [
            _line(x(d[end]), y - 5, x(d[end]), y + 5, 'stroke="#0072B2" stroke-width="2"') for end in ("low", "high")
        ]
        parts.append(f'<circle cx="{x(d["difference"]):.1f}" cy="{y}" r="5" fill="#0072B2"/>')
        parts.append(_text(0, y + 4, name))
        parts.append(_text(_WIDTH - _VERDICT + 12, y + 4, d["verdict"]))
    parts.append(_line(_LABEL, axis, _WIDTH - _VERDICT, axis, 'stroke="#767676"'))
    parts.append(_text(x(0), axis + 14, "0", "middle"))
    parts.append(_text(x(low), axis + 14, f"{100 * low:+.1f}", "middle") if x(0) - x(low) > 40 else "")
    parts.append(_text(x(high), axis + 14, f"{100 * high:+.1f}", "middle") if x(high) - x(0) > 40 else "")
    parts.append(_text(_LABEL, axis + 30, "← new version worse"))
    parts.append(_text((_LABEL + _WIDTH - _VERDICT) / 2, axis + 30, "value, points", "middle"))
    parts.append(_text(_WIDTH - _VERDICT, axis + 30, "new version better →", "end"))
    return _svg(height, parts, "Difference in value between the new version and each alternative, with intervals")


def _traffic(traffic: dict[str, dict[str, float]]) -> Markup:
    """Shares of requests by model: a filled bar for the new version, an outlined one for the champion."""
    names = list(dict.fromkeys(name for shares in traffic.values() for name in shares))
    versions = [(key, style) for key, style in (("new", "bar"), ("champion", "bar old")) if key in traffic]
    parts: list[str] = []
    y = 4
    for name in names:
        parts.append(_text(0, y + 12, name))
        for key, style in versions:
            share = traffic[key].get(name, 0.0)
            width = share * (_WIDTH - _LABEL - 190)
            parts.append(f'<rect class="{style}" x="{_LABEL}" y="{y}" width="{max(width, 0.5):.1f}" height="13"/>')
            words = "new version" if key == "new" else "champion"
            parts.append(_text(_LABEL + width + 8, y + 11, f"{100 * share:.1f} % {words}"))
            y += 17
        y += 8
    return _svg(y, parts, "Share of the requests that would go to each model")


def _svg(height: float, parts: Sequence[str], words: str) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img" aria-label="{escape(words)}">{body}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
