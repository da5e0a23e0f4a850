"""The benchmark: `python -m benchmarks.run` (quick, bf16) or `--full`.  docs/performance.md says what each part measures.

Exit status 1 where a target is missed.  Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import breakdown, child, report, roofline, scaling, speed
from benchmarks.shapes import FIXED, REAL, Shape
from benchmarks.sides import Ours
from benchmarks.workload import Setting
from minillm.world import World, start

SECTIONS = ("speed", "memory", "utilisation", "scaling")
BEGIN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True)


def speeds(full: bool, world: World) -> dict[str, Any]:
    """(shape, precision) -> both sides' seconds; quick takes half the rows at real lengths, where the reference is slow."""
    real = REAL if full else dataclasses.replace(REAL, batch=8)
    asked = [("fixed", FIXED, "bf16", 3, 2), ("real", real, "bf16", 3, 1)]
    if full:
        asked += [("fixed", FIXED, "fp32", 3, 2), ("real", real, "fp32", 3, 1)]
    found = {}
    for name, shape, precision, repeats, updates in asked:
        say(f"seconds, {name} {precision}")
        if shape is FIXED:
            speed.warm_up(shape, precision, world)
        found[f"{name} {precision}"] = speed.compare(shape, precision, world, repeats, updates, say)
    return found


def memory_points(full: bool) -> list[tuple[str, str, Shape]]:
    """(side, precision, shape) of each process."""
    large, small = (dataclasses.replace(FIXED, vocabulary=v) for v in (152064, 2048))
    points = [("ours", "bf16", shape) for shape in (small, FIXED, large)] + [("reference", "bf16", FIXED)]
    if full:
        points += [("reference", "bf16", shape) for shape in (small, large)]
        points += [("ours", "fp32", shape) for shape in (small, FIXED, large)] + [("reference", "fp32", FIXED)]
        for batch in (8, 32):
            shape = dataclasses.replace(FIXED, batch=batch, micro_batch=batch)
            points += [("ours", "bf16", shape), ("reference", "bf16", shape)]
        for side in (32, 128):
            shape = dataclasses.replace(FIXED, prompt=side, response=side, text=2 * side)
            points += [("ours", "bf16", shape), ("reference", "bf16", shape)]
    return points


def memories(full: bool) -> dict[str, Any]:
    """One point a process; where one does not fit into the machine, its row says so."""
    found: dict[str, Any] = {}
    for side, precision, shape in memory_points(full):
        name = f"{side} {precision} V{shape.vocabulary} B{shape.batch} T{shape.prompt}+{shape.response}"
        try:
            found[name] = child.ask("benchmarks.memory", shape, side=side, precision=precision)
            say(f"{name}: {found[name]['above']:.0f} MB above, net {found[name]['net']:.0f}")
        except RuntimeError as error:
            found[name] = {"error": str(error).splitlines()[0]}
            say(str(error))
    return found


def scales(full: bool) -> list[dict[str, Any]]:
    found = []
    for what, shape, processes in scaling.points(full):
        names = {
            "processes": f"{processes} process(es)",
            "vocabulary": f"V = {shape.vocabulary}",
            "tokens": f"{shape.prompt} + {shape.response} tokens",
        }
        times = child.ask("benchmarks.scaling", shape, processes, precision="bf16", repeats=3 if full else 2)
        found.append({"name": names[what], "processes": processes, "shape": dataclasses.asdict(shape), **times})
        say(f"{names[what]}: {times['iteration']:.2f} s an iteration")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="fp32 too, more points: up to an hour on two cores instead of 15 minutes"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    asked = parser.parse_args()
    world = start(0)
    precisions = ("bf16", "fp32") if asked.full else ("bf16",)
    found: dict[str, Any] = {"machine": report.machine()}
    found["roofline"] = {precision: roofline.roofline(precision, world.device) for precision in precisions}
    for precision, values in found["roofline"].items():
        say(f"roofline {precision}: {values['roofline']:.0f} GFLOP/s")
    if "speed" in asked.only:
        found["speed"] = speeds(asked.full, world)
    if "memory" in asked.only:
        found["memory"] = memories(asked.full)
    if "utilisation" in asked.only:
        setting = Setting(FIXED, "bf16", world)
        side = Ours(setting, FIXED, setting.make())
        side.update(side.rollout())
        found["utilisation"] = {"fixed bf16": breakdown.utilisation(side, FIXED, "bf16", world.device)}
    if "scaling" in asked.only:
        found["scaling"] = scales(asked.full)
    mode = ("full" if asked.full else "quick") if tuple(asked.only) == SECTIONS else "-".join(asked.only)
    path = report.write(found, asked.out, mode)
    say(f"written: {path} and its .json")
    print(report.summary(found), flush=True)
    sys.exit(0 if all(check.met for check in report.checks(found)) else 1)


if __name__ == "__main__":
    main()
