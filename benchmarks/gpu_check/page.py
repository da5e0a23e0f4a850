"""What `make gpu-check` writes: one JSON with everything, one page of Markdown to read and to send."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.gpu_check.result import Result

# What is lost without it.
OPTIONAL = {
    "deepspeed": "checks of training are left out",
    "triton": "torch compiles nothing on a GPU",
    "vllm": "no check uses it so far: rollouts are compared with `generate`",
}
TRIED = ((2, 11), (2, 13))


@dataclass(frozen=True)
class Outcome:
    """One check that was run or left out.  `error` is what ended it, "" if nothing did."""

    name: str
    what: str
    seconds: float
    result: Result
    error: str = ""

    @property
    def state(self) -> str:
        if self.error:
            return "failed"
        if self.result.skipped:
            return "skipped"
        return "passed" if all(limit.met for limit in self.result.limits) else "failed"


def installed(name: str) -> str | None:
    """A package's version; None if it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return version(name)
    except PackageNotFoundError:
        return "installed"


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    cuda = torch.cuda.is_available()
    properties = [
        torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count() if cuda else 0)
    ]
    gpus = [
        f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute capability {p.major}.{p.minor}"
        for p in properties
    ]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "device": "cuda" if cuda else "cpu",
        "gpus": gpus,
        "processor": report.processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: installed(name) for name in ("torch", "transformers", *OPTIONAL)},
        "commit": commit,
    }


def remarks(machine: dict[str, Any]) -> list[str]:
    """What a reader has to know: a rehearsal, what is not installed, a torch that nobody tried."""
    lines = []
    if machine["device"] == "cpu":
        lines.append("A rehearsal on a CPU at toy size: it says nothing of a GPU.")
    missing = [f"{name} ({OPTIONAL[name]})" for name in OPTIONAL if machine["versions"][name] is None]
    if missing:
        lines.append(f"Not installed: {', '.join(missing)}.")
    number = tuple(int(part) for part in machine["versions"]["torch"].split("+")[0].split(".")[:2])
    if not TRIED[0] <= number <= TRIED[1]:
        lines.append(f"torch {number[0]}.{number[1]} was never tried: 2.11 to 2.13 are.")
    return lines


def verdict(outcomes: list[Outcome]) -> str:
    """One line: how many passed, which failed, which were left out."""
    names = {
        state: [o.name for o in outcomes if o.state == state] for state in ("passed", "failed", "skipped")
    }
    parts = [f"{len(names['passed'])} passed"]
    parts += [f"{state}: {', '.join(names[state])}" for state in ("failed", "skipped") if names[state]]
    return "; ".join(parts)


def failed(outcomes: list[Outcome]) -> bool:
    return any(outcome.state == "failed" for outcome in outcomes)


def number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(number(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(machine: dict[str, Any], outcomes: list[Outcome]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    cuda = f", CUDA {machine['cuda']}" if machine["cuda"] else ""
    seconds = sum(outcome.seconds for outcome in outcomes)
    lines = [
        "# GPU check",
        "",
        f"{'; '.join(machine['gpus']) or 'no GPU'}. {machine['processor']}, {machine['threads']} threads; "
        f"{machine['system']}. Python {machine['python']}, {versions}{cuda}. Commit {machine['commit']}.",
        "",
        *[line for remark in remarks(machine) for line in (remark, "")],
        f"**{verdict(outcomes)}**, in {seconds:.0f} s.",
        "",
        "| check | what | measured | limit | | s |",
        "|:--|:--|--:|--:|:--|--:|",
    ]
    for outcome in outcomes:
        reason = (outcome.error or outcome.result.skipped).split("\n")[0].replace("|", "\\|")
        if reason:
            lines.append(f"| {outcome.name} | {reason} | | | {outcome.state} | {outcome.seconds:.0f} |")
            continue
        for place, limit in enumerate(outcome.result.limits):
            first = (outcome.name, f"{outcome.seconds:.0f}") if place == 0 else ("", "")
            sign = "≥" if limit.least else "≤"
            cells = [first[0], limit.name, number(limit.value), f"{sign} {limit.limit:.3g}"]
            lines.append(f"| {' | '.join(cells)} | {'passed' if limit.met else 'failed'} | {first[1]} |")
    for outcome in outcomes:
        if outcome.error:
            lines += ["", f"## {outcome.name}: what ended it", "", "```", outcome.error.strip(), "```"]
        elif outcome.result.values:
            lines += ["", f"## {outcome.name}: {outcome.what}", "", "| | |", "|:--|--:|"]
            lines += [f"| {key} | {number(value)} |" for key, value in outcome.result.values.items()]
    return "\n".join(lines) + "\n"


def write(folder: Path, machine: dict[str, Any], outcomes: list[Outcome]) -> Path:
    """Write FOLDER/gpu-check.json and .md; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    checks = []
    for outcome in outcomes:
        limits = [asdict(limit) | {"met": limit.met} for limit in outcome.result.limits]
        checks.append(
            asdict(outcome) | {"state": outcome.state, "result": asdict(outcome.result) | {"limits": limits}}
        )
    values = {"machine": machine, "remarks": remarks(machine), "failed": failed(outcomes), "checks": checks}
    (folder / "gpu-check.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    path = folder / "gpu-check.md"
    path.write_text(markdown(machine, outcomes), encoding="utf-8")
    return path
