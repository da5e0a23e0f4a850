"""The chain on a cluster, and what goes wrong there: each ends in the weights of an undisturbed run.

Slow: `make test-slurm`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import CONFIG, LOG, MODEL, RUN, TABLE, output_of, unfinished, until

ON_NODES = {"data": 1, "testset": 1, "base": 2, "teacher": 1, "sft": 1, "minillm": 1, "generate": 3}
TEACHER = f"{RUN}/models/tiny-teacher/teacher"


def weights(checkout, model=MODEL):
    return hashlib.sha256((checkout.root / model / "model.safetensors").read_bytes()).hexdigest()


def table(checkout):
    return list(csv.DictReader((checkout.root / TABLE).open()))


def disturbed(checkout, *options, after=1, config=CONFIG):
    """Start the run; its MiniLLM job when that has saved `after` times."""
    process = checkout.start(*checkout.cluster(TABLE, config=config), *options)
    until(
        lambda: len(checkout.checkpoints()) >= after or process.poll() is not None,
        what="a checkpoint of the on-policy stage",
    )
    assert process.poll() is None, checkout.log()[-4000:]
    return process, checkout.submitted()[-1]


def ends_well(checkout, finished, process):
    """The run resumes from a checkpoint by itself and ends in the undisturbed run's weights and table."""
    assert process.wait(timeout=600) == 0, checkout.log()[-4000:]
    assert re.search(r"resumes from step \d+ of", checkout.read(LOG))
    same_result(checkout, finished)


def same_result(checkout, finished):
    assert weights(checkout) == weights(finished)
    assert table(checkout) == table(finished)
    assert not checkout.checkpoints()


# --- an undisturbed run
def test_ten_jobs_and_every_table_and_figure(finished):
    log = finished.read("undisturbed.log")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", log, re.MULTILINE))
    assert {rule: int(counts[rule]) for rule in ON_NODES} == ON_NODES and sum(ON_NODES.values()) == 10
    submitted = re.findall(r"SLURM jobid (\d+)", log)
    assert len(submitted) == len(set(submitted)) == 8, "the three models' answers are one job"
    assert (finished.root / RUN / "report.html").is_file()


@pytest.mark.parametrize("model", [TEACHER, MODEL])
def test_on_two_nodes(finished, model):
    record = finished.json(f"{model}/provenance.json")
    assert record["world_size"] == 2 and len(set(record["hosts"])) == 2, record["hosts"]


def test_a_second_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in finished.snakemake(*finished.cluster())


def test_the_same_result_without_a_cluster(finished, tmp_path):
    """Two processes on one machine make the same sums, so that the weights are equal to the bit."""
    local = type(finished)(tmp_path / "repo")
    subprocess.run(["cp", "-a", str(finished.root), str(local.root)], check=True)
    subprocess.run(["rm", "-rf", str(local.root / RUN), str(local.root / ".snakemake")], check=True)

    def two_processes(config):
        config["launch"] |= {
            "teacher": {"processes": 2},
            "minillm": {**config["launch"]["minillm"], "processes": 2},
        }
        # One thread a process everywhere, as on the cluster.
        config["cores"] = dict.fromkeys(("base", "teacher", "sft", "minillm", "generate"), 1)

    local.snakemake(TABLE, "--cores", "2", "--configfile", local.edit(two_processes))
    for model in (TEACHER, MODEL):
        assert weights(local, model) == weights(finished, model), model
    assert table(local) == table(finished)


# --- disturbed runs
def test_a_cancelled_job(checkout, finished):
    process, job = disturbed(checkout)
    subprocess.run(["scancel", job], check=True)
    ends_well(checkout, finished, process)
    assert len(checkout.submitted()) == 2


def test_a_requeued_job(checkout, finished):
    process, job = disturbed(checkout)
    subprocess.run(["scontrol", "requeue", job], check=True)
    ends_well(checkout, finished, process)
    assert checkout.submitted() == [job], "the same job, not a new one"


def test_a_time_limit(checkout, finished, tmp_path):
    """SIGTERM comes before the limit: the stage saves, and the next attempt resumes.

    Slurm looks at limits every half minute only, so the stage is longer than in the other tests and has an
    undisturbed run of its own.
    """
    config = checkout.edit(lambda c: c["stages"]["minillm"].update(collections=200))
    with unfinished(finished, tmp_path / "undisturbed") as reference:
        shutil.copy(checkout.root / config, reference.root / config)
        reference.snakemake(*reference.cluster(TABLE, config=config))
    checkout.profile(minillm={"slurm_extra": "'--signal=TERM@30'"})
    process, job = disturbed(checkout, config=config)
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)
    ends_well(checkout, reference, process)
    assert len(checkout.submitted()) == 2
    assert re.search(r"stopped by a signal after step \d+ of", checkout.log())


def ranks(checkout):
    """Rank -> process number, of the training processes of this checkout's MiniLLM on this machine."""
    found = {}
    for line in output_of("ps", "-eo", "pid,args").splitlines():
        number, _, command = line.strip().partition(" ")
        if (
            " -m minillm minillm " in f" {command} "
            and "torchrun" not in command
            and "torch.distributed" not in command
        ):
            try:
                if os.readlink(f"/proc/{number}/cwd") != str(checkout.root):
                    continue
                with open(f"/proc/{number}/environ", "rb") as file:
                    values = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
            except OSError:
                continue
            if b"RANK" in values:
                found[int(values[b"RANK"])] = int(number)
    return found


def test_a_killed_rank(checkout, finished):
    process, _ = disturbed(checkout)
    os.kill(ranks(checkout)[1], signal.SIGKILL)
    ends_well(checkout, finished, process)
    assert len(checkout.submitted()) == 2


def test_a_killed_snakemake(checkout, finished):
    """docs/running.md: cancel what is still in the queue, unlock, run the same command again."""
    process, job = disturbed(checkout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkout.jobs()[job] == "RUNNING", "the job knows nothing of it"
    subprocess.run(["scancel", job], check=True)
    until(lambda: checkout.jobs()[job] not in ("RUNNING", "COMPLETING"), what="the end of the cancelled job")
    checkout.snakemake(*checkout.cluster(), "--unlock")
    again = checkout.start(*checkout.cluster(TABLE))
    until(lambda: len(checkout.jobs()) == 2, what="the second job")
    assert sorted(checkout.jobs().values())[0] == "CANCELLED"
    ends_well(checkout, finished, again)
    assert len(checkout.jobs()) == 2


def test_a_stopped_rank(checkout, finished):
    """Those that wait for it end the job and name it; the next attempt resumes."""
    config = checkout.edit(lambda c: c["launch"]["minillm"].update(patience=10))
    process, _ = disturbed(checkout, config=config)
    os.kill(ranks(checkout)[1], signal.SIGSTOP)
    stopped = time.monotonic()
    until(
        lambda: "rank 1 gave no sign of life for" in checkout.read(LOG), 60, "a message that names the rank"
    )
    assert time.monotonic() - stopped < 30
    place = r"(start|step \d+)"
    assert re.search(rf"error: rank 0 \(at: {place}\): rank 1 .* it was last at: {place}", checkout.read(LOG))
    ends_well(checkout, finished, process)
    assert len(checkout.submitted()) == 2


def test_a_damaged_checkpoint(checkout, finished):
    process, job = disturbed(checkout, "--retries", "0", after=2)
    subprocess.run(["scancel", job], check=True)
    assert process.wait(timeout=120) == 1
    before, newest = checkout.checkpoints()
    weights_of_rank_0 = sorted((newest / "deepspeed").glob("*model_states.pt"))[0]
    content = bytearray(weights_of_rank_0.read_bytes())
    content[len(content) // 2] ^= 1
    weights_of_rank_0.write_bytes(content)
    ends_well(checkout, finished, checkout.start(*checkout.cluster(TABLE)))
    log, name = checkout.read(LOG), newest.relative_to(checkout.root)
    assert (
        f"{name}: damaged checkpoint (deepspeed/{weights_of_rank_0.name}: not what was written); "
        "it is removed" in log
    )
    assert f"resumes from step {int(before.name.removeprefix('step-'))} of" in log


@pytest.fixture
def small_disk(checkout):
    """A disk of 64 MB in the place of the folder of checkpoints."""
    folder = checkout.root / RUN / "checkpoints"
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(checkout, finished, small_disk):
    process, _ = disturbed(checkout, "--retries", "0")
    with open(small_disk / "filler", "wb") as file:  # all but a little
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        file.write(bytes(free - 100_000))
    assert process.wait(timeout=120) == 1
    log = checkout.read(LOG)
    assert "minillm minillm: error: " in log and "free some space and run the same command again" in log
    kept = checkout.checkpoints()
    assert kept and not list(small_disk.glob("*/.partial*"))
    (small_disk / "filler").unlink()
    ends_well(checkout, finished, checkout.start(*checkout.cluster(TABLE)))
    assert f"resumes from step {int(kept[-1].name.removeprefix('step-'))} of" in checkout.read(LOG)


# --- an edit while a job waits
def test_an_edit_while_a_job_is_queued(checkout, finished, cluster):
    """The job takes the settings with which it was planned; the next run plans what the edit changes."""
    edited = checkout.edit(lambda config: None)
    command = [
        "sbatch",
        "--parsable",
        "-p",
        "gpu",
        "-N",
        str(len(cluster)),
        "--exclusive",
        "--wrap",
        "sleep 600",
    ]
    blocker = output_of(*command).strip()
    until(
        lambda: "RUNNING" in output_of("squeue", "-h", "-j", blocker, "-o", "%T"),
        what="a job that fills the cluster",
    )
    try:
        process = checkout.start(*checkout.cluster(TABLE, config=edited))
        until(lambda: "PENDING" in checkout.jobs().values(), what="a MiniLLM job that waits")
        checkout.edit(
            lambda config: [config["stages"][stage].update(lr=1.0e-4) for stage in ("minillm", "sft")]
        )
    finally:
        subprocess.run(["scancel", blocker], check=True)
    assert process.wait(timeout=600) == 0, checkout.log()[-4000:]
    assert checkout.json(f"{MODEL}/provenance.json")["settings"]["training"]["lr"] == 5.0e-4
    same_result(checkout, finished)
    plan = checkout.snakemake(*checkout.cluster(TABLE, config=edited), "-n", "--quiet", "rules")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", plan, re.MULTILINE))
    assert counts == {
        "settings": "2",
        "sft": "1",
        "minillm": "1",
        "generate": "2",
        "rouge": "2",
        "table": "1",
        "total": "9",
    }
