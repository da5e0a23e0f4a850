"""The benchmark: `python -m benchmarks.run` (quick, bf16) or `--full`.

docs/performance.md says what each part measures.  Exit status 1 if a target is missed.  Nothing else should
run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import breakdown, child, report, roofline, scaling, speed
from benchmarks.shapes import FIXED, LARGE, REAL, Shape
from benchmarks.sides import Ours
from benchmarks.workload import Setting
from minillm.runtime.processes import World, start

SECTIONS = ("speed", "memory", "utilisation", "scaling")
BEGIN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True)


def speeds(full: bool, sizes: dict[str, Any], world: World, compiled: bool) -> dict[str, Any]:
    """(shape, precision) -> both sides' seconds.

    Quick takes half the rows at real lengths, where the reference is slow.
    """
    real = REAL if full else dataclasses.replace(REAL, batch=8)
    runs = [("fixed", FIXED, "bf16", 3, 2), ("real", real, "bf16", 3, 1)]
    if full:
        runs += [("fixed", FIXED, "fp32", 3, 2), ("real", real, "fp32", 3, 1)]
    times = {}
    for name, plain, precision, repeats, updates in runs:
        say(f"seconds, {name} {precision}")
        shape = dataclasses.replace(plain, **sizes)
        if name == "fixed":
            speed.warm_up(shape, precision, world, compiled)
        times[f"{name} {precision}"] = speed.compare(shape, precision, world, repeats, updates, say, compiled)
    return times


def memory_points(full: bool) -> list[tuple[str, str, Shape]]:
    """(side, precision, shape) of each process."""
    large, small = (dataclasses.replace(FIXED, vocabulary=v) for v in (152064, 2048))
    points = [("ours", "bf16", shape) for shape in (small, FIXED, large)] + [("reference", "bf16", FIXED)]
    if full:
        points += [("reference", "bf16", shape) for shape in (small, large)]
        points += [("ours", "fp32", shape) for shape in (small, FIXED, large)] + [
            ("reference", "fp32", FIXED)
        ]
        for batch in (8, 32):
            shape = dataclasses.replace(FIXED, batch=batch, micro_batch=batch)
            points += [("ours", "bf16", shape), ("reference", "bf16", shape)]
        for side in (32, 128):
            shape = dataclasses.replace(FIXED, prompt=side, response=side, text=2 * side)
            points += [("ours", "bf16", shape), ("reference", "bf16", shape)]
    return points


def memories(full: bool, sizes: dict[str, Any]) -> dict[str, Any]:
    """One process per point, three if targets depend on it; a point that does not fit into memory says so."""
    points: dict[str, Any] = {}
    for side, precision, plain in memory_points(full):
        shape = dataclasses.replace(plain, **sizes)
        name = f"{side} {precision} V{shape.vocabulary} B{shape.batch} T{shape.prompt}+{shape.response}"
        repeats = 3 if report.decides(name) else 1
        try:
            runs = [
                child.ask("benchmarks.memory", shape, side=side, precision=precision) for _ in range(repeats)
            ]
            points[name] = {key: speed.spread([run[key] for run in runs]) for key in runs[0]}
            above, net = (points[name][key]["median"] for key in ("above", "net"))
            say(f"{name}: {above:.0f} MB above, net {net:.0f}")
        except RuntimeError as error:
            points[name] = {"error": str(error).splitlines()[0]}
            say(str(error))
    return points


def used(shape: Shape, precision: str, world: World) -> dict[str, float]:
    """How much of the machine an iteration of ours uses."""
    setting = Setting(shape, precision, world)
    side = Ours(setting, shape, setting.make())
    side.update(side.rollout())
    return breakdown.utilisation(side, shape, precision, world.device)


def scales(full: bool, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for what, plain, processes in scaling.points(full):
        shape = dataclasses.replace(plain, **sizes)
        names = {
            "processes": f"{processes} process(es)",
            "vocabulary": f"V = {shape.vocabulary}",
            "tokens": f"{shape.prompt} + {shape.response} tokens",
        }
        times = child.ask("benchmarks.scaling", shape, processes, precision="bf16", repeats=3 if full else 2)
        rows.append(
            {"name": names[what], "processes": processes, "shape": dataclasses.asdict(shape), **times}
        )
        say(f"{names[what]}: {times['iteration']:.2f} s an iteration")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full",
        action="store_true",
        help="also fp32, and more points: up to an hour on two cores instead of 15 minutes",
    )
    parser.add_argument("--large", action="store_true", help="models of 355M and 1.5B parameters, for a GPU")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure our seconds with launch.compile (default: yes)",
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    world = start(0)
    sizes: dict[str, Any] = LARGE if args.large else {}
    precisions = ("bf16", "fp32") if args.full else ("bf16",)
    results: dict[str, Any] = {"machine": report.machine()}
    results["roofline"] = {precision: roofline.roofline(precision, world.device) for precision in precisions}
    for precision, values in results["roofline"].items():
        say(f"roofline {precision}: {values['roofline']:.0f} GFLOP/s")
    if "speed" in args.only:
        results["speed"] = speeds(args.full, sizes, world, args.compile)
    if "memory" in args.only:
        results["memory"] = memories(args.full, sizes)
    if "utilisation" in args.only:
        results["utilisation"] = {"fixed bf16": used(dataclasses.replace(FIXED, **sizes), "bf16", world)}
    if "scaling" in args.only:
        results["scaling"] = scales(args.full, sizes)
    mode = ("full" if args.full else "quick") if tuple(args.only) == SECTIONS else "-".join(args.only)
    mode += ("-large" if args.large else "") + ("" if args.compile else "-uncompiled")
    path = report.write(results, args.out, mode)
    say(f"written: {path} and its .json")
    print(report.summary(results), flush=True)
    sys.exit(0 if all(check.met for check in report.checks(results)) else 1)


if __name__ == "__main__":
    main()
