"""A trial of a grid: a short training of which only the dev evaluations are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm.errors import Diverged
from minillm.files import settings_hash, write_json
from minillm.runtime import provenance
from minillm.runtime.checkpoints import discard
from minillm.runtime.engine import Engine
from minillm.training.selection import plain

History = list[dict[str, Any]]


def tried(train: Callable[[], History], trial: bool | None) -> tuple[History, str]:
    """(dev evaluations of `train()`, why a `trial` was lost); what is no trial raises Diverged as it does."""
    try:
        return train(), ""
    except Diverged as error:
        if not trial:
            raise
        return [], str(error)


def write_trial(
    engine: Engine,
    history: History,
    lost: str,
    out: Path,
    settings: dict[str, Any],
    inputs: dict[str, str],
    seed: int,
) -> None:
    """Write what a trial has measured to `out`, or why it was lost, then remove its checkpoints."""
    with engine.interruptible():
        if engine.world.rank == 0:
            write_json(
                out,
                {
                    "settings": settings,
                    "settings_sha256": settings_hash(settings),
                    "inputs": inputs,
                    "seed": seed,
                    "steps": engine.steps,
                    "world_size": engine.world.size,
                    "wall_seconds": round(engine.elapsed(), 1),
                    "git": provenance.revision(),
                    "lost": lost,
                    "history": [plain(entry) for entry in history],
                },
            )
        engine.stop_if_asked(lambda: None)
        if engine.world.rank == 0:
            discard(engine.folder)
    engine.world.barrier()
