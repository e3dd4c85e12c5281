"""Small charts as inline SVG, drawn with the colours of the page around them (see `report.html.j2`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from adapt.results import RoundReport

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 52, 310, 12, 142
MOST_POINTS = 160
COLOURS = 5


@dataclass(frozen=True)
class Chart:
    """A titled drawing; `svg` is safe to put into a page."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class _Frame:
    """Maps data to drawing units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (BOTTOM - TOP)


def loss_charts(rounds: Sequence[RoundReport]) -> list[Chart]:
    """One chart a loss, one line a round, over optimiser steps."""
    names = dict.fromkeys(name for report in rounds for entry in report.losses for name in entry if name != "step")
    charts = []
    for name in names:
        lines = {report.number: _points(report.losses, name) for report in rounds}
        lines = {number: points for number, points in lines.items() if points}
        if lines:
            charts.append(Chart(name, _line_chart(lines)))
    return charts


def score_charts(rounds: Sequence[RoundReport]) -> list[Chart]:
    """One chart a score: mean paired difference with its interval, round by round; above zero is better."""
    names = dict.fromkeys(name for report in rounds for name in report.judgement.differences)
    return [
        Chart(name, _interval_chart([r for r in rounds if name in r.judgement.differences], name)) for name in names
    ]


def _points(losses: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """(step, value), finite ones only, averaged in bins where there are too many to see."""
    points = [
        (entry.get("step", float(index + 1)), entry[name])
        for index, entry in enumerate(losses)
        if name in entry and math.isfinite(entry[name])
    ]
    bins = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + bins] for start in range(0, len(points), bins)] if points else []
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _line_chart(lines: dict[int, list[tuple[float, float]]]) -> Markup:
    everything = [point for points in lines.values() for point in points]
    x_low, x_high = _spread([x for x, _ in everything])
    y_low, y_high = _spread([y for _, y in everything])
    frame = _Frame(x_low, x_high, y_low, y_high)
    body = [_grid(frame, _ticks(y_low, y_high))]
    for number, points in lines.items():
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        tone = f"c{(number - 1) % COLOURS}"
        body.append(f'<polyline class="line {tone}" points="{path}"/>')
        if len(points) == 1:
            body.append(
                f'<circle class="dot {tone}" cx="{frame.x(points[0][0]):.1f}" cy="{frame.y(points[0][1]):.1f}" r="4"/>'
            )
    steps = [x for x, _ in everything]
    body.append(_label(LEFT, BOTTOM + 16, f"step {_number(min(steps))}", "start"))
    body.append(_label(RIGHT, BOTTOM + 16, _number(max(steps)), "end"))
    ends = ((number, points[0][1], points[-1][1]) for number, points in lines.items())
    return _svg(body, "; ".join(f"round {n}: from {_number(first)} to {_number(last)}" for n, first, last in ends))


def _interval_chart(rounds: Sequence[RoundReport], name: str) -> Markup:
    differences = [report.judgement.differences[name] for report in rounds]
    values = [value for d in differences for value in (d.mean, d.low, d.high) if math.isfinite(value)]
    low, high = _spread([0.0, *values])
    margin = 0.08 * (high - low)
    frame = _Frame(-0.5, len(rounds) - 0.5, low - margin, high + margin)
    body = [_grid(frame, _ticks(low, high))]
    body.append(f'<line class="zero" x1="{LEFT}" x2="{RIGHT}" y1="{frame.y(0):.1f}" y2="{frame.y(0):.1f}"/>')
    for index, (report, d) in enumerate(zip(rounds, differences, strict=True)):
        x = frame.x(index)
        body.append(_label(x, BOTTOM + 16, f"round {report.number}", "middle"))
        if not all(map(math.isfinite, (d.mean, d.low, d.high))):
            continue
        kind = "kept" if report.judgement.accepted else "dropped"
        ends = "".join(f"M{x - 6:.1f} {frame.y(v):.1f}h12" for v in (d.low, d.high))
        body.append(f'<path class="bar {kind}" d="M{x:.1f} {frame.y(d.low):.1f}V{frame.y(d.high):.1f}{ends}"/>')
        body.append(f'<circle class="mean {kind}" cx="{x:.1f}" cy="{frame.y(d.mean):.1f}" r="5"/>')
    words = "; ".join(f"round {r.number}: {_number(d.mean)}" for r, d in zip(rounds, differences, strict=True))
    return _svg(body, words)


def _grid(frame: _Frame, ticks: Sequence[float]) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{frame.y(t):.1f}" y2="{frame.y(t):.1f}"/>' for t in ticks
    ]
    return "".join(lines + [_label(LEFT - 6, frame.y(tick) + 4, _number(tick), "end") for tick in ticks])


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers within a span."""
    raw = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw), default=raw)
    first = math.ceil(low / step - 1e-9)
    ticks = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return ticks if len(ticks) >= 2 else [low, high]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values, opened where it has no width."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:.3g}"


def _svg(body: Sequence[str], words: str) -> Markup:
    # Numbers and our own words only: names from outside never come in here.
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
    return Markup(head + "".join(body) + "</svg>")
