"""Every command of docs/running.md, in its order, on the test cluster.

They run as they stand there, in a copy of the checkout, where
- config/config.yaml is tests/config/slurm.yaml, of which MiniLLM and what follows are still to do, and
  config/demo.yaml is the same with the demo's names, nothing done yet: the paper and the demo themselves
  take longer than a test;
- `make install` is a dry run (it would download), and .venv a link to the environment that runs this test;
- the names of the jobs begin with a word of this test's own in place of `minillm`, so that a real run next to
  it is left alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIG, LOG, MODEL, PREFIX, REPO, TABLE, unfinished, until

TEXT = (REPO / "docs" / "running.md").read_text()
FENCED = r"^```(\w*)\n(.*?)^```$"
# A new block of commands breaks this line until a test below runs it (VLLM would download); blocks in a named
# language are none.
CUDA, VLLM, REPORT, VERIFY, FIRST, PAPER, QUEUE, STOP, KILLED, HARMLESS = (
    block for language, block in re.findall(FENCED, TEXT, re.DOTALL | re.MULTILINE) if not language
)
PROSE = re.sub(FENCED, "", TEXT, flags=re.DOTALL | re.MULTILINE)
# Whole commands in the text.
(PART,) = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE) if "--configfile" in code)
DEMO = "results/demo"


class Shell:
    """Runs commands of the page in the copied checkout, as someone does who has activated its environment."""

    def __init__(self, checkout):
        self.checkout, self.root = checkout, checkout.root
        settings = demo = (REPO / CONFIG).read_text()
        (self.root / "config" / "config.yaml").write_text(settings)
        for old, new in (
            ("tiny-", "demo-"),
            ("run: slurm", "run: demo"),
            ("collections: 30", "collections: 2"),
        ):
            demo = demo.replace(old, new)
        (self.root / "config" / "demo.yaml").write_text(demo)

    def run(self, commands: str, activated: bool = True, timeout: float = 600) -> str:
        """The output of `commands`, each of which must end well."""
        commands = commands.replace("^minillm", f"^{PREFIX}")
        script = "set -euo pipefail\n" + (". .venv/bin/activate\n" if activated else "") + commands
        kept = {key: value for key, value in self.checkout.environment.items() if key != "VIRTUAL_ENV"}
        with open(
            self.root / "commands.log", "w"
        ) as log:  # and no pipe, which what is left in the background would keep open
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=self.root,
                env=kept,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            )
        output = (self.root / "commands.log").read_text()
        assert done.returncode == 0, f"{commands}\n{output[-4000:]}"
        return output

    def snakemake(self) -> int | None:
        """Number of the process that PAPER has left in the background, as long as it is there."""
        try:
            number = int((self.root / "snakemake.pid").read_text())
            folder = os.readlink(f"/proc/{number}/cwd")
        except (OSError, ValueError):
            return None
        return number if folder == str(self.root) else None


@pytest.fixture(scope="module")
def shell(finished, tmp_path_factory):
    with unfinished(finished, tmp_path_factory.mktemp("docs") / "repo") as checkout:
        found = Shell(checkout)
        yield found
        number = found.snakemake()
        if number:
            os.kill(number, signal.SIGKILL)


def running(shell):
    """The number of MiniLLM's job, when it has saved."""
    until(lambda: shell.checkout.checkpoints(), what="a checkpoint of the on-policy stage")
    return next(number for number, state in shell.checkout.jobs().items() if state == "RUNNING")


def test_the_environment(shell):
    for command in (CUDA, FIRST.splitlines()[0]):
        assert command.startswith("make install TORCH_INDEX=URL")
        plan = shell.run(command.replace("make", "make -n"), activated=False)
        assert re.search(r"pip install --quiet 'torch==[\d.]+' --index-url 'URL'", plan), plan
    (shell.root / ".venv").symlink_to(Path(sys.executable).parent.parent)
    assert subprocess.run(["make", "-q", ".venv/.installed"], cwd=shell.root).returncode == 0, (
        "`make install` first"
    )


def test_a_first_run(shell):
    _, activate, partitions, dry, run = FIRST.splitlines()
    output = shell.run("\n".join([activate, partitions]), activated=False)
    assert re.search(r"^gpu\S* gpu:", output, re.MULTILINE)
    assert re.search(r"^total +\d+", shell.run(dry), re.MULTILINE)
    shell.run(run)
    assert (shell.root / DEMO / "report.html").is_file()


def test_the_report(shell):
    (shell.root / DEMO / "report.html").unlink()
    shell.run(REPORT)
    shell.run(VERIFY)
    assert (shell.root / DEMO / "report.html").is_file()


def test_a_part_of_a_run(shell):
    shell.run(PART)
    assert (shell.root / PART.split()[1] / "model.safetensors").is_file()


def test_the_paper_its_queue_and_how_to_stop(shell):
    plan, *start = PAPER.splitlines()
    assert re.search(r"^\| minillm \| 1 \|", shell.run(plan), re.MULTILINE)
    shell.run("\n".join(start))
    job = running(shell)
    assert re.search(rf"^{job} RUNNING \S+ {PREFIX}\S* rule_minillm", shell.run(QUEUE), re.MULTILINE)
    shell.run(STOP)
    until(lambda: not shell.snakemake(), what="the end of Snakemake")
    assert shell.checkout.jobs()[job] == "CANCELLED"
    assert shell.checkout.checkpoints() and "stopped by a signal after step" in shell.checkout.read(LOG)


def test_after_a_kill_of_snakemake(shell, finished):
    shell.run("\n".join(PAPER.splitlines()[1:]))
    before = len(shell.checkout.checkpoints())
    until(lambda: "RUNNING" in shell.checkout.jobs().values(), what="the job to run")
    number = shell.snakemake()
    assert before and number
    os.kill(number, signal.SIGKILL)
    shell.run(KILLED)
    assert sorted(shell.checkout.jobs().values()) == ["CANCELLED", "CANCELLED", "COMPLETED"]
    for path in (f"{MODEL}/model.safetensors", TABLE):
        assert (shell.root / path).read_bytes() == (finished.root / path).read_bytes()


def test_a_harmless_edit(shell):
    rule = shell.root / "rules" / "minillm.smk"
    before = rule.read_text()
    rule.write_text(before.replace('" --teacher {input', '"  --teacher {input'))
    assert rule.read_text() != before
    which, accept = HARMLESS.splitlines()
    assert re.search(r"^minillm +1$", shell.run(which), re.MULTILINE)
    shell.run(accept)
    assert "Nothing to be done" in shell.run(which)
