"""A copied checkout in which Snakemake runs, and what the results there hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
LEFT_OUT = (".git", ".venv", ".faults", ".snakemake", "__pycache__", ".*_cache", "*.egg-info")
# Longer than any run of one stage of the tiny configuration on a busy machine.
LIMIT = 300
# What tells when or where something was made, or what it took.
VOLATILE = {"seconds", "wall_seconds", "peak_memory_mb", "hosts"}
# Hashes of what holds these, in the files that do.
VOLATILE |= {"record_sha256", "metrics.jsonl"}
COSTS = re.compile(rb",(?:\w+_hours|memory_gb|tokens_per_second),")


@dataclass(frozen=True)
class Ended:
    """A finished command; `status` is None if it was ended because it took longer than LIMIT."""

    status: int | None
    output: str


class Checkout:
    """A copy of the checkout; commands run in its root, with the copy's package."""

    def __init__(
        self, folder: Path, configs: Sequence[str], python: str = sys.executable, cores: str = "1"
    ) -> None:
        """`configs`: configuration files, relative to the root; `python`: what rules and torchrun start."""
        self.folder, self.configs, self.python, self.cores = folder, tuple(configs), python, cores
        self.outputs: dict[int, Path] = {}
        names = [yaml.safe_load((folder / path).read_text(encoding="utf-8")).get("run") for path in configs]
        self.run = folder / "results" / next(name for name in reversed(names) if name)
        path = os.pathsep.join(
            [str(Path(python).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        # One thread, so that sums are in one order.
        own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.environment = os.environ | own | {"PATH": path, "PYTHON_EXEC": python}

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """The documented command, in a process group of its own; its output goes to a file."""
        command = [sys.executable, "-m", "snakemake", *options, "--cores", self.cores, "--show-failed-logs"]
        number = len(list(self.folder.glob("output-*")))
        with open(self.folder / f"output-{number}", "wb") as file:
            process = subprocess.Popen(
                [*command, "--configfile", *self.configs],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.outputs[process.pid] = self.folder / f"output-{number}"
        return process

    def finish(self, process: subprocess.Popen[bytes], limit: float = LIMIT) -> Ended:
        """Wait for a started command, or end everything that runs here after `limit` seconds."""
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            self.end_all()
            process.wait()
            status = None
        return Ended(status, self.outputs[process.pid].read_text(encoding="utf-8", errors="replace"))

    def snakemake(self, *options: str, limit: float = LIMIT) -> Ended:
        """The documented command, to its end."""
        return self.finish(self.start(*options), limit)

    def processes(self) -> list[int]:
        """Running processes whose working folder is here (as /proc shows it)."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(self.folder):
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    def stage_processes(self) -> list[int]:
        """Those of a stage that were started as one: `python -m minillm ...`, torchrun and its ranks."""
        found = []
        for pid in self.processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if {b"minillm", b"--report"} & set(words):
                found.append(pid)
        return found

    def send(self, number: int, pids: Sequence[int]) -> None:
        """A signal to each process that is still there."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def end_all(self) -> None:
        """SIGKILL to all that runs here, as in a power cut."""
        while pids := self.processes():
            self.send(signal.SIGKILL, pids)
            time.sleep(0.05)

    def wait_until_idle(self, limit: float = LIMIT) -> bool:
        """Whether everything that runs here ended within `limit` seconds."""
        end = time.monotonic() + limit
        while self.processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


def copied(source: Path, folder: Path) -> Path:
    """A copy of a checkout or of a finished run's checkout, times kept; an earlier copy is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    if source == REPO:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*LEFT_OUT, "results"))
    else:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__", "output-*"))
    return folder


def contents(run: Path) -> dict[str, str]:
    """Path below a run's folder -> hash of what the file says, apart from times, memory and hosts.

    Left out: logs and benchmarks, and the table and report that show times (they must exist and be whole).
    """
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name.startswith(("logs/", "benchmarks/")) or path.name == ".snakemake_timestamp":
            continue
        found[name] = hashlib.sha256(_said(path, name)).hexdigest()
    return found


def _said(path: Path, name: str) -> bytes:
    content = path.read_bytes()
    if name == "report.html":
        return content.rstrip()[-len(b"</html>") :]
    if name.startswith("tables/cost.") or name == "checklist.md":
        return b"" if not content else b"times"
    if name == "metrics.csv":
        return b"\n".join(line for line in content.split(b"\n") if not COSTS.search(line))
    if path.name not in ("provenance.json", "metrics.jsonl") and not re.match(
        "(tables|figures)/.*json", name
    ):
        return content
    try:
        text = content.decode()
        values = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    except ValueError:
        return content
    return "\n".join(json.dumps(_lasting(value)) for value in values).encode()


def _lasting(value: object) -> object:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in VOLATILE}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is missing, new or different, one short text each."""
    missing = [f"{name} is missing" for name in before if name not in after]
    new = [f"{name} was left behind" for name in after if name not in before]
    return (
        missing
        + new
        + [f"{name} differs" for name in before if after.get(name, before[name]) != before[name]]
    )
