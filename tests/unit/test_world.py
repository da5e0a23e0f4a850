"""The thread that watches over the other ranks ends with the stage."""

import subprocess
import sys
import time

import torch.distributed as dist

from minillm.world import Watch


def test_a_rank_is_silent_after_its_patience_and_the_thread_can_be_stopped():
    watch = Watch(0, 2, 600, dist.HashStore())
    now = time.monotonic()
    assert watch.look(now) == []
    assert watch.look(now + 601)[0].startswith("rank 1 gave no sign of life for 601 s")
    assert watch._thread.is_alive()
    watch.stop()
    assert not watch._thread.is_alive()


def test_the_thread_is_stopped_before_the_interpreter_ends():
    """A process whose thread is about to call torch every few milliseconds ends well, and says so after the thread."""
    code = (
        "import atexit\nimport torch.distributed as dist\nfrom minillm.world import Watch\n"
        "atexit.register(lambda: print(watch._thread.is_alive()))\nwatch = Watch(0, 1, 0.004, dist.HashStore())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "False")
