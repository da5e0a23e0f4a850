"""A Slurm cluster of two nodes with GPUs, and a copied checkout that runs on it.

The cluster is the one at hand, or one that is started here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CONFIG = "tests/config/slurm.yaml"
RUN = "results/slurm"
MODEL = f"{RUN}/models/tiny-student/minillm/tiny-teacher/seed10"
TABLE = f"{RUN}/tables/main.csv"
LOG = f"{RUN}/logs/minillm/tiny-student/tiny-teacher/seed10.log"
# Of the jobs' names, so that those of a real run next to it are told apart.
PREFIX = f"minillm-test-{os.getpid()}"


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Names of the nodes of a partition `gpu` with at least two."""
    state = None
    if not shutil.which("sinfo") or "gpu" not in output_of("sinfo", "-h", "-o", "%P"):
        state = str(tmp_path_factory.mktemp("slurm"))
        started = subprocess.run(
            ["bash", str(HERE / "up.sh"), state], capture_output=True, text=True, check=False
        )
        if started.returncode == 3:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
    nodes = output_of("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N").split()
    if len(nodes) < 2:
        pytest.skip("the partition gpu has fewer than two nodes")
    yield nodes
    if state:
        subprocess.run(["bash", str(HERE / "down.sh"), state], check=True)


class Checkout:
    """A copy of the checkout whose profile asks for what the test cluster has.

    Every method runs in its root.
    """

    def __init__(self, root: Path):
        self.root = root
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE_", "SLURM_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | {"PYTHONPATH": str(root), "PATH": path}

    def profile(self, **resources: dict) -> None:
        """slurm/config.yaml with small jobs, and with `resources` of single rules on top.

        Its lines for models of 13B hold for tiny-teacher.
        """
        profile = yaml.safe_load((REPO / "slurm" / "config.yaml").read_text().replace("'13b'", "'-teacher'"))
        profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
        rules = profile["set-resources"]
        profile["set-resources"] = {
            rule: values | {"gres": "gpu:1", "mem_mb": 3000} | resources.get(rule, {})
            for rule, values in rules.items()
        }
        profile["slurm-jobname-prefix"] = PREFIX
        # The cluster answers at once, and its files are on one disk.
        profile |= {
            "latency-wait": 10,
            "slurm-init-seconds-before-status-checks": 3,
            "seconds-between-status-checks": 3,
        }
        (self.root / "slurm" / "config.yaml").write_text(yaml.safe_dump(profile))

    def edit(self, change, name: str = "edited.yaml") -> str:
        """The test's configuration after `change` as a new file; its name."""
        config = yaml.safe_load((self.root / CONFIG).read_text())
        change(config)
        (self.root / name).write_text(yaml.safe_dump(config))
        return name

    def start(self, *arguments: str) -> subprocess.Popen:
        """`snakemake --profile slurm` in the background, its output in snakemake.log."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        with open(self.root / "snakemake.log", "w") as log:
            return subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def snakemake(self, *arguments: str, timeout: float = 900) -> str:
        """The same to its end, which must be good; the output."""
        process = self.start(*arguments)
        code = process.wait(timeout=timeout)
        assert code == 0, self.log()[-6000:]
        return self.log()

    def cluster(self, *targets: str, config: str = CONFIG) -> tuple[str, ...]:
        return (*targets, "--profile", "slurm", "--configfile", config)

    def log(self) -> str:
        return (self.root / "snakemake.log").read_text()

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def json(self, path: str) -> dict:
        return json.loads(self.read(path))

    def jobs(self) -> dict[str, str]:
        """Number -> state of the jobs in Slurm of this run's MiniLLM stage, ended ones included."""
        found = {}
        for line in output_of("squeue", "-h", "--states=all", "-o", "%i|%T|%k|%Z").splitlines():
            number, state, comment, folder = line.split("|")
            if comment.startswith("rule_minillm") and "tiny-student" in comment and folder == str(self.root):
                found[number] = state
        return found

    def submitted(self) -> list[str]:
        """Numbers of the jobs of the rule minillm that Snakemake's output names, in order."""
        return re.findall(r"SLURM jobid (\d+) .*rule_minillm", self.log())

    def checkpoints(self) -> list[Path]:
        return sorted((self.root / RUN / "checkpoints").glob("minillm-*/step-*"))


def until(condition, seconds: float = 180, what: str = ""):
    """The first true value of `condition`, asked four times a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.25)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@pytest.fixture(scope="session")
def finished(cluster, tmp_path_factory):
    """A run that nothing disturbed, all tables and figures."""
    root = tmp_path_factory.mktemp("undisturbed") / "repo"
    ignored = shutil.ignore_patterns(".git", ".venv", "results", ".snakemake", "__pycache__", ".*_cache")
    shutil.copytree(REPO, root, ignore=ignored)
    (root / "results").mkdir()
    checkout = Checkout(root)
    checkout.profile()
    (root / "undisturbed.log").write_text(checkout.snakemake(*checkout.cluster()))
    return checkout


@pytest.fixture
def checkout(finished, tmp_path):
    with unfinished(finished, tmp_path / "repo") as found:
        yield found


@contextmanager
def unfinished(finished, root: Path):
    """The finished run as far as MiniLLM's initial student.

    The model of the on-policy stage and what follows from it are still to do.
    """
    shutil.copytree(finished.root, root, symlinks=True)
    shutil.rmtree(root / MODEL)
    for folder in ("generations", "metrics/*"):  # all of them: what is there already needs no model
        for path in (root / RUN).glob(f"{folder}/tiny-student/minillm"):
            shutil.rmtree(path)
    (root / TABLE).unlink()
    found = Checkout(root)
    found.profile()
    yield found
    ours = [number for number, state in found.jobs().items() if state in ("PENDING", "RUNNING", "COMPLETING")]
    if ours:
        subprocess.run(["scancel", *ours], check=False)
