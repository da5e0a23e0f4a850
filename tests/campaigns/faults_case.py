"""A stage of a copied finished run, disturbed and run again."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults_checkout import LIMIT, Checkout, Ended, contents, differences
from faults_stages import Stage

EXACT, STATED, FAILED, SKIPPED = "exact", "stated", "failed", "skipped"
# A clear line: of a stage, or of the workflow; and what Snakemake itself says of locks and clocks.
LINES = (
    r"^\s*minillm(?: [\w-]+)?: error: .+",
    r"^Error: .+",
    r".*(?:cannot be locked|clock skew|Read-only file system|older than).*",
)
TRACEBACK = r"^ *Traceback \(most recent call last\):\n((?: .*\n)+)(\S.*)$"


@dataclass
class Outcome:
    """How a fault ended: one of EXACT, STATED, FAILED, SKIPPED; what was done; what was seen."""

    how: str
    what: str
    seen: str = ""


class Failed(Exception):
    """The fault ended as it must not."""


class Case:
    """A stage of a copied finished run: what it made is removed, so that it will run."""

    def __init__(self, checkout: Checkout, stage: Stage, expected: dict[str, str], seconds: float) -> None:
        """`expected`: contents of the undisturbed run; `seconds`: how long the stage takes undisturbed."""
        self.checkout, self.stage, self.expected, self.seconds = checkout, stage, expected, seconds
        self.targets = [f"{checkout.run.relative_to(checkout.folder)}/{path}" for path in stage.outputs]
        self.run = checkout.run
        self.printed: list[str] = []

    def clear(self) -> None:
        """Remove what the stage made."""
        for path in (*self.stage.outputs, self.stage.log):
            remove(self.run / path)

    def snakemake(self) -> Ended:
        """The command for this stage, to its end."""
        return self.noted(self.checkout.snakemake(*self.targets))

    def noted(self, ended: Ended) -> Ended:
        """`ended`, kept for the report of a failure; raises Failed after a traceback or a hang."""
        self.printed.append(ended.output)
        if ended.status is None:
            raise Failed(f"did not end within {LIMIT} seconds")
        for frames, error in re.findall(TRACEBACK, ended.output, re.MULTILINE):
            # torchrun's own report of a process that was killed.
            if error.startswith("torch.distributed.elastic."):
                continue
            # Ctrl-C while Python still imports: nothing of ours has begun.
            if error != "KeyboardInterrupt" or "in run_stage" in frames:
                raise Failed(f"a traceback: {error[:300]}")
        return ended

    def begun(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the stage's process is there; False if the command ended before."""
        log = self.run / self.stage.log
        return self.wait_for(process, lambda: log.exists() and self.checkout.stage_processes())

    def wait_for(self, process: subprocess.Popen[bytes], seen: Callable[[], object]) -> bool:
        """Wait until something is seen; False if the command ended before, or nothing was in time."""
        end = time.monotonic() + LIMIT
        while not seen():
            if process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def again(self, stated: str = "") -> tuple[str, str]:
        """The same command; (EXACT, or STATED if `stated` says what was lost; what was seen).

        Raises Failed if it does not end well, or files are not those of the undisturbed run.
        """
        if not self.checkout.wait_until_idle():
            raise Failed(f"processes are left: {self.checkout.processes()}")
        ended = self.snakemake()
        if ended.status and "cannot be locked" in ended.output:
            # As the documentation says.
            self.noted(self.checkout.snakemake("--unlock"))
            ended = self.snakemake()
        if ended.status:
            raise Failed(f"the same command ends with {ended.status}: {line_of(ended.output)}")
        self.compare()
        return (STATED, stated) if stated else (EXACT, "")

    def compare(self) -> None:
        """Raises Failed if files are not those of the undisturbed run."""
        different = differences(self.expected, contents(self.run))
        if different:
            raise Failed(f"{len(different)} files: {'; '.join(different[:4])}")


def line_of(output: str) -> str:
    """The clear line in what a command printed; "" if there is none."""
    for pattern in LINES:
        if found := re.findall(pattern, output, re.MULTILINE):
            return " ".join(found[-1].split())[:400]
    return ""


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
