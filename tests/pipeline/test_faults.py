"""What goes wrong on a cluster.

A damaged checkpoint, a full disk, another number of processes, a process that stands still.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

STUDENT, TEACHER = "tiny-student", "tiny-teacher"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]


def minillm(checkout, out, **launch):
    """The arguments of the on-policy stage, and where an uninterrupted run has left its model."""
    run, models = checkout.run, checkout.run / "models"
    values = {"micro_batch": 4, "eval_batch": 16, "save_every": 1, "log_every": 1, **launch}
    arguments = [
        *("minillm", "--config", run / f"configs/minillm/{STUDENT}/{TEACHER}/10.json"),
        *("--data", run / "data/embedded/training", "--init", models / STUDENT / "init/seed10"),
        *("--teacher", models / TEACHER / "teacher", "--out", out / "model"),
        *("--checkpoints", out / "checkpoints", "--launch", json.dumps(values)),
    ]
    return list(map(str, arguments)), models / STUDENT / "minillm" / TEACHER / "seed10"


def start(checkout, arguments, processes=1):
    return checkout.start(
        [checkout.python, *(TORCHRUN if processes > 1 else []), "-m", "minillm", *arguments]
    )


def wait_for_checkpoints(process, folder, count):
    deadline = time.monotonic() + 180
    while len(list(folder.glob("*/step-*"))) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint within three minutes"
        time.sleep(0.02)


def interrupted(checkout, arguments, folder, processes=1, checkpoints=1):
    """The stage, killed after it has saved."""
    process = start(checkout, arguments, processes)
    wait_for_checkpoints(process, folder, checkpoints)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    assert process.returncode != 0


def finish(checkout, arguments, processes=1):
    process = start(checkout, arguments, processes)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output[-4000:]
    return output


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(finished, tmp_path):
    arguments, original = minillm(finished, tmp_path)
    interrupted(finished, arguments, tmp_path / "checkpoints", checkpoints=2)
    before, newest = sorted(tmp_path.glob("checkpoints/*/step-*"))
    weights = next((newest / "deepspeed").glob("*model_states.pt"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    output = finish(finished, arguments)
    assert f"{newest}: damaged checkpoint (deepspeed/{weights.name}: not what was written)" in output
    assert f"resumes from step {int(before.name.removeprefix('step-'))} of" in output
    assert (tmp_path / "model/model.safetensors").read_bytes() == (
        original / "model.safetensors"
    ).read_bytes()


def test_another_number_of_processes_goes_on(finished, tmp_path):
    """In the whole stage; the other ZeRO stages, and more processes after fewer: test_zero.py."""
    first, then = 2, 1
    arguments, original = minillm(finished, tmp_path, zero=3)
    interrupted(finished, arguments, tmp_path / "checkpoints", first)
    other = start(finished, minillm(finished, tmp_path, zero=1)[0], then)
    assert (
        "was saved under ZeRO 3, which 1 cannot resume; set zero: 3, or delete"
        in other.communicate(timeout=180)[0]
    )
    assert other.returncode == 2
    output = finish(finished, arguments, then)
    assert f"saved by {first} processes, converted for {then}" in output and "resumes from step" in output
    assert json.loads((tmp_path / "model/provenance.json").read_text())["world_size"] == then
    weights, expected = (
        load_file(tmp_path / "model/model.safetensors"),
        load_file(original / "model.safetensors"),
    )
    assert weights.keys() == expected.keys()
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) < 1e-4


def test_a_process_that_stands_still_ends_the_stage_with_its_rank(finished, tmp_path):
    arguments, _ = minillm(finished, tmp_path, patience=5)
    # Processes that are torchrun's own children, so that they can be found and stopped.
    command = [sys.executable, *TORCHRUN, "-m", "minillm", *arguments]
    process = finished.start(command, PYTHON_EXEC=sys.executable)
    wait_for_checkpoints(process, tmp_path / "checkpoints", 1)
    found = subprocess.run(
        ["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[1:]
    children = [int(line.split()[0]) for line in found if line and int(line.split()[1]) == process.pid]
    ranks = {}
    for child in children:
        with open(f"/proc/{child}/environ", "rb") as file:
            values = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        if b"RANK" in values:
            ranks[int(values[b"RANK"])] = child
    os.kill(ranks[1], signal.SIGSTOP)
    stopped = time.monotonic()
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and time.monotonic() - stopped < 90
    assert (
        "error: rank 0" in output
        and "rank 1 gave no sign of life for" in output
        and "it was last at: " in output
    )
    arguments, original = minillm(finished, tmp_path)
    finish(finished, arguments, 2)
    assert (tmp_path / "model/model.safetensors").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_last_checkpoint(finished, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted: {made.stderr.strip()}")
    try:
        arguments, original = minillm(finished, small)
        interrupted(finished, arguments, small / "checkpoints")
        kept = sorted(small.glob("checkpoints/*/step-*"))
        with open(small / "filler", "wb") as file:  # all but a little
            free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
            file.write(bytes(free - 100_000))
        process = start(finished, arguments)
        output = process.communicate(timeout=180)[0]
        assert process.returncode == 2 and "could not be saved; free some space" in output, output
        assert output.rstrip().split("\n")[-1].startswith("minillm minillm: error: ")
        assert sorted(small.glob("checkpoints/*/step-*")) == kept and not list(
            small.glob("checkpoints/*/.partial*")
        )
        (small / "filler").unlink()
        finish(finished, arguments)
        assert (small / "model/model.safetensors").read_bytes() == (
            original / "model.safetensors"
        ).read_bytes()
    finally:
        subprocess.run(["umount", str(small)], check=True)
