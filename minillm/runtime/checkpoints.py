"""Checkpoints of a training run: atomic, verified by hash, and resumable by any number of processes.

A checkpoint is a folder step-NNNNNNN: DeepSpeed's files, the random states of each rank, the loop's state,
and a manifest with the hash of every file.  The folder gets its name only once all of it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.files import sha256
from minillm.readers import checked, parse_json
from minillm.runtime import trust
from minillm.runtime.processes import World, leave

# The newest, and the one before it in case the newest is damaged.
KEPT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, with the process count and ZeRO stage of the run that saved it."""

    folder: Path
    step: int
    processes: int
    zero: int


@contextmanager
def saving(
    folder: Path, step: int, zero: int, needed: int, world: World, hashes: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """A folder that every rank writes its files to; it becomes `step`'s checkpoint if the block succeeds.

    `needed` bytes must be free.  `hashes`, by name, of files that this rank has hashed while it wrote them:
    the block adds to it, and all other files are read again.  Raises UserError on every rank if the disk is
    full or any rank could not write; earlier checkpoints are kept.
    """
    final, partial = folder / f"step-{step:07d}", folder / f".partial-{step:07d}"
    advice = (
        f"{folder}: step {step} could not be saved; free some space and run the same command again: "
        "it resumes from the last checkpoint"
    )

    def begin() -> None:
        if world.rank == 0:
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise OSError(f"a checkpoint needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")
            with trust.only_ours():
                partial.mkdir(parents=True)

    def finish() -> None:
        if world.rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in sorted(folder.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old)

    try:
        world.together(begin, advice)
        failures: list[Exception] = []
        try:
            with trust.only_ours():
                yield partial
        except (OSError, RuntimeError) as error:
            # The others wait for this rank inside DeepSpeed: torchrun ends them.
            if world.size > 1:
                line = f"minillm: error: {advice}: rank {world.rank}: {error}".split("\n")[0]
                print(line, file=sys.stderr, flush=True)
                leave(2)
            failures.append(error)

        def report() -> None:
            if failures:
                raise failures[0]

        world.together(report, advice)
        seal(partial, step, zero, world, advice, hashes or {})
        world.together(finish, advice)
    finally:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)


def seal(folder: Path, step: int, zero: int, world: World, advice: str, written: Mapping[str, str]) -> None:
    """Write the manifest with the hashes of all files: `written`, and the others, which the ranks share."""
    every = {name: digest for part in world.gather(dict(written)) for name, digest in part.items()}
    hashes: dict[str, str] = {}

    def read() -> None:
        rest = [name for name in _names(folder) if name not in every]
        hashes.update({name: sha256(folder / name) for name in _share(rest, world)})

    world.together(read, advice)
    every |= {name: digest for part in world.gather(hashes) for name, digest in part.items()}

    def write() -> None:
        if world.rank == 0:
            manifest = {
                "step": step,
                "processes": world.size,
                "zero": zero,
                "files": dict(sorted(every.items())),
            }
            text = json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1)
            with trust.only_ours():
                (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    world.together(write, advice)


def newest(folder: Path, world: World, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint, the same on every rank.

    Damaged ones are reported and removed, as are the partial files of a killed run.  Raises UserError if a
    file exists but cannot be read at the moment: that does not mean that it is damaged.
    """
    if world.rank == 0:
        for leftover in (_trash(folder), *folder.glob(".partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)
    for path in world.gather(sorted(folder.glob("step-*"), reverse=True))[0]:
        manifest, problem = check(path, world)
        if not problem:
            return Checkpoint(path, manifest["step"], manifest["processes"], manifest["zero"])
        say(f"{path}: damaged checkpoint ({problem}); it is removed")

        def remove(path: Path = path) -> None:
            if world.rank == 0:
                shutil.rmtree(path)

        world.together(remove, f"{path}: cannot be removed; delete it, or the folder around it to start over")
    return None


def check(folder: Path, world: World, named: bool = True) -> tuple[dict[str, Any], str]:
    """(manifest, what is wrong with the checkpoint or ""); each rank reads a share of the files.

    `named`: whether the folder has the name of its step.
    """
    on_rank_0: dict[str, Any] = {}
    problems: list[str] = []

    def read_manifest() -> None:
        if world.rank == 0:
            on_rank_0.update(_manifest(folder) or {})

    advice = (
        f"{folder}: cannot be read now, and nothing was removed; "
        "run the same command again when the disk responds"
    )
    world.together(read_manifest, advice)
    manifest: dict[str, Any] = world.gather(on_rank_0)[0]
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
    if named and folder.name != f"step-{manifest['step']:07d}":
        problems.append(f"{MANIFEST}: is of step {manifest['step']}")
    # DeepSpeed loads whatever has the right name.
    foreign = {name for name in _names(folder) if name.endswith(".pt")} - set(manifest["files"])
    problems += [f"{name}: was not saved with it" for name in sorted(foreign) if "universal/" not in name]
    return manifest, next((text for part in world.gather(problems) for text in part), "")


def check_resumable(saved: Checkpoint, zero: int, world: World) -> None:
    """UserError on every rank if `saved` must not be loaded, or cannot be under the ZeRO stage `zero`."""
    over = f"delete {saved.folder.parent} to start this stage over"
    if saved.zero != zero and not {saved.zero, zero} <= {1, 2}:
        raise UserError(
            f"launch.zero: {saved.folder} was saved under ZeRO {saved.zero}, which {zero} cannot resume; "
            f"set zero: {saved.zero}, or {over}"
        )
    problem = ""
    if world.rank == 0:
        try:
            if (saved.folder / "state.pt").exists():
                raise UserError(
                    f"{saved.folder}: an earlier version saved it as a pickle, which is not loaded since it "
                    f"could run code; finish the run with that version, or {over}"
                )
            trust.check(saved.folder)
        except (UserError, OSError) as error:
            problem = str(error)
    if problem := world.gather(problem)[0]:
        raise UserError(problem)


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def discard(folder: Path) -> None:
    """Remove a finished run's folder, atomically: a partial folder cannot be resumed."""
    os.replace(folder, _trash(folder))
    shutil.rmtree(_trash(folder))


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.finished")


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _share(names: list[str], world: World) -> list[str]:
    return names[world.rank :: world.size]


def _digest(manifest: dict[str, Any]) -> str:
    """Hash of all that a manifest says."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None if it is missing, or not what was written."""
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
        kinds = {"step": int, "processes": int, "zero": int, "files": dict}
        manifest = checked(parse_json(text, folder), kinds, folder)
    # Not through read_json, for which a disk that does not answer is an error of the file.
    except (FileNotFoundError, UnicodeDecodeError, UserError):
        return None
    # Manifests of earlier versions have no hash.
    return manifest if manifest.get("sha256", _digest(manifest)) == _digest(manifest) else None
