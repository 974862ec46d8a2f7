"""Horizontal stacked bars as SVG: enough for a timeline and for what bytes are; no library, no script, no font."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _BAR, _GAP, _TOP, _LINE = 900, 170, 26, 14, 44, 20
# Okabe and Ito's colours, which people who see colours differently can tell apart; greys behind them.
_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#999999",
    "#555555",
    "#bbbbbb",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bar: its parts from left to right, and where its limit is, if it has one."""

    name: str
    parts: Mapping[str, float]
    limit: float | None = None
    note: str = ""  # what stands behind the bar


def bars(title: str, rows: Sequence[Row], unit: str) -> str:
    """The drawing. Parts of the same name have the same colour in all rows; the legend has them in order."""
    names = [*dict.fromkeys(name for row in rows for name in row.parts)]
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    most = max([1e-9, *(sum(row.parts.values()) for row in rows), *(row.limit or 0.0 for row in rows)])
    scale = (_WIDTH - _LABELS - 110) / most
    legend = _TOP + len(rows) * (_BAR + _GAP) + 34
    height = legend + _LINE * ((len(names) + 3) // 4) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(12, 24, title, 'font-weight="bold" font-size="15"'),
    ]
    for number, row in enumerate(rows):
        y = _TOP + number * (_BAR + _GAP)
        lines.append(_text(_LABELS - 8, y + 18, row.name, 'text-anchor="end"'))
        x = float(_LABELS)
        for name, value in row.parts.items():
            told = f"{name}: {_number(value)} {unit}"
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="{_BAR}" fill="{colours[name]}">'
                f"<title>{escape(told)}</title></rect>"
            )
            x += value * scale
        lines.append(_text(x + 6, y + 18, row.note or f"{_number(sum(row.parts.values()))} {unit}"))
        if row.limit is not None:
            at = _LABELS + row.limit * scale
            lines.append(f'<path d="M{at:.1f} {y - 4}v{_BAR + 8}" stroke="#000000" stroke-width="2"/>')
    axis = _TOP + len(rows) * (_BAR + _GAP) + 2
    for tick in _ticks(most):
        at = _LABELS + tick * scale
        lines.append(f'<path d="M{at:.1f} {_TOP - 8}V{axis}" stroke="#000000" stroke-opacity="0.12"/>')
        lines.append(_text(at, axis + 14, f"{tick:g}", 'text-anchor="middle" font-size="11"'))
    for number, name in enumerate(names):
        x, y = 12 + (number % 4) * ((_WIDTH - 24) // 4), legend + (number // 4) * _LINE
        lines.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colours[name]}"/>')
        lines.append(_text(x + 18, y + 11, name, 'font-size="12"'))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more + " " if more else ""}fill="#222222">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to at most `most`, four to ten of them."""
    step = 1e-6
    while most / step > 9:
        for factor in (2.0, 2.5, 2.0):
            step *= factor
            if most / step <= 9:
                break
    return [round(step * number, 9) for number in range(int(most / step) + 1)]
