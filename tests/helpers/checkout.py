"""A copied checkout, and what Snakemake does and plans in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PLAN = "tests/config/plan.yaml"
LEFT_OUT = (".git", ".venv", ".faults", "results", ".snakemake", "__pycache__", ".*_cache", "*.egg-info")
JOB = r"^(?:local)?rule (\w+):\n(?:    (?!wildcards).*\n)*(?:    wildcards: (.*)\n)?"


class Checkout:
    """A copied checkout; every method runs Snakemake in its root."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def environment(self) -> dict[str, str]:
        """The copy's package, a torch that cannot be imported, and nothing of a cluster."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE_", "SLURM_"))
        }
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = os.pathsep.join([str(self.root), str(self.root / "no_torch")])
        return environment

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Snakemake with its output (stdout and stderr together); with `check`, fails with that output."""
        run = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if check:
            assert run.returncode == 0, run.stdout
        return run

    def planned(self, *arguments: str, config: str = PLAN) -> set[str]:
        """The jobs that a dry run plans, as "rule wildcard=value ..."; `all` is left out."""
        output = self.snakemake("-n", "--cores", "2", *arguments, "--configfile", config).stdout
        jobs = [
            " ".join([rule, *(w for w in (wildcards or "").split(", ") if w)])
            for rule, wildcards in re.findall(JOB, output, re.MULTILINE)
            if rule != "all"
        ]
        assert len(jobs) == len(set(jobs))
        return set(jobs)

    def write(
        self, name: str, edit: Callable[[dict[str, Any]], object] = lambda config: None, **options: Any
    ) -> str:
        """plan.yaml after `edit` as a new file (with options of yaml.safe_dump); its name."""
        config = yaml.safe_load((self.root / PLAN).read_text())
        edit(config)
        (self.root / name).write_text(yaml.safe_dump(config, **{"sort_keys": False, **options}))
        return name
