"""Measurements, their machine, and which targets are met: JSON, Markdown, and one line of ratios."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# Targets, all against the plain reference in reference.py unless stated otherwise.
# Times faster, iterations with plain text.
ITERATION = {"fixed bf16": 3.0, "fixed fp32": 2.0}
# Times faster at real lengths, in "iteration_samples": plain text is equally long on both sides.
REAL_LENGTHS = 6.0
# Share of the reference's memory, at V = 50257.
MEMORY = 0.25
# Growth of the net memory from V = 50257 to V = 152064.
GROWTH = 0.15
# Times faster and smaller than TRL in the like-for-like comparison.
OTHERS = 1.0
# Times faster than before, for a whole job of the pipeline.
STAGE = 1.5

# The points, named as in run.py, that the memory targets depend on: ours, the reference, ours at a large
# vocabulary.
DECISIVE = (("ours", "V50257 B16 T64+64"), ("reference", "V50257 B16 T64+64"), ("ours", "V152064 B16 T64+64"))

COLUMNS = ("rollout", "update", "iteration", "update_samples", "iteration_samples")


@dataclass(frozen=True)
class Check:
    """One target: `value` must be at least (or at most) `limit`."""

    name: str
    value: float
    limit: float
    least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit


def checks(results: dict[str, Any]) -> list[Check]:
    """The targets that can be checked with what was measured."""
    decided = []
    for name, ratios in ((name, entry["ratios"]) for name, entry in results.get("speed", {}).items()):
        if name in ITERATION:
            decided.append(Check(f"iteration, {name}", ratios["iteration"], ITERATION[name], True))
        elif name == "real bf16":
            decided.append(
                Check(f"iteration on samples, {name}", ratios["iteration_samples"], REAL_LENGTHS, True)
            )
    memory = results.get("memory", {})
    for precision in sorted({name.split()[1] for name in memory}):
        ours, theirs, large = (memory.get(f"{side} {precision} {point}", {}) for side, point in DECISIVE)
        decided.append(
            Check(f"memory, {precision}", middle(ours, "above") / middle(theirs, "above"), MEMORY, False)
        )
        change = growth(middle(ours, "net"), middle(large, "net"))
        decided.append(Check(f"memory growth to V = 152064, {precision}", change, GROWTH, False))
    for name, entry in results.get("trl", {}).items():
        decided.append(Check(f"TRL, time, {name}", entry["ratios"]["seconds"], OTHERS, True))
        decided.append(Check(f"TRL, memory, {name}", entry["ratios"]["above"], OTHERS, True))
    decided += [
        Check(f"stage {name}", entry["ratio"], STAGE, True)
        for name, entry in results.get("stages", {}).items()
    ]
    return decided


def decides(point: str) -> bool:
    """Whether a target depends on this memory point."""
    side, _, shape = point.split(" ", 2)
    return (side, shape) in DECISIVE


def middle(point: dict[str, Any], key: str) -> float:
    """The median; NaN, which misses every target, if nothing was measured or it did not fit."""
    return float(point[key]["median"]) if key in point else math.nan


def growth(small: float, large: float) -> float:
    """Relative growth of the net memory; below 8 MB allocators decide, so nets count as at least that."""
    if math.isnan(large) or math.isnan(small):
        return math.nan
    return max(large, 8.0) / max(small, 8.0) - 1


def processor() -> str:
    """The CPU's name."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    cuda = torch.cuda.is_available()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "name": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "commit": commit,
    }


def write(results: dict[str, Any], folder: Path, mode: str) -> Path:
    """Write FOLDER/<machine>-<mode>.json and .md; returns the path of the latter."""
    name = re.sub(
        r"[^a-z0-9]+", "-", f"{results['machine']['name']} {results['machine']['threads']} threads".lower()
    ).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    listed = [asdict(check) | {"met": check.met} for check in checks(results)]
    (folder / f"{name}-{mode}.json").write_text(
        json.dumps(results | {"targets": listed}, indent=1) + "\n", encoding="utf-8"
    )
    path = folder / f"{name}-{mode}.md"
    path.write_text(markdown(results), encoding="utf-8")
    return path


def markdown(results: dict[str, Any]) -> str:
    m = results["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in m["versions"].items())
    lines = [
        f"# {m['name']}, {m['threads']} threads",
        "",
        f"Commit {m['commit']}; Python {m['python']}, {versions}.",
        "",
    ]
    for name, entry in results.get("speed", {}).items():
        lines += speed_table(name, entry)
    lines += memory_table(results.get("memory", {}))
    for title in ("roofline", "utilisation"):
        for name, values in results.get(title, {}).items():
            lines += [f"## {title.capitalize()}, {name}", "", "| | |", "|:--|--:|"]
            lines += [f"| {key.replace('_', ' ')} | {value:.3g} |" for key, value in values.items()] + [""]
    lines += scaling_table(results.get("scaling", []))
    for name, entry in results.get("trl", {}).items():
        lines += [f"## Against TRL, {name}", "", "| | ours | TRL | TRL / ours |", "|:--|--:|--:|--:|"]
        lines += [
            f"| {key} | {entry['ours'][key]:.4g} | {entry['trl'][key]:.4g} | {ratio:.2f} |"
            for key, ratio in entry["ratios"].items()
        ] + [""]
    lines += stage_table(results.get("stages", {}), results.get("commits", {}))
    lines += ["## Targets", "", "| target | measured | limit | |", "|:--|--:|--:|:--|"]
    lines += [
        f"| {c.name} | {c.value:.2f} | {'≥' if c.least else '≤'} {c.limit:g} "
        f"| {'met' if c.met else 'missed'} |"
        for c in checks(results)
    ]
    return "\n".join(lines) + "\n"


def speed_table(name: str, entry: dict[str, Any]) -> list[str]:
    """Medians with extremes, in seconds."""
    lines = [
        f"## Seconds, {name} ({entry['tokens']} response tokens)",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
    ]
    lines.append("|:--|" + "--:|" * len(COLUMNS))
    for side, parts in entry["sides"].items():
        cells = [
            f"{parts[c]['median']:.2f} ({parts[c]['min']:.2f} to {parts[c]['max']:.2f})" for c in COLUMNS
        ]
        lines.append(f"| {side} | " + " | ".join(cells) + " |")
    return [*lines, "| ratio | " + " | ".join(f"{entry['ratios'][c]:.2f}" for c in COLUMNS) + " |", ""]


def memory_table(memory: dict[str, dict[str, Any]]) -> list[str]:
    if not memory:
        return []
    keys = ("resident", "floor", "rollout", "update", "above", "net")

    def cell(value: dict[str, Any]) -> str:
        extremes = f" ({value['min']:.0f} to {value['max']:.0f})" if len(value["values"]) > 1 else ""
        return f"{value['median']:.0f}{extremes}"

    lines = ["## Megabytes", "", "| | " + " | ".join(keys) + " |", "|:--|" + "--:|" * len(keys)]
    for name, values in memory.items():
        cells = (
            [cell(values[key]) for key in keys]
            if "above" in values
            else [values["error"], *[""] * (len(keys) - 1)]
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def scaling_table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Seconds of ours as the workload grows",
        "",
        "| | rollout | update | iteration |",
        "|:--|--:|--:|--:|",
    ]
    return [
        *lines,
        *(f"| {r['name']} | {r['rollout']:.2f} | {r['update']:.2f} | {r['iteration']:.2f} |" for r in rows),
        "",
    ]


def stage_table(stages: dict[str, dict[str, Any]], commits: dict[str, str]) -> list[str]:
    """Every repetition: three numbers say more than their median."""
    if not stages:
        return []
    names = " | ".join(f"{name} ({commit}), s" for name, commit in commits.items())
    lines = ["## Whole stages", "", f"| | {names} | ratio of medians |", "|:--|--:|--:|--:|"]
    for stage, entry in stages.items():
        cells = [", ".join(f"{value:.1f}" for value in entry["sides"][name]["values"]) for name in commits]
        lines.append(f"| {stage} | {cells[0]} | {cells[1]} | {entry['ratio']:.2f} |")
    return [*lines, ""]


def summary(results: dict[str, Any]) -> str:
    """The last line of the benchmark."""
    parts = [
        f"{c.name} {c.value:.2f} ({'met' if c.met else 'MISSED'}: {'≥' if c.least else '≤'} {c.limit:g})"
        for c in checks(results)
    ]
    with_text = [
        f"{name} with plain text {entry['ratios']['iteration']:.2f}"
        for name, entry in results.get("speed", {}).items()
        if name.startswith("real")
    ]
    return "bench: " + "; ".join(parts + with_text)
