"""Several nodes without Slurm: those that wait in vain for the others say so in one line and end."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "workflow" / "scripts" / "per_node.sh"


@pytest.fixture
def node(tmp_path):
    """Starts per_node.sh as one of two nodes, this host being their head or not."""
    stub = tmp_path / "scontrol"
    stub.write_text("#!/bin/sh\nprintf '127.0.0.1\\nother\\n'\n")
    stub.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The script's port is 20000 + job % 20000; the system's own are above 32768.
    job = str(port % 12000)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "both",
        "MINILLM_NODES_PATIENCE": "3",
    }

    def start(program, *options):
        (tmp_path / "program.py").write_text(program)
        command = [str(SCRIPT), "--nproc-per-node=1", "--nnodes=2", *options, str(tmp_path / "program.py")]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_a_node_that_waits_in_vain_says_so(node):
    began = time.monotonic()
    alone = node("raise SystemExit('never run')")
    _, errors = alone.communicate(timeout=120)
    assert alone.returncode == 2 and time.monotonic() - began < 100
    [line] = [line for line in errors.splitlines() if line.startswith("minillm: error: ")]
    assert "the 2 nodes of the job did not all meet at 127.0.0.1:" in line
    assert "Traceback" not in errors and "never run" not in errors


def test_two_nodes_that_meet_run(node):
    program = "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])"
    both = [node(program, "--local-addr=127.0.0.1") for _ in range(2)]
    seen = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], seen
    assert sorted(out.strip() for out, _ in seen) == ["rank 0 of 2", "rank 1 of 2"]
