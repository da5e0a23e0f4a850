"""A line chart as SVG text, for pages that need no network and no script."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Size in pixels, and what axes and title take of it.
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 28, 34
# More points than this are drawn as the least and greatest of each bucket.
POINTS = 400

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Line:
    """One line: (x, y) in the order of x; a y of None leaves a gap."""

    name: str
    colour: str
    points: Sequence[Point]
    dashed: bool = False


def chart(title: str, lines: Sequence[Line], across: str = "step") -> str:
    """An <svg> element with these lines, which must have a number among them, on linear axes."""
    drawn = [point for line in lines for point in line.points if point[1] is not None]
    xs, ys = _axis([x for x, _ in drawn]), _axis([y for _, y in drawn if y is not None])

    def x_of(x: float) -> str:
        return _short(LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT))

    def y_of(y: float) -> str:
        return _short(HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM))

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text class="title" x="{LEFT}" y="16">{html.escape(title)}</text>',
    ]
    for y in ys:
        parts.append(f'<path class="grid" d="M{LEFT} {y_of(y)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y_of(y)}">{_number(y)}</text>')
    for x in xs:
        parts.append(f'<text class="x" x="{x_of(x)}" y="{HEIGHT - BOTTOM + 14}">{_number(x)}</text>')
    parts.append(
        f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">{html.escape(across)}</text>'
    )
    for line in lines:
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        name = f"<title>{html.escape(line.name)}</title>"
        for piece in _pieces(line.points):
            places = [f"{x_of(x)} {y_of(y)}" for x, y in piece]
            if len(places) == 1:
                place = f'cx="{x_of(piece[0][0])}" cy="{y_of(piece[0][1])}"'
                parts.append(f'<circle {place} r="2.5" fill="{line.colour}">{name}</circle>')
            else:
                path = (
                    f'<path class="line" stroke="{line.colour}"{dash} d="M{"L".join(places)}">{name}</path>'
                )
                parts.append(path)
    return "\n".join([*parts, "</svg>"])


def _pieces(points: Sequence[Point]) -> Iterator[list[tuple[float, float]]]:
    """What is drawn without a gap."""
    piece: list[tuple[float, float]] = []
    for x, y in [*points, (math.inf, None)]:
        if y is not None:
            piece.append((x, y))
        elif piece:
            yield _fewer(piece)
            piece = []


def _fewer(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `POINTS` of them: the least and the greatest of each bucket, so that no peak is lost."""
    if len(points) <= POINTS:
        return points
    size = math.ceil(2 * len(points) / POINTS)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    chosen = [{min(b, key=lambda p: p[1]), max(b, key=lambda p: p[1])} for b in buckets]
    return [points[0], *(p for both in chosen for p in sorted(both)), points[-1]]


def _axis(values: Sequence[float]) -> list[float]:
    """Ticks at 1, 2 or 5 times a power of ten, the first and last of which enclose all values."""
    low, high = min(values), max(values)
    # Equal values, also where the difference of two large ones is lost in rounding.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [i * width for i in range(math.floor(low / width), math.ceil(high / width) + 1)]


def _number(value: float) -> str:
    return f"{round(value, 12):.6g}"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
