"""A checkpoint in DeepSpeed's universal form, which any number of processes can load.

Rank 0 has it converted in a process of its own (convert.py).  The others do not wait inside one collective,
which would end after half an hour: all ranks meet every few seconds and ask whether it is done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minillm.runtime import checkpoints, trust
from minillm.runtime.checkpoints import Checkpoint
from minillm.runtime.processes import World

TAG, PARTIAL = "universal", ".universal"
# Seconds between two looks, at most.
PAUSE = 2.0
# Room that the conversion takes, in sizes of the checkpoint.
ROOM = 1.2


def universal(checkpoint: Checkpoint, world: World, say: Callable[[str], None]) -> str:
    """Tag of the checkpoint in the universal form; what an earlier attempt has finished is kept.

    Raises UserError on every rank if the disk is full or DeepSpeed cannot convert it.
    """
    folder = checkpoint.folder
    target, partial = folder / TAG, folder / PARTIAL
    advice = f"{folder}: cannot be converted for {world.size} processes; use {checkpoint.processes} again"
    if not checkpoints.check(target, world, named=False)[1]:
        return TAG
    say(f"{folder.name}: saved by {checkpoint.processes} processes, converted for {world.size}")
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        if world.rank == 0:
            # Not as it was written: it has no manifest, or another.
            shutil.rmtree(target, ignore_errors=True)
            check_room(folder / "deepspeed", partial)
            with trust.only_ours():
                running.append(start(folder / "deepspeed", partial))

    def finish() -> None:
        if running:
            if running[0].returncode:
                raise RuntimeError(last_line(partial / "log"))
            shutil.rmtree(partial / "finished", ignore_errors=True)
            os.replace(partial, target)

    world.together(begin, advice)
    pause = PAUSE / 32
    while world.gather(running[0].poll() if running else None)[0] is None:
        time.sleep(pause)
        pause = min(PAUSE, 2 * pause)
    world.together(finish, advice)
    checkpoints.seal(target, checkpoint.step, checkpoint.zero, world, advice, {})
    return TAG


def check_room(source: Path, partial: Path) -> None:
    """Raises OSError if what is left to convert of the folder `source` may not fit on the disk."""
    there = size_of(partial)
    needed = ROOM * size_of(source) - there
    free = shutil.disk_usage(source).free
    if free < needed:
        raise OSError(f"the conversion needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")


def size_of(folder: Path) -> int:
    """Bytes of all files below it; 0 if there is no such folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def start(source: Path, partial: Path) -> subprocess.Popen[bytes]:
    """The process that converts; it must not take itself for a rank."""
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    command = [sys.executable, "-m", "minillm.runtime.convert", str(source), str(partial)]
    partial.mkdir(exist_ok=True)
    with open(partial / "log", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
