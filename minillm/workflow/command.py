"""How a stage's command starts."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.config.launch import KILLED_AFTER


def start(stage: str, values: Mapping[str, Any], resources: Any, threads: int, per_node: Path) -> str:
    """The beginning of a stage's command: one process, torchrun, or torchrun on each node of a Slurm job.

    values: launch values.  threads: CPU cores of the job, for all its processes together.  per_node: the
    script that runs on each node.
    """
    processes, nodes = values["processes"], resources.get("nodes", 1)
    gpus = re.search(r"gpu(?::[^:]+)?:(\d+)", str(resources.get("gres", "")))
    if gpus:
        # On each node.
        processes = int(gpus[1])
    # Snakemake gives MKL all threads of the job, which all its processes have to share.
    share = max(1, threads // processes)
    prefix = f"OMP_NUM_THREADS={share} MKL_NUM_THREADS={share}"
    options = f"--shutdown-timeout={KILLED_AFTER} --nproc-per-node={processes}"
    run = f"-m minillm {stage} --launch {shlex.quote(json.dumps(values))}"
    if nodes > 1:
        # srun inherits none of this from the job.
        return (
            f"{prefix} srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={threads}"
            f" --kill-on-bad-exit=1 {shlex.quote(os.path.relpath(per_node))}"
            f" {options} --nnodes={nodes} {run}"
        )
    if processes > 1:
        # By its number: torchrun would wait for ever on a host whose name does not resolve.
        return f"{prefix} torchrun {options} --standalone --local-addr=127.0.0.1 {run}"
    return f"{prefix} python {run}"
