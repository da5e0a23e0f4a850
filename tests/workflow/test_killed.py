"""Snakemake itself is killed while a job runs; and results are damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

CONFIG = ("--configfile", "tests/config/plan.yaml")


def test_the_same_command_works_after_snakemake_was_killed(checkout) -> None:
    """After `--unlock`, as the README says; the job that was running is run again."""
    # A run that no other test has made.
    config = ("--configfile", checkout.write("killed.yaml", lambda c: c.update(run="killed")))
    target = "results/killed/data/letters/training"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target, *config]
    environment = checkout.environment | {"STUB_HANGS_IN": "data"}
    killed = subprocess.Popen(command, cwd=checkout.root, env=environment, start_new_session=True)
    made = checkout.root / target / "made"
    try:
        deadline = time.monotonic() + 120
        while not made.exists():
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    made.unlink()
    checkout.snakemake("--unlock", *config)
    checkout.snakemake("--cores", "1", target, *config)
    assert made.exists()


def test_damaged_results_stop_no_command(finished) -> None:
    run = finished.root / "results/plan"
    damage = {
        "tables/main.md": b"|\n",
        "tables/table2.json": b"\xff{",
        "figures/figure1.json": b'{"caption": 3}',
    }
    before = {path: (run / path).read_bytes() for path in damage}
    times = {path: (run / path).stat() for path in damage}
    try:
        for path, content in damage.items():
            (run / path).write_bytes(content)
        for options in (["--unlock"], ["-n", "--cores", "1"]):
            done = finished.snakemake(*options, *CONFIG, check=False)
            assert done.returncode == 0, done.stdout
    finally:
        for path, content in before.items():
            (run / path).write_bytes(content)
            os.utime(run / path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
