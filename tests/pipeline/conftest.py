"""One finished run of the whole chain (tests/config/tiny.yaml) in a copy of the checkout.

The tests of this folder share it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
CONFIG = "tests/config/tiny.yaml"


class Checkout:
    """A copy of the checkout, and how to run things in it."""

    def __init__(self, folder, python=sys.executable):
        self.folder, self.python = folder, python
        self.run = folder / "results" / "tiny"
        # The copy's package, not the installed one; one thread, so that sums are in one order. Rules and
        # torchrun start `python`.
        path = os.pathsep.join(
            [str(Path(python).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": path, "PYTHON_EXEC": python}
        self.environment = os.environ | own

    def snakemake(self, *arguments, timeout=900):
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", CONFIG, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def stage(self, *arguments):
        return self.start([self.python, "-m", "minillm", *map(str, arguments)])

    def start(self, command, **environment):
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def finished(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("checkout") / "repo"
    ignored = shutil.ignore_patterns(".git", ".venv", "results", ".snakemake", "__pycache__", ".*_cache")
    shutil.copytree(REPO, folder, ignore=ignored)
    checkout = Checkout(folder, python)
    found = checkout.snakemake()
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return checkout
