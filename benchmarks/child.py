"""Measurements in fresh processes: the request is passed as JSON, the result is the last line of JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from typing import Any

import torch

from benchmarks.shapes import Shape, Size


def ask(
    module: str, shape: Shape, processes: int = 1, limit: float | None = None, **options: Any
) -> dict[str, Any]:
    """The result of `python -m module`; several processes run by torchrun and share the machine's threads.

    Raises RuntimeError with the end of its output if it fails or takes more than `limit` seconds.
    """
    command = [sys.executable, "-m", module, json.dumps({"shape": dataclasses.asdict(shape), **options})]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = max(1, torch.get_num_threads() // processes)
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        # A group of its own, which ends as a whole: torchrun's processes outlive it.
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{module} {options} took more than {limit:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        killed = child.returncode == -9
        what = "was killed: too little memory?" if killed else f"ended with status {child.returncode}"
        raise RuntimeError(f"{module} {options} {what}\n{errors.strip()[-2000:]}")
    last = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    result: dict[str, Any] = json.loads(last)
    return result


def asked() -> tuple[Shape, dict[str, Any]]:
    """In the child: the shape and the rest of the request."""
    request = json.loads(sys.argv[1])
    values = request.pop("shape")
    sizes: dict[str, Any] = {name: Size(**values.pop(name)) for name in ("student", "teacher")}
    return Shape(**values, **sizes), request
