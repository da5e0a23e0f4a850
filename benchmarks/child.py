"""Measurements in fresh processes: the request is passed as JSON, the result is the last line of JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks.shapes import Shape, Size


def ask(module: str, shape: Shape, processes: int = 1, **options: Any) -> dict[str, Any]:
    """The result of `python -m module`; several processes run by torchrun and share the machine's threads.

    Raises RuntimeError with the end of its output if it fails.
    """
    command = [sys.executable, "-m", module, json.dumps({"shape": dataclasses.asdict(shape), **options})]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = max(1, torch.get_num_threads() // processes)
    child = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    if child.returncode:
        killed = child.returncode == -9
        what = "was killed: too little memory?" if killed else f"ended with status {child.returncode}"
        raise RuntimeError(f"{module} {options} {what}\n{child.stderr.strip()[-2000:]}")
    last = next(line for line in reversed(child.stdout.splitlines()) if line.startswith("{"))
    result: dict[str, Any] = json.loads(last)
    return result


def asked() -> tuple[Shape, dict[str, Any]]:
    """In the child: the shape and the rest of the request."""
    request = json.loads(sys.argv[1])
    values = request.pop("shape")
    sizes: dict[str, Any] = {name: Size(**values.pop(name)) for name in ("student", "teacher")}
    return Shape(**values, **sizes), request
