"""Measurements in fresh processes: what is asked goes there as JSON, what was found comes back as the last line of JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks.shapes import Shape, Size


def ask(module: str, shape: Shape, processes: int = 1, **more: Any) -> dict[str, Any]:
    """What `python -m module` finds; with more processes by torchrun, the machine's threads divided among them.

    Raises RuntimeError with the end of what it printed where it fails.
    """
    command = [sys.executable, "-m", module, json.dumps({"shape": dataclasses.asdict(shape), **more})]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = max(1, torch.get_num_threads() // processes)
    child = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    if child.returncode:
        killed = (
            " was killed: too little memory?"
            if child.returncode == -9
            else f" ended with status {child.returncode}"
        )
        raise RuntimeError(f"{module} {more}{killed}\n{child.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(
        next(line for line in reversed(child.stdout.splitlines()) if line.startswith("{"))
    )
    return found


def asked() -> tuple[Shape, dict[str, Any]]:
    """In the child: the shape and the rest of the request."""
    request = json.loads(sys.argv[1])
    values = request.pop("shape")
    sizes: dict[str, Any] = {name: Size(**values.pop(name)) for name in ("student", "teacher")}
    return Shape(**values, **sizes), request
