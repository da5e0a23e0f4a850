"""The thread that watches over the other ranks ends with the stage."""

import os
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from minillm.runtime.processes import Watch


def test_a_rank_is_silent_after_its_patience_and_the_thread_can_be_stopped():
    watch = Watch(0, 2, 600, dist.HashStore())
    assert watch._thread.is_alive()
    watch.stop()
    assert not watch._thread.is_alive()
    now = time.monotonic()  # from here on nothing else looks
    assert watch.look(now) == []
    assert [line.split(" for 6")[0] for line in watch.look(now + 601)] == ["rank 1 gave no sign of life"]


def test_the_thread_is_stopped_before_the_interpreter_ends():
    """A process whose thread is about to call torch every few milliseconds ends well.

    It says so after the thread.
    """
    code = (
        "import atexit\nimport torch.distributed as dist\nfrom minillm.runtime.processes import Watch\n"
        "atexit.register(lambda: print(watch._thread.is_alive()))\n"
        "watch = Watch(0, 1, 0.004, dist.HashStore())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "False")


@pytest.mark.parametrize("status", [0, 3])
def test_leaving_runs_what_is_to_run_at_exit_and_keeps_the_status(status):
    """A thread of torch's kind, that would come back to an interpreter that is gone, is not waited for."""
    code = (
        "import atexit, threading, time\nfrom minillm.runtime.processes import leave\n"
        "atexit.register(lambda: print('at exit'))\n"
        f"threading.Thread(target=time.sleep, args=(60,)).start()\nprint('done')\nleave({status})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (status, ["done", "at exit"])


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["nothing"], 2)])
def test_the_command_line_as_one_of_several_processes(arguments, status):
    command = [sys.executable, "-m", "minillm", *arguments]
    done = subprocess.run(
        command, env=os.environ | {"WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status and "usage: " in done.stdout + done.stderr


def test_freed_memory_is_kept_and_used_again():
    """96 MB where 128 MB were freed come without a page of the system's.

    Before, each of their 24,576 pages was one.
    """
    code = (
        "import resource, torch\nfrom minillm.runtime.processes import keep_freed_memory\n"
        "def faults(size):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.empty(size, dtype=torch.uint8).fill_(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "def second():\n    faults(2**27)\n    return faults(3 * 2**25)\n"
        "print(second())\nkeep_freed_memory()\nprint(second())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    before, after = map(int, done.stdout.split())
    if before < 1000:
        pytest.skip("the C library keeps blocks of 128 MB by itself, or takes huge pages for them")
    assert after < before / 10
