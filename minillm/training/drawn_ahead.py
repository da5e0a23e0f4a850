"""Collections that are drawn before the updates that precede theirs: by an older student, or all at once.

Collection c has the prompts and the random numbers that it would have without; only the weights that draw it
differ.  The number of draws and of updates is the same, too.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from minillm.errors import UserError
from minillm.files import sha256, whole_file, write_json
from minillm.readers import read_object
from minillm.runtime import state, trust
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World
from minillm.training.rollouts import Rollouts

# Below the folder of checkpoints, with which it is removed.
CACHE, INDEX = "collections", "index.json"

T = TypeVar("T")
Draw = Callable[[int], Rollouts]


class Queue:
    """The collections that come next, `lag` of them, each drawn when it is so many collections ahead.

    So collection c is drawn by the student as it is before the updates of collection c - `lag`, and the first
    ones by the initial student.  What waits, on the CPU, is part of every checkpoint.
    """

    def __init__(
        self,
        draw: Draw,
        collections: int,
        lag: int,
        first: int,
        saved: Sequence[dict[str, Any]],
        world: World,
    ) -> None:
        """`first` is the collection to be taken next, `saved` what `saved` returned before it."""
        self.draw, self.collections, self.lag = draw, collections, lag
        self.waiting = deque(Rollouts.restored(values, world) for values in saved)
        self.next = first + len(self.waiting)

    def take(self, collection: int) -> Rollouts:
        """The collection, which is the next one; what is due is drawn."""
        while self.next <= min(collection + self.lag, self.collections - 1):
            self.waiting.append(self.draw(self.next))
            self.next += 1
        return self.waiting.popleft()

    def saved(self) -> list[dict[str, Any]]:
        """What waits, as plain values for a checkpoint."""
        return [vars(rollouts) for rollouts in self.waiting]


class OnDisk:
    """All collections, drawn by the initial student before the first update; one of them is in memory."""

    def __init__(self, draw: Draw, collections: int, engine: Engine) -> None:
        self.draw, self.collections, self.engine = draw, collections, engine
        self.folder, self.world = engine.folder / CACHE, engine.world
        self.over = f"delete {engine.folder} to start this stage over"

    def fill(self, first: int) -> None:
        """Draw what is missing from collection `first` on; interrupted, it resumes with the next one.

        Every rank must call.  Raises UserError if the disk is too small for all of them, or if one is missing
        once there have been updates: the student that drew it is gone.
        """
        there = self._on_rank_0(self._index)
        missing = [c for c in range(first, self.collections) if _name(c) not in there]
        if missing and self.engine.step:
            raise UserError(
                f"{self.folder / _name(missing[0])}: missing, and only the initial student could draw it; "
                + self.over
            )
        if missing:
            self.engine.say(f"the initial student answers {len(missing)} of {self.collections} collections")
        for c in missing:
            self._write(c, self.draw(c))
            # Nothing is lost, and there is nothing else to save.
            self.engine.stop_if_asked(lambda: None)

    def take(self, collection: int) -> Rollouts:
        """The collection, from the disk.  Raises UserError on every rank if it is not what was written."""
        path = self.folder / _name(collection)

        def check() -> None:
            if not path.exists() or sha256(path) != self._index().get(path.name):
                raise UserError(f"{path}: not what was written; {self.over}")

        self._on_rank_0(check)
        return Rollouts.restored(state.read(path), self.world)

    def saved(self) -> list[dict[str, Any]]:
        """Nothing of it is in checkpoints."""
        return []

    def _write(self, collection: int, rollouts: Rollouts) -> None:
        """Written by rank 0, and entered in the index with its hash once it is whole."""
        path = self.folder / _name(collection)

        def write() -> None:
            with trust.only_ours():
                self.folder.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as partial:
                    digest = state.write(partial, vars(rollouts))
                left = (self.collections - collection - 1) * path.stat().st_size
                free = shutil.disk_usage(self.folder).free
                if left > free:
                    raise OSError(f"the others need {left / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")
                write_json(self.folder / INDEX, self._index() | {path.name: digest})

        advice = "free some space, or set teacher_cache: false; the same command then resumes"
        self.world.together(lambda: None if self.world.rank else write(), f"{path}: cannot be kept; {advice}")

    def _index(self) -> dict[str, Any]:
        """Name -> hash of the collections that are whole."""
        path = self.folder / INDEX
        return read_object(path, {}, "", self.over) if path.exists() else {}

    def _on_rank_0(self, action: Callable[[], T]) -> T:
        """What rank 0 gets from `action`, on every rank; its errors, too."""
        result, problem = None, ""
        if self.world.rank == 0:
            try:
                result = action()
            except (UserError, OSError) as error:
                problem = str(error)
        result, problem = self.world.gather((result, problem))[0]
        if problem:
            raise UserError(problem)
        return cast(T, result)


def _name(collection: int) -> str:
    return f"collection-{collection:06d}.safetensors"
