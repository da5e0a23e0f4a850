"""Checkpoints of a training run: whole or not there, verified by hash, and taken up by any number of processes.

A checkpoint is a folder step-NNNNNNN: DeepSpeed's files, the random states of each rank, the loop's state, and a manifest with the hash
of each.  The folder gets its name when all of it is written.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.files import sha256
from minillm.runtime.processes import World, leave

KEPT = 2  # the newest, and the one before in case the newest is damaged
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, and how the run that saved it was spread."""

    folder: Path
    step: int
    processes: int
    zero: int


@contextmanager
def saving(folder: Path, step: int, zero: int, needed: int, world: World) -> Iterator[Path]:
    """A folder to write into (every rank its own files); it becomes the checkpoint of `step` when the block ends well.

    `needed` bytes must be free.  Raises UserError on every rank where the disk is full or a rank could not write; what was saved before
    stays.
    """
    final, partial = folder / f"step-{step:07d}", folder / f".partial-{step:07d}"
    advice = f"{folder}: step {step} could not be saved; free some space and run the same command again: it goes on from the last checkpoint"

    def begin() -> None:
        if world.rank == 0:
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise OSError(f"a checkpoint needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")
            partial.mkdir(parents=True)

    def finish() -> None:
        if world.rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in sorted(folder.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old)

    try:
        world.together(begin, advice)
        written: list[Exception] = []
        try:
            yield partial
        except (OSError, RuntimeError) as error:
            if world.size > 1:  # the others wait for this rank inside of DeepSpeed: torchrun ends them
                print(
                    f"minillm: error: {advice}: rank {world.rank}: {error}".split("\n")[0],
                    file=sys.stderr,
                    flush=True,
                )
                leave(2)
            written.append(error)

        def write() -> None:
            if written:
                raise written[0]

        world.together(write, advice)
        seal(partial, step, zero, world, advice)
        world.together(finish, advice)
    finally:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)


def seal(folder: Path, step: int, zero: int, world: World, advice: str) -> None:
    """The manifest: hashes of all files, each rank a share of the work."""
    hashes: dict[str, str] = {}

    def read() -> None:
        hashes.update({name: sha256(folder / name) for name in _share(_names(folder), world)})

    world.together(read, advice)
    whole = {name: digest for part in world.gather(hashes) for name, digest in part.items()}

    def write() -> None:
        if world.rank == 0:
            manifest = {
                "step": step,
                "processes": world.size,
                "zero": zero,
                "files": dict(sorted(whole.items())),
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

    world.together(write, advice)


def newest(folder: Path, world: World, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, the same on every rank; damaged ones are named and removed, and what a killed run left half-made.

    Raises UserError where a file is there and cannot be read now: that says nothing about what it holds.
    """
    if world.rank == 0:
        for rest in (_trash(folder), *folder.glob(".partial-*")):
            shutil.rmtree(rest, ignore_errors=True)
    for path in world.gather(sorted(folder.glob("step-*"), reverse=True))[0]:
        manifest, problem = check(path, world)
        if not problem:
            return Checkpoint(path, manifest["step"], manifest["processes"], manifest["zero"])
        say(f"{path}: damaged checkpoint ({problem}); it is removed")
        if world.rank == 0:
            shutil.rmtree(path)
        world.barrier()
    return None


def check(folder: Path, world: World) -> tuple[dict[str, Any], str]:
    """(manifest, what is wrong with the checkpoint: "" where it is whole); each rank reads a share of the files."""
    found: dict[str, Any] = {}
    problems: list[str] = []

    def look() -> None:
        if world.rank == 0:
            found.update(_manifest(folder) or {})

    advice = f"{folder}: cannot be read now, and nothing was removed; run the same command again when the disk answers"
    world.together(look, advice)
    manifest: dict[str, Any] = world.gather(found)[0]
    if not manifest:
        return {}, f"{MANIFEST} is missing or damaged"

    def read() -> None:
        for name in _share(sorted(manifest["files"]), world):
            try:
                if sha256(folder / name) != manifest["files"][name]:
                    problems.append(f"{name}: not what was written")
            except FileNotFoundError:
                problems.append(f"{name}: is missing")

    world.together(read, advice)
    return manifest, next((text for part in world.gather(problems) for text in part), "")


def steps(folder: Path) -> list[int]:
    """Of which steps there are checkpoints, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def discard(folder: Path) -> None:
    """Remove a finished run's folder: all of it at once, for a part of it is none to go on from."""
    os.replace(folder, _trash(folder))
    shutil.rmtree(_trash(folder))


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.finished")


def universal(checkpoint: Checkpoint, world: World, say: Callable[[str], None]) -> str:
    """Tag of the checkpoint in DeepSpeed's universal form, which any number of processes can load; converted once, by rank 0."""
    tag = "universal"
    target = checkpoint.folder / tag

    def convert() -> None:
        if world.rank != 0 or target.exists():
            return
        partial = checkpoint.folder / f".{tag}"
        shutil.rmtree(partial, ignore_errors=True)
        # A process of its own: the converter starts others, and must not take itself for a rank.
        left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        folders = ["--input_folder", str(checkpoint.folder / "deepspeed"), "--output_folder", str(partial)]
        done = subprocess.run(
            [*command, *folders], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            raise RuntimeError((done.stderr.strip() or done.stdout.strip() or "no message").split("\n")[-1])
        os.replace(partial, target)

    say(f"{checkpoint.folder.name}: saved by {checkpoint.processes} processes, converted for {world.size}")
    world.together(
        convert,
        f"{checkpoint.folder}: cannot be converted for {world.size} processes; use {checkpoint.processes} again",
    )
    return tag


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _share(names: list[str], world: World) -> list[str]:
    return names[world.rank :: world.size]


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text())
        kinds = {"step": int, "processes": int, "zero": int, "files": dict}
        return found if all(isinstance(found[key], kind) for key, kind in kinds.items()) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
