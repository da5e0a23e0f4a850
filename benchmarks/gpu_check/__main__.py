"""`make gpu-check`: ten minutes on one or two GPUs, and a page that says whether what is promised holds.

DEVICE=cpu rehearses it at toy size.  Every check is a process of its own, so that one that breaks or hangs
ends no other.  Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import child
from benchmarks.gpu_check import page, sizes
from benchmarks.gpu_check.page import Outcome
from benchmarks.gpu_check.result import Result, read
from benchmarks.shapes import Shape

# Seconds after which a check counts as hanging, on a GPU and on a CPU.
LIMIT, PATIENT = 300, 900


@dataclass(frozen=True)
class Check:
    """One file of this folder.  `trains`: needs DeepSpeed; `processes`: the most that it runs."""

    what: str
    trains: bool = False
    processes: int = 1


CHECKS = {
    "log_ratio": Check("decode against training log-probabilities, bf16"),
    "zero": Check("losses under ZeRO 0 to 3", trains=True, processes=2),
    "resume": Check("exact resume", trains=True),
    "compiled": Check("launch.compile", trains=True),
    "graphs": Check("sampling captured as a graph", trains=True),
    "memory": Check("peak memory against the plan", trains=True),
    "rollouts": Check("tokens per second next to transformers' generate"),
}


def run(name: str, shape: Shape, processes: int, limit: float) -> Outcome:
    """One check in its own process or processes."""
    check, begin = CHECKS[name], time.monotonic()
    result, error = Result(), ""
    if check.trains and page.installed("deepspeed") is None:
        result = Result(skipped="DeepSpeed is not installed")
    else:
        try:
            module, count = f"benchmarks.gpu_check.{name}", min(check.processes, processes)
            result = read(child.ask(module, shape, count, limit))
        except RuntimeError as problem:
            error = str(problem)
    return Outcome(name, check.what, time.monotonic() - begin, result, error)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--out", type=Path, default=Path("results/gpu-check"))
    args = parser.parse_args()
    # As Ctrl-C does: the check that is running ends, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rehearsal = os.environ.get("DEVICE", "") == "cpu"
    if rehearsal:
        # Before torch looks; for the checks' processes, too.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print("gpu-check: torch finds no GPU here; DEVICE=cpu make gpu-check rehearses it", file=sys.stderr)
        return 2
    machine, outcomes = page.machine(), []
    for line in page.remarks(machine):
        print(line, flush=True)
    shape = sizes.TOY if rehearsal else sizes.GPU
    processes = 2 if rehearsal else torch.cuda.device_count()
    for name in args.only:
        outcomes.append(run(name, shape, processes, PATIENT if rehearsal else LIMIT))
        # Written every time: an interrupted check leaves what there is.
        path = page.write(args.out, machine, outcomes)
        print(f"{name}: {outcomes[-1].state}, {outcomes[-1].seconds:.0f} s", flush=True)
    print(f"gpu-check: {page.verdict(outcomes)}\nwritten: {path} and its .json")
    return int(page.failed(outcomes))


if __name__ == "__main__":
    sys.exit(main())
