"""What was measured, on what, and whether the targets are met: JSON and Markdown by the machine's name, and one line of ratios."""

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

# Targets, all against the plain reference beside this file unless they say otherwise.
ITERATION = {"fixed bf16": 3.0, "fixed fp32": 2.0}  # times faster, iterations with plain text
REAL_LENGTHS = (
    6.0  # times faster at real lengths, in "iteration_samples": plain text is as long on either side
)
MEMORY = 0.25  # of the reference's, at V = 50257
GROWTH = 0.15  # of the net memory from V = 50257 to V = 152064
OTHERS = 1.0  # times faster and smaller than TRL on the like-for-like row
STAGE = 1.5  # times faster than before, a whole job of the pipeline

# What the targets of memory depend on, as `run.py` names its points: ours, the reference and ours at a large vocabulary.
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


def checks(found: dict[str, Any]) -> list[Check]:
    """The targets that what was measured decides."""
    made = []
    for name, ratios in ((name, entry["ratios"]) for name, entry in found.get("speed", {}).items()):
        if name in ITERATION:
            made.append(Check(f"iteration, {name}", ratios["iteration"], ITERATION[name], True))
        elif name == "real bf16":
            made.append(
                Check(f"iteration on samples, {name}", ratios["iteration_samples"], REAL_LENGTHS, True)
            )
    memory = found.get("memory", {})
    for precision in sorted({name.split()[1] for name in memory}):
        ours, theirs, large = (memory.get(f"{side} {precision} {point}", {}) for side, point in DECISIVE)
        made.append(
            Check(f"memory, {precision}", middle(ours, "above") / middle(theirs, "above"), MEMORY, False)
        )
        change = growth(middle(ours, "net"), middle(large, "net"))
        made.append(Check(f"memory growth to V = 152064, {precision}", change, GROWTH, False))
    for name, entry in found.get("trl", {}).items():
        made.append(Check(f"TRL, time, {name}", entry["ratios"]["seconds"], OTHERS, True))
        made.append(Check(f"TRL, memory, {name}", entry["ratios"]["above"], OTHERS, True))
    made += [
        Check(f"stage {name}", entry["ratio"], STAGE, True) for name, entry in found.get("stages", {}).items()
    ]
    return made


def decides(point: str) -> bool:
    """Whether a target depends on this point of memory."""
    side, _, shape = point.split(" ", 2)
    return (side, shape) in DECISIVE


def middle(point: dict[str, Any], key: str) -> float:
    """The median; NaN, by which every target is missed, where nothing was measured or it did not fit."""
    return float(point[key]["median"]) if key in point else math.nan


def growth(small: float, large: float) -> float:
    """By which share of itself the net memory grows; below 8 MB allocators decide, so that nets count as at least that."""
    if math.isnan(large) or math.isnan(small):
        return math.nan
    return max(large, 8.0) / max(small, 8.0) - 1


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE)
    cuda = torch.cuda.is_available()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "name": torch.cuda.get_device_name()
        if cuda
        else names[0]
        if names
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "commit": commit,
    }


def write(found: dict[str, Any], folder: Path, mode: str) -> Path:
    """FOLDER/<machine>-<mode>.json and .md; returns the path of the latter."""
    name = re.sub(
        r"[^a-z0-9]+", "-", f"{found['machine']['name']} {found['machine']['threads']} threads".lower()
    ).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    listed = [asdict(check) | {"met": check.met} for check in checks(found)]
    (folder / f"{name}-{mode}.json").write_text(json.dumps(found | {"targets": listed}, indent=1) + "\n")
    path = folder / f"{name}-{mode}.md"
    path.write_text(markdown(found))
    return path


def markdown(found: dict[str, Any]) -> str:
    m = found["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in m["versions"].items())
    lines = [
        f"# {m['name']}, {m['threads']} threads",
        "",
        f"Commit {m['commit']}; Python {m['python']}, {versions}.",
        "",
    ]
    for name, entry in found.get("speed", {}).items():
        lines += speed_table(name, entry)
    lines += memory_table(found.get("memory", {}))
    for title in ("roofline", "utilisation"):
        for name, values in found.get(title, {}).items():
            lines += [f"## {title.capitalize()}, {name}", "", "| | |", "|:--|--:|"]
            lines += [f"| {key.replace('_', ' ')} | {value:.3g} |" for key, value in values.items()] + [""]
    lines += scaling_table(found.get("scaling", []))
    for name, entry in found.get("trl", {}).items():
        lines += [f"## Beside TRL, {name}", "", "| | ours | TRL | TRL / ours |", "|:--|--:|--:|--:|"]
        lines += [
            f"| {key} | {entry['ours'][key]:.4g} | {entry['trl'][key]:.4g} | {ratio:.2f} |"
            for key, ratio in entry["ratios"].items()
        ] + [""]
    lines += stage_table(found.get("stages", {}), found.get("commits", {}))
    lines += ["## Targets", "", "| target | measured | limit | |", "|:--|--:|--:|:--|"]
    lines += [
        f"| {c.name} | {c.value:.2f} | {'≥' if c.least else '≤'} {c.limit:g} | {'met' if c.met else 'missed'} |"
        for c in checks(found)
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
    """Every repetition: three numbers say more than a median of them."""
    if not stages:
        return []
    names = " | ".join(f"{name} ({commit}), s" for name, commit in commits.items())
    lines = ["## Whole stages", "", f"| | {names} | ratio of medians |", "|:--|--:|--:|--:|"]
    for stage, entry in stages.items():
        cells = [", ".join(f"{value:.1f}" for value in entry["sides"][name]["values"]) for name in commits]
        lines.append(f"| {stage} | {cells[0]} | {cells[1]} | {entry['ratio']:.2f} |")
    return [*lines, ""]


def summary(found: dict[str, Any]) -> str:
    """The last line of the benchmark."""
    parts = [
        f"{c.name} {c.value:.2f} ({'met' if c.met else 'MISSED'}: {'≥' if c.least else '≤'} {c.limit:g})"
        for c in checks(found)
    ]
    others = [
        f"{name} with plain text {entry['ratios']['iteration']:.2f}"
        for name, entry in found.get("speed", {}).items()
        if name.startswith("real")
    ]
    return "bench: " + "; ".join(parts + others)
