"""`python docs/dag.py` draws docs/dag.png, Snakemake's graph of the rules; no rule is run.

Boxes are in layers, left to right.  Omitted: the rule `all`, the rule `settings` (whose arrows go to nearly
every box), and arrows implied by others (`teacher` -> `generate` by `teacher` -> `kd` -> `generate`).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

ROOT = Path(__file__).parent.parent
HIDDEN = {"all", "settings"}
COLOURS = {
    "data": "#E8EEF4",
    "base": "#E7F1E4",
    "teacher": "#E7F1E4",
    "students": "#FDF0DA",
    "minillm": "#FBE1D3",
}
OTHER = "#F1EAF5"
# Size of a box; layers are 1 apart.
WIDTH, HEIGHT = 0.78, 0.42
Edge = tuple[str, str]
Point = tuple[float, float]


def rule_graph() -> set[Edge]:
    """(before, after) pairs of rule names, from the DOT text of `snakemake --rulegraph`."""
    command = ["snakemake", "--cores", "1", "--configfile", "config/demo.yaml", "--rulegraph"]
    dot = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', dot, re.MULTILINE))
    edges = {(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", dot, re.MULTILINE)}
    return {edge for edge in edges if not HIDDEN & set(edge)}


def reduced(edges: set[Edge]) -> set[Edge]:
    """`edges` without those that a longer path implies."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reach(start: str) -> set[str]:
        return {start}.union(*(reach(n) for n in after.get(start, ())))

    return {(a, b) for a, b in edges if not any(b in reach(n) for n in after[a] - {b})}


def layout(edges: set[Edge]) -> tuple[dict[str, Point], list[list[str]]]:
    """Positions of the boxes, and each edge as a chain of nodes, with placeholders in the layers between."""
    before = {b: {a for a, x in edges if x == b} for edge in edges for b in edge}

    def depth(name: str) -> int:
        return max((depth(n) + 1 for n in before[name]), default=0)

    layers: dict[int, list[str]] = {}
    for name in sorted(before):
        layers.setdefault(depth(name), []).append(name)
    chains = []
    for a, b in sorted(edges):
        middle = [f"{a}>{b}>{k}" for k in range(depth(a) + 1, depth(b))]
        for k, place in enumerate(middle, depth(a) + 1):
            layers[k].append(place)
        chains.append([a, *middle, b])
    links = [pair for chain in chains for pair in zip(chain, chain[1:], strict=False)]
    y = {name: float(i) for layer in layers.values() for i, name in enumerate(layer)}
    # Order each layer by the mean heights of its neighbours.
    for _ in range(20):
        for layer in layers.values():
            near = {n: [y[a] for a, b in links if b == n] + [y[b] for a, b in links if a == n] for n in layer}
            layer.sort(key=lambda n: (sum(near[n]) / len(near[n]), n))
            for i, name in enumerate(layer):
                y[name] = i - (len(layer) - 1) / 2
    return {name: (float(k), 0.75 * y[name]) for k, layer in layers.items() for name in layer}, chains


def rule_files() -> dict[str, str]:
    """Rule -> stem of its file in rules/."""
    stems = {}
    for path in (ROOT / "rules").glob("*.smk"):
        stems |= dict.fromkeys(re.findall(r"^rule (\w+):", path.read_text(), re.MULTILINE), path.stem)
    return stems


def draw(target: Path) -> None:
    """Draw the graph to `target`."""
    places, chains = layout(reduced(rule_graph()))
    files = rule_files()
    xs, ys = zip(*places.values(), strict=True)
    spanned = max(xs) + 1, max(ys) - min(ys) + 0.8
    figure, axes = plt.subplots(figsize=(1.2 * spanned[0], 1.2 * spanned[1]))
    for chain in chains:
        points = [places[name] for name in chain]
        stops = [(points[0][0] + WIDTH / 2, points[0][1])]
        for x, y in points[1:-1]:
            stops += [(x - WIDTH / 2, y), (x + WIDTH / 2, y)]
        stops.append((points[-1][0] - WIDTH / 2 - 0.03, points[-1][1]))
        vertices, codes = [stops[0]], [Curve.MOVETO]
        for (x0, y0), (x1, y1) in zip(stops, stops[1:], strict=False):
            vertices += [((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1), (x1, y1)]
            codes += [Curve.CURVE4] * 3
        axes.add_patch(PathPatch(Curve(vertices, codes), fill=False, edgecolor="#8A8F98", linewidth=1.2))
        x, y = stops[-1]
        arrow = {"arrowstyle": "-|>", "color": "#8A8F98", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x + 0.04, y), (x - 0.02, y), arrowprops=arrow)
    for name, (x, y) in places.items():
        if ">" not in name:
            colour = COLOURS.get(files.get(name, ""), OTHER)
            corner = (x - WIDTH / 2, y - HEIGHT / 2)
            style = "round,pad=0,rounding_size=0.08"
            looks = {"facecolor": colour, "edgecolor": "#4A4F57", "linewidth": 1.0}
            axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, style, **looks))
            axes.text(x, y, name.replace("_", "\n"), ha="center", va="center", fontsize=10, color="#1E2227")
    axes.set_xlim(-0.5, max(xs) + 0.5)
    axes.set_ylim(min(ys) - 0.35, max(ys) + 0.35)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(target, dpi=150, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    draw(Path(__file__).with_name("dag.png"))
