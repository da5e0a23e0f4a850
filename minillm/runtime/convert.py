"""DeepSpeed's universal form of a checkpoint, in a process of its own and resumable.

`python -m minillm.runtime.convert FOLDER OUT` does what `deepspeed.checkpoint.ds_to_universal` does, but
notes each finished piece (one process's file taken apart, one weight put together) and skips those that an
earlier attempt has finished.  The parts of a weight are removed once it is put together, so that there is
never more than about one copy of the optimizer's state.  If the stage that started it ends, it may go on: the
next attempt waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
from pathlib import Path
from typing import Any

from deepspeed.checkpoint import ds_to_universal

# Below the output folder: one empty file per finished piece, and one if all is finished.
FINISHED, ALL = "finished", "all"
ORIGINAL = {
    name: getattr(ds_to_universal, name)
    for name in ("extract_zero_shards", "extract_zero_shards_stage3", "merge_tp_slices", "merge_zero3_slices")
}


class Once:
    """One of DeepSpeed's functions for a piece of work, its last argument, unless that is finished already.

    Not a closure: worker processes get it pickled.
    """

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        work, merges = arguments[-1], self.name.startswith("merge")
        # A weight's name, alone or with its shape; or the places of a process.
        piece = work if isinstance(work, str) else work[0] if merges else "-".join(map(str, work))
        done = self.out / FINISHED / f"{'weight' if merges else 'process'}-{piece}"
        result: Any = []
        if not done.exists():
            result = ORIGINAL[self.name](*arguments, **named)
            done.touch()
        if merges:
            shutil.rmtree(self.out / "tmp" / piece, ignore_errors=True)
        return result


def main(folder: Path, out: Path) -> None:
    """Convert the checkpoint in `folder` to `out`, or finish what an earlier attempt has left there."""
    finished = out / FINISHED
    finished.mkdir(parents=True, exist_ok=True)
    with open(finished / "lock", "a", encoding="utf-8") as lock:
        # Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (finished / ALL).exists():
            return
        for name in ORIGINAL:
            setattr(ds_to_universal, name, Once(name, out))
        sys.argv = ["ds_to_universal", "--input_folder", str(folder), "--output_folder", str(out)]
        ds_to_universal.main(ds_to_universal.parse_arguments())
        (finished / ALL).touch()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
