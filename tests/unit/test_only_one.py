"""Files that one process makes at a time."""

import subprocess
import sys
import time

import pytest

from minillm.errors import UserError
from minillm.files import only_one

HOLD = """
import sys, time
from minillm.files import only_one
with only_one(sys.argv[1]):
    print(flush=True)
    time.sleep({})
"""


def other_process(path, seconds):
    """A process that makes `path` for so many seconds, and has begun."""
    command = [sys.executable, "-c", HOLD.format(seconds), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_second_process_waits_for_the_first(tmp_path):
    other = other_process(tmp_path / "model", 2)
    begun = time.monotonic()
    with only_one(tmp_path / "model"):
        assert time.monotonic() - begun > 1 and other.wait(10) == 0
    assert not list(tmp_path.iterdir())


def test_a_second_process_ends_in_one_line_if_the_first_goes_on(tmp_path):
    other = other_process(tmp_path / "model", 60)
    try:
        said = "model: another process is making it, .* or end it, and run"
        with pytest.raises(UserError, match=said), only_one(tmp_path / "model", patience=0.2):
            raise AssertionError("both make it")
        with only_one(tmp_path / "another"):
            pass
    finally:
        other.kill()
        other.wait()
    # A killed process holds nothing.
    with only_one(tmp_path / "model", patience=0):
        pass
