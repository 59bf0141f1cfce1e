"""A reading as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from training.ab.health import Weight
from training.ab.pictures import reading_figures, svg
from training.ab.reading import Challenger, Reading
from training.ab.report import (
    arm_rows,
    basis_line,
    difference_rows,
    interval_words,
    money_words,
    promise_line,
    segment_rows,
)
from training.ab.verdict import Action

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd } th { font-weight: 600 }
th:first-child, td:first-child { text-align: left }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto }
.verdict { border-left: .5rem solid; padding: .6rem 1rem; margin: 1rem 0; background: #f6f6f6 }
.verdict b { font-size: 1.15rem } .muted { color: #595959 }
li { margin: .3rem 0 }
"""
_COLOURS = {
    Action.PROMOTE: "#009E73",
    Action.STOP: "#D55E00",
    Action.KEEP_RUNNING: "#0072B2",
    Action.CANNOT_TELL: "#767676",
}
_MARKS = {Action.PROMOTE: "▲", Action.STOP: "■", Action.KEEP_RUNNING: "▶", Action.CANNOT_TELL: "?"}


def reading_page(reading: Reading, title: str) -> str:
    """The whole page."""
    names = " and ".join(challenger.arm for challenger in reading.challengers)
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="muted">{escape(basis_line(reading))}</p>']
    parts += [_verdict(challenger) for challenger in reading.challengers]
    if reading.findings:
        items = [
            f"<li><b>{escape(finding.weight)}: {escape(finding.kind)}.</b> {escape(finding.words)}</li>"
            for finding in reading.findings
        ]
        grave = any(finding.weight is Weight.WITHHOLDS for finding in reading.findings)
        parts.append(
            f"<h2>{'This test cannot be trusted' if grave else 'Health of the test'}</h2><ul>{''.join(items)}</ul>"
        )
    parts += ["<h2>The arms</h2>", _table(arm_rows(reading))]
    for challenger in reading.challengers:
        heading = f"{challenger.arm} minus {reading.control}"
        parts += [f"<h2>{escape(heading)}</h2>", f'<p class="muted">{escape(interval_words(reading))}</p>']
        parts.append(_table(difference_rows(challenger, reading)))
        if challenger.promise:
            parts.append(f"<p>{escape(promise_line(challenger))}</p>")
    parts.append(f"<h2>Pictures of {escape(names)}</h2>")
    parts += [f"<figure>{svg(figure)}</figure>" for figure in reading_figures(reading).values()]
    for challenger in reading.challengers:
        if challenger.segments:
            parts += [f"<h2>Segments, {escape(challenger.arm)}</h2>", _table(segment_rows(challenger))]
            parts.append('<p class="muted">* differs; of those marked a share of 5 % at most is wrong on average</p>')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _verdict(challenger: Challenger) -> str:
    verdict = challenger.verdict
    money = f"<br>{escape(money_words(challenger))}" if challenger.usd_per_month.estimate is not None else ""
    return (
        f'<div class="verdict" style="border-color: {_COLOURS[verdict.action]}">'
        f"<b>{_MARKS[verdict.action]} {escape(challenger.arm)}: {escape(verdict.action)}</b><br>"
        f"{escape(verdict.reason)}{money}</div>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
